"""What the commands have in common at a terminal: colour, and a progress bar."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "alarm": "1;31",
}
#: Bytes; less is read before a bar could be looked at.
WORTH_IT = 50_000_000


def add_colour_option(parser: argparse.ArgumentParser) -> None:
    """The option ``--color``, alike for every subcommand."""
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="auto: only on a terminal, and not if NO_COLOR is set (default)",
    )


class Paint:
    """``paint(text, style)`` wraps ``text`` in escape codes, or leaves it as it is."""

    def __init__(self, on: bool) -> None:
        self.on = on

    @classmethod
    def choose(cls, wish: str, stream: TextIO) -> Paint:
        """By the option ``--color``, the terminal, and NO_COLOR (https://no-color.org)."""
        if wish == "auto":
            return cls(stream.isatty() and not os.environ.get("NO_COLOR"))
        return cls(wish == "always")

    def __call__(self, text: str, style: str) -> str:
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.on and text else text


@contextmanager
def progress_bar(size: int, *, what: str) -> Iterator[Callable[[int], None] | None]:
    """Yield what to tell how many bytes were read; None where nobody would see a bar."""
    if size < WORTH_IT or not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield None
        return
    # Imported late: rich takes 50 ms, and most calls need no bar.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar("{task.description}", *columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=size)
        yield lambda amount: bar.advance(task, amount)
