"""The bytes of one log as numbered lines: plain or gzip, a file or standard input, in chunks.

Memory holds one chunk and one unfinished line, whatever the log's size. Nothing here knows
what a record is.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from .problems import Kind, Problem

CHUNK = 256 * 1024
#: A longer line is no audit record (one takes half a kilobyte): it is reported and skipped.
MAX_LINE = 1024 * 1024
STDIN = "-"
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"

#: Told how many bytes of the file (compressed ones, if it is) were read since the last call.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Span:
    """A piece of a plain file that one worker reads: bytes ``start`` up to ``end``."""

    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Batch:
    """Consecutive lines without their newlines. ``first`` is the number of the first one.

    ``complete`` is False for the last line of a file that does not end in a newline.
    """

    first: int
    lines: list[bytes]
    complete: bool = True


#: Reads up to so many bytes; nothing at the end.
_Read = Callable[[int], bytes]


def open_log(path: str) -> BinaryIO:
    """Open ``path`` for reading bytes; OSError with a reason in plain words if that fails."""
    if path == STDIN:
        return sys.stdin.buffer
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise IsADirectoryError(f"is a directory; name the files in it, for example {path}/*.jsonl")
    return open(path, "rb")


def why(error: OSError) -> str:
    """The reason of a failed open, without the path in it a second time."""
    return error.strerror or str(error)


class _Counted:
    """Reads from a raw stream and counts: for progress, and to give back sniffed bytes."""

    def __init__(self, raw: BinaryIO, head: bytes) -> None:
        self._raw = raw
        self._head = head
        self.count = 0

    def read(self, size: int, /) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        data = data or self._raw.read(size)
        self.count += len(data)
        return data

    def seek(self, _offset: int, /) -> object:
        """Only gzip's rewind would ask; a log is read once, from front to back."""
        raise io.UnsupportedOperation("seek")


class LineReader:
    """Iterates over ``Batch`` and ``Problem``: the lines, and what kept some from being lines.

    ``lines`` is the number of lines seen so far, ``failed`` tells whether reading stopped
    early. Damage of the file itself (a cut gzip, a
    read error) ends the iteration with a Problem; nothing is raised.
    """

    def __init__(
        self, path: str, span: Span | None = None, on_progress: Progress | None = None
    ) -> None:
        self.path = path
        self.lines = 0
        self.failed = False
        self._span = span
        self._on_progress = on_progress
        self._skipping = 0

    def __iter__(self) -> Iterator[Batch | Problem]:
        try:
            raw = open_log(self.path)
        except OSError as error:
            self.failed = True
            yield Problem(Kind.UNREADABLE, self.path, 0, f"cannot be opened: {why(error)}")
            return
        try:
            yield from self._read(raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield self._stopped(Kind.CUT_FILE, f"the compressed file is damaged: {error}")
        except OSError as error:
            yield self._stopped(Kind.UNREADABLE, f"cannot be read: {why(error)}")
        finally:
            if self.path != STDIN:
                raw.close()

    def _stopped(self, kind: Kind, what: str) -> Problem:
        self.failed = True
        line = self.lines + 1
        return Problem(kind, self.path, line, f"{what}; nothing after this place was read")

    def _read(self, raw: BinaryIO) -> Iterator[Batch | Problem]:
        read, counted, left = self._unpack(raw)
        pending = b""
        reported = 0
        while True:
            chunk = read(CHUNK if left is None else min(CHUNK, left))
            if left is not None:
                left -= len(chunk)
            if self._on_progress is not None:
                self._on_progress(counted.count - reported)
                reported = counted.count
            if not chunk:
                break
            pending = yield from self._split(pending, chunk)
        yield from self._finish(pending)

    def _unpack(self, raw: BinaryIO) -> tuple[_Read, _Counted, int | None]:
        """What reads plain bytes, the raw counter, and how many bytes to take (None: all)."""
        if self._span is not None:
            raw.seek(self._span.start)
            end = self._span.end
            if self._span.start:
                counted = _Counted(raw, b"")
                return counted.read, counted, None if end is None else end - self._span.start
        head = raw.read(len(_BOM))
        if head.startswith(_GZIP):
            counted = _Counted(raw, head)
            # read1: of a damaged file, what came before the damage is not lost.
            return gzip.GzipFile(fileobj=counted).read1, counted, None
        end = None if self._span is None else self._span.end
        counted = _Counted(raw, b"" if head == _BOM else head)
        left = None if end is None else end - (len(head) if head == _BOM else 0)
        return counted.read, counted, left

    def _split(self, pending: bytes, chunk: bytes) -> Generator[Batch | Problem, None, bytes]:
        """Yield the complete lines of ``pending + chunk``; return what is left over."""
        lines = (pending + chunk).split(b"\n")
        rest = lines.pop()
        if lines:
            if self._skipping or len(lines[0]) > MAX_LINE:
                yield self._long_line(len(lines.pop(0)))
            if lines:
                first = self.lines + 1
                self.lines += len(lines)
                yield Batch(first, lines)
        if self._skipping or len(rest) > MAX_LINE:
            self._skipping += len(rest)
            rest = b""
        return rest

    def _long_line(self, size: int) -> Problem:
        total, self._skipping = self._skipping + size, 0
        self.lines += 1
        return Problem(
            Kind.LONG_LINE,
            self.path,
            self.lines,
            f"a line of {total:,} bytes is no audit record (limit {MAX_LINE:,}): skipped",
        )

    def _finish(self, pending: bytes) -> Iterator[Batch | Problem]:
        if self._skipping:
            yield self._long_line(0)
        elif pending:
            self.lines += 1
            yield Batch(self.lines, [pending], complete=False)
