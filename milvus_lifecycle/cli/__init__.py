"""The command line: finds the subcommand's module and hands over to it.

Each subcommand is one line in `COMMANDS` and a module of that name here, with two functions:

    configure(parser: argparse.ArgumentParser) -> None    adds the options
    execute(options: argparse.Namespace) -> int           does the work, returns the exit code

Only the module of the subcommand that was asked for is imported, so that `--help` needs no extra
and a missing extra of one subcommand does not break another.

Exit codes: 0 success, 1 the command's own verdict is negative, 2 wrong usage or could not run
(`Refused`), 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from milvus_lifecycle import __version__

PROGRAM = "milvus-lifecycle"

USAGE_ERROR = 2
INTERRUPTED = 130
#: Package: the extra that brings it.
_EXTRAS = {"msgspec": "audit", "bokeh": "report"}

#: Subcommand, which is the name of its module here: what it does.
COMMANDS = {
    "demo": "kill a real server under an unmodified MilvusClient program and watch the connections",
    "probe": "look at a server step by step: name, TCP, TLS, version, latency",
    "run": "run an unchanged program with its MilvusClients on the engine",
    "diagram": "draw the lifecycle from the table, or from what audit logs say of it",
    "audit": "verify, count, follow and show audit logs",
}


class Refused(Exception):
    """A command could not run; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (argparse itself exits with 2 on bad usage)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Windows redirects in a code page without arrows: better a question mark than an end.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _execute(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough (| head). Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Refused as error:
        why = f" {words[0]}: {error}"
    except ImportError as error:
        extra = _EXTRAS.get(error.name or "")
        if extra is None:
            raise
        why = f": this needs {error.name}: pip install 'milvus_lifecycle[{extra}]'"
    print(f"{PROGRAM}{why}", file=sys.stderr)
    return USAGE_ERROR


def _execute(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Connection lifecycle engine for the Milvus Python SDK."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    children = parser.add_subparsers(title="subcommands", metavar="COMMAND")
    first = next((word for word in words if not word.startswith("-")), None)
    chosen = None
    for name, summary in COMMANDS.items():
        child = children.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + "."
        )
        if name == first:
            chosen = importlib.import_module(f"{__name__}.{name}")
            chosen.configure(child)
    options = parser.parse_args(words)  # which explains what there is, for any other word
    if chosen is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    return int(chosen.execute(options))
