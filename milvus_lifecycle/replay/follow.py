"""Reading a log's end: the last lines that matter, and then what is added, across rotation."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO, TypeVar

from .files import MAX_LINE, STDIN, Batch, LineReader, Span, open_log

T = TypeVar("T")

_WINDOW = 256 * 1024
_GROWTH = 8


def last_matches(
    path: str,
    wanted: int | None,
    match: Callable[[bytes], T | None],
    end: int | None = None,
) -> list[T]:
    """What ``match`` makes of the last ``wanted`` lines for which it is not None (None: of all).

    Of a large plain file only the end is read, in windows that grow until enough was found;
    what comes behind byte ``end`` is left out. Raises OSError if the file cannot be opened.
    """
    if path != STDIN:
        open_log(path).close()
    plain = _is_plain(path)
    size = os.path.getsize(path) if plain else 0
    size = size if end is None else min(size, end)
    window = size if wanted is None else _WINDOW
    while True:
        start = max(0, size - window)
        # One byte earlier: then the first line is whole if and only if that byte is a newline.
        span = Span(max(0, start - 1), end) if plain else None
        found = deque(_matches(LineReader(path, span), start > 0, match), maxlen=wanted)
        if start == 0 or (wanted is not None and len(found) >= wanted):
            return list(found)
        window *= _GROWTH


def _is_plain(path: str) -> bool:
    """A file in which one can begin anywhere: not a stream, not compressed."""
    if path == STDIN or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(2) != b"\x1f\x8b"


def _matches(
    reader: LineReader, skip_first: bool, match: Callable[[bytes], T | None]
) -> Iterator[T]:
    for part in reader:
        if isinstance(part, Batch):
            for line in part.lines[1 if skip_first and part.first == 1 else 0 :]:
                found = match(line)
                if found is not None:
                    yield found


class Follower:
    """The lines that are added to a file. ``poll`` never waits; whoever calls it does.

    A rotated file is read to its end before the new one is opened; a truncated one is read
    from its start. While the file is missing nothing comes.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._pending = b""

    def seek_end(self) -> int:
        """Start behind the last complete line that is there by now; returns where that is."""
        self._open()
        if self._file is None:
            return 0
        end = self._file.seek(0, os.SEEK_END)
        start = max(0, end - MAX_LINE)
        self._file.seek(start)
        tail = self._file.read(end - start)
        return self._file.seek(start + tail.rfind(b"\n") + 1)

    def poll(self) -> list[bytes]:
        """The complete lines that were added since the last call."""
        lines: list[bytes] = []
        if self._file is None:
            self._open()
        if self._file is None:
            return lines
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
            self._pending = b""
        self._read(lines)
        if self._moved():
            self._read(lines)  # what was written between the last look and the rotation
            if self._pending:
                lines.append(self._pending)
            self.close()
            self._open()
            if self._file is not None:
                self._read(lines)
        return lines

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._pending = b""

    def _open(self) -> None:
        try:
            self._file = open_log(self.path)
        except FileNotFoundError:
            self._file = None

    def _moved(self) -> bool:
        """Is there another file of that name by now? A missing one may yet come back."""
        if self._file is None:
            return False
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._file.fileno())
        return (now.st_dev, now.st_ino) != (mine.st_dev, mine.st_ino)

    def _read(self, lines: list[bytes]) -> None:
        if self._file is None:
            return
        while chunk := self._file.read(_WINDOW):
            parts = (self._pending + chunk).split(b"\n")
            self._pending = parts.pop()
            lines += parts
            if len(self._pending) > MAX_LINE:
                self._pending = b""
