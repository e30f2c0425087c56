"""``milvus-lifecycle audit``: hands over to verify, stats, tail, report or sample."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import cast

from . import (
    report as command_report,
)
from . import (
    sample as command_sample,
)
from . import (
    stats as command_stats,
)
from . import (
    tail as command_tail,
)
from . import (
    verify as command_verify,
)

_COMMANDS = {
    "verify": command_verify,
    "stats": command_stats,
    "tail": command_tail,
    "report": command_report,
    "sample": command_sample,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``audit``."""
    children = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        summary = module.SUMMARY
        child = children.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:]
        )
        module.configure(child)
        child.set_defaults(audit_execute=module.execute)


def execute(options: argparse.Namespace) -> int:
    """Run the subcommand that was chosen; returns the exit code."""
    chosen = cast("Callable[[argparse.Namespace], int]", options.audit_execute)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Windows redirects in a code page without arrows: better a question mark than an end.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = chosen(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has seen enough (| head). Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
