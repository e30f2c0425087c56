"""The command line: finds the subcommand's module and hands over to it.

Each subcommand is one line in `COMMANDS` and one module with two functions:

    configure(parser: argparse.ArgumentParser) -> None    adds the options
    execute(options: argparse.Namespace) -> int           does the work, returns the exit code

Only the module of the subcommand that was asked for is imported, so that `--help` needs no extra
and a missing extra of one subcommand does not break another.

Exit codes: 0 success, 1 the command's own verdict is negative, 2 wrong usage or could not run,
130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from milvus_lifecycle import __version__

PROGRAM = "milvus-lifecycle"

USAGE_ERROR = 2
INTERRUPTED = 130
#: Packages that extras bring; whoever misses one names the extra in its ImportError.
_OF_EXTRAS = ("msgspec", "bokeh")


@dataclass(frozen=True)
class Command:
    """One subcommand: its name, the module that implements it, one line of help."""

    name: str
    module: str
    summary: str


COMMANDS: tuple[Command, ...] = (
    Command(
        "demo",
        "milvus_lifecycle.cli.demo",
        "kill a real server under an unmodified MilvusClient program and watch the connections",
    ),
    Command(
        "run",
        "milvus_lifecycle.cli.run",
        "run an unchanged program with its MilvusClients on the engine",
    ),
    Command(
        "diagram",
        "milvus_lifecycle.cli.diagram",
        "draw the lifecycle from the table, or from what audit logs say of it",
    ),
    Command(
        "audit",
        "milvus_lifecycle.cli.audit",
        "verify, count, follow and show audit logs",
    ),
)


class Subcommand(Protocol):
    """What a subcommand's module has."""

    def configure(self, parser: argparse.ArgumentParser, /) -> None:
        """Add the subcommand's options to its parser."""

    def execute(self, options: argparse.Namespace, /) -> int:
        """Run the subcommand; returns the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (argparse itself exits with 2 on bad usage)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _execute(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ImportError as error:
        if error.name not in _OF_EXTRAS:
            raise
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return USAGE_ERROR


def _execute(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Connection lifecycle engine for the Milvus Python SDK."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    children = parser.add_subparsers(title="subcommands", metavar="COMMAND")
    first = next((word for word in words if not word.startswith("-")), None)
    chosen: Subcommand | None = None
    for command in COMMANDS:
        summary = command.summary
        child = children.add_parser(
            command.name, help=summary, description=summary[0].upper() + summary[1:] + "."
        )
        if command.name == first:
            # A module is what the protocol describes; no type can say so of an import by name.
            chosen = cast(Subcommand, importlib.import_module(command.module))
            chosen.configure(child)
    options = parser.parse_args(words)  # which explains what there is, for any other word
    if chosen is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    return chosen.execute(options)
