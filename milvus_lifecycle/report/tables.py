"""Tables of text: one description, drawn by rich on a terminal and as plain columns elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TextIO


@dataclass(frozen=True)
class Table:
    """Rows of text under ``columns``; a column whose name ends in ``>`` is right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)
    note: str = ""

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """(name, right-aligned) of each column."""
        return [(name.removesuffix(">"), name.endswith(">")) for name in self.columns]


def plural(count: int, word: str) -> str:
    """``1 record``, ``2,000 records``."""
    return f"{count:,} {word}{'s' * (count != 1)}"


def print_tables(tables: Iterable[Table], stream: TextIO | None = None) -> None:
    """Print the tables that have rows; with lines and emphasis if a person looks."""
    out = sys.stdout if stream is None else stream
    shown = [table for table in tables if table.rows]
    if out.isatty() and importlib.util.find_spec("rich") is not None:
        _print_rich(shown, out)
        return
    for table in shown:
        out.write("\n".join(_plain(table)) + "\n\n")


def _plain(table: Table) -> Iterable[str]:
    heads = table.heads
    widths = [
        max(len(name), *(len(row[index]) for row in table.rows))
        for index, (name, _) in enumerate(heads)
    ]
    yield table.title
    if table.note:
        yield f"({table.note})"
    for cells in ([name for name, _ in heads], ["-" * width for width in widths], *table.rows):
        yield "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, (_, right) in zip(cells, widths, heads, strict=True)
        ).rstrip()


def _print_rich(tables: Iterable[Table], out: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=out)
    for table in tables:
        drawn = RichTable(
            title=Text(table.title, style="bold"),
            caption=Text(table.note, style="dim") if table.note else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for name, right in table.heads:
            drawn.add_column(Text(name), justify="right" if right else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)
        console.print()
