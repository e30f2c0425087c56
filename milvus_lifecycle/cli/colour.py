"""Colour in a terminal: when to use it, and which."""

from __future__ import annotations

import argparse
import os
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
