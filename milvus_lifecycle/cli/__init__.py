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
    chosen = _choose(words)
    subcommand = None if chosen is None else _load(chosen)
    parser = _build_parser(chosen, subcommand)
    options = parser.parse_args(words)
    if subcommand is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    return subcommand.execute(options)


def _choose(words: Sequence[str]) -> Command | None:
    """The subcommand that the first word names; None lets argparse explain what there is."""
    first = next((word for word in words if not word.startswith("-")), None)
    return next((command for command in COMMANDS if command.name == first), None)


def _load(command: Command) -> Subcommand:
    # A module is the object that the protocol describes; no type can say so of an import by name.
    return cast(Subcommand, importlib.import_module(command.module))


def _build_parser(chosen: Command | None, subcommand: Subcommand | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Connection lifecycle engine for the Milvus Python SDK."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    children = parser.add_subparsers(title="subcommands", metavar="COMMAND")
    for command in COMMANDS:
        child = children.add_parser(
            command.name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
        )
        if command is chosen and subcommand is not None:
            subcommand.configure(child)
    return parser
