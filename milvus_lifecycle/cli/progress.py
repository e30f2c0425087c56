"""A progress bar on standard error: for a person at a terminal, if it will take a while."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..replay.lines import Progress

#: Bytes; less is read before a bar could be looked at.
WORTH_IT = 50_000_000


@contextmanager
def progress_bar(size: int, *, what: str) -> Iterator[Progress | None]:
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
