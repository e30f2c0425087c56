"""``milvus-lifecycle audit tail``: its options, and the loop that follows a growing log."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from time import sleep

from ..replay.follow import Follower, last_matches
from ..replay.lines import STDIN, why
from ..replay.tail import LineWriter, Shown, Wanted, look_at, parse_since
from ..table import Trigger
from .colour import Paint, add_colour_option

SUMMARY = "show the last transitions, one line each, and follow the log"

#: Lines without -n, and seconds between two looks at the file.
LINES = 20
PAUSE = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``audit tail``."""
    parser.add_argument("log", metavar="LOG", help="a file, .gz, or - (stdin)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as the log grows")
    parser.add_argument(
        "-n",
        "--lines",
        type=_lines,
        metavar="N",
        help=f"how many lines, or 'all' (default: {LINES}; all with --since)",
    )
    parser.add_argument(
        "--address", action="append", default=[], metavar="TEXT", help="substring or glob"
    )
    parser.add_argument(
        "--connection", action="append", default=[], metavar="ID", help="an id or its beginning"
    )
    parser.add_argument(
        "--trigger",
        action="append",
        default=[],
        metavar="NAME",
        choices=[str(trigger) for trigger in Trigger],
        help="e.g. give_up",
    )
    parser.add_argument(
        "--since", type=_since, metavar="WHEN", help="an age (15m, 2h, 1d) or a time (ISO 8601)"
    )
    parser.add_argument("--json", action="store_true", help="print the lines as they stand")
    add_colour_option(parser)


def _lines(text: str) -> int:
    """A number of lines; -1 for all."""
    if text == "all":
        return -1
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def _since(text: str) -> datetime:
    try:
        return parse_since(text, datetime.now(timezone.utc))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def execute(options: argparse.Namespace) -> int:
    """Show, and follow if asked; returns the exit code (Ctrl-C is raised)."""
    wanted = Wanted(options.address, options.connection, options.trigger, options.since)
    show = _printer(options)

    foreign = False

    def match(line: bytes) -> Shown | None:
        nonlocal foreign
        shown = look_at(line, wanted)
        foreign = foreign or (shown is None and bool(line.strip()))
        return shown

    count = options.lines
    if count is None:
        count = -1 if options.since else LINES
    follower, end = None, None
    try:
        if options.follow and options.log != STDIN:
            follower = Follower(options.log)
            end = follower.seek_end()
        found = last_matches(options.log, None if count < 0 else count, match, end)
        show(found)
    except OSError as error:
        print(f"{options.log}: cannot be opened: {why(error)}", file=sys.stderr)
        return 2
    if foreign and not found and wanted.everything and follower is None and count:
        print(f"{options.log}: no audit record in it; audit verify says why", file=sys.stderr)
        return 2
    if follower is not None:
        _follow(follower, match, show)
    return 0


def _follow(
    follower: Follower,
    match: Callable[[bytes], Shown | None],
    show: Callable[[Iterable[Shown]], None],
) -> None:
    while True:
        found = (match(line) for line in follower.poll())
        show(shown for shown in found if shown is not None)
        sleep(PAUSE)


def _printer(options: argparse.Namespace) -> Callable[[Iterable[Shown]], None]:
    out = sys.stdout
    width = shutil.get_terminal_size().columns if out.isatty() else None
    writer = LineWriter(Paint.choose(options.color, out), width)

    def show(found: Iterable[Shown]) -> None:
        for shown in found:
            if options.json:
                print(shown.raw.decode("utf-8", "replace"))
            else:
                for line in writer.lines(shown):
                    print(line)
        out.flush()

    return show
