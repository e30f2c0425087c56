"""Logs from their names to records: files in order, their lines, and what each line says.

    names --find_sources--> files --LineReader--> numbered lines --records_in--> records

A file is plain or gzip, or standard input. Memory holds one chunk and one unfinished line,
whatever the log's size. Nothing is raised for bad input: it is a finding.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import stat
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from json import JSONDecodeError
from typing import BinaryIO

from ..audit.records import EVENTS
from .findings import Kind, Problem, Problems, clean
from .records import Record, convert, decode

CHUNK = 256 * 1024
#: A longer line is no audit record (one takes half a kilobyte): it is reported and skipped.
MAX_LINE = 1024 * 1024
STDIN = "-"
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"

#: Told how many bytes of the file (compressed ones, if it is) were read since the last call.
Progress = Callable[[int], None]
#: Where loggers that do not know structlog's ``event`` put the message.
_ALIASES = ("message", "msg")
#: How many starts of an object to try in a line that holds more than one.
_TRIES = 8
_FIRST = datetime.min.replace(tzinfo=timezone.utc)
_LAST = datetime.max.replace(tzinfo=timezone.utc)
#: Lines to look at for a file's first moment before it is put at the end.
_PEEK_LINES = 100


# -- lines ------------------------------------------------------------------------------------


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
    """Reads from a raw stream and counts, for progress; its first bytes can be looked at."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._head = b""
        self.count = 0

    def peek(self, size: int) -> bytes:
        """The first bytes, which are read again afterwards."""
        self._head = self._raw.read(size)
        return self._head

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
        span = self._span or Span()
        left = None if span.end is None else span.end - span.start
        if span.start:
            raw.seek(span.start)
        counted = _Counted(raw)
        read: Callable[[int], bytes] = counted.read
        head = b"" if span.start else counted.peek(len(_BOM))
        if head.startswith(_GZIP):
            # read1: of a damaged file, what came before the damage is not lost.
            read = gzip.GzipFile(fileobj=counted).read1
        elif head == _BOM:
            counted.read(len(_BOM))
            left = None if left is None else left - len(_BOM)
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


# -- records ----------------------------------------------------------------------------------


Finding = tuple[Kind, str]


def decode_or_explain(line: bytes, complete: bool = True) -> tuple[list[Record], list[Finding]]:
    """The records in ``line`` (mostly one, of a damaged line perhaps none), and what is wrong.

    ``complete`` is False for a last line without a newline. An empty line is neither.
    """
    try:
        return [decode(line)], []
    except (ValueError, RecursionError):
        pass
    findings: list[Finding] = []
    if b"\0" in line:
        findings.append((Kind.NUL_BYTES, f"{line.count(0)} NUL bytes in the line"))
        line = line.replace(b"\0", b"")
    if not line.strip():
        return [], findings
    records, problem = _examine(line, complete)
    if problem is not None:
        findings.append(problem)
    return records, findings


def _examine(line: bytes, complete: bool) -> tuple[list[Record], Finding | None]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return [], (Kind.BROKEN_LINE, f"not UTF-8 (byte {error.start + 1} of the line)")
    try:
        value = json.loads(text)
    except JSONDecodeError as error:
        return _salvage(text, error, complete)
    except RecursionError:
        return [], (Kind.FOREIGN_LINE, "JSON nested too deeply to be an audit record")
    if not isinstance(value, dict):
        return [], (Kind.FOREIGN_LINE, f"not an audit record: JSON, but {_kind(value)}")
    return _convert(value)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _convert(values: dict[str, object]) -> tuple[list[Record], Finding | None]:
    event = values.get("event")
    if event not in EVENTS:
        alias = next((name for name in _ALIASES if values.get(name) in EVENTS), None)
        if alias is None:
            return [], (Kind.FOREIGN_LINE, _foreign(event))
        values = {**values, "event": values[alias]}
    try:
        return [convert(values)], None
    except ValueError as error:
        return [], (Kind.BAD_RECORD, f"a {values['event']} record with a fault: {error}")


def _foreign(event: object) -> str:
    if event is None:
        return "not an audit record: JSON without an event name"
    return f"not an audit record: event {clean(str(event))!r}"


def _salvage(
    text: str, error: JSONDecodeError, complete: bool
) -> tuple[list[Record], Finding | None]:
    """Not JSON as a whole: two records on one line, or a cut record with the next one behind it."""
    if not text.lstrip().startswith("{"):
        return [], (Kind.FOREIGN_LINE, f"not JSON: {clean(text)!r}")
    records: list[Record] = []
    whole = True
    starts = [index for index in range(len(text)) if text.startswith('{"', index)]
    decoder = json.JSONDecoder()
    end = 0
    for start in starts[:_TRIES]:
        if start < end:
            continue
        try:
            value, stop = decoder.raw_decode(text, start)
        except (JSONDecodeError, RecursionError):
            whole = False
            continue
        found, problem = _convert(value)
        if problem is None:
            records += found
            end = stop
    if records and whole and not text[end:].strip():
        return records, (Kind.BROKEN_LINE, f"{len(records)} records on one line")
    if not complete:
        return records, (Kind.CUT_LINE, f"the last line is cut off after {len(text):,} characters")
    saved = f"; {len(records)} whole record on the same line was read" if records else ""
    detail = f"{error.msg.lower()}, column {error.colno}"
    return records, (Kind.BROKEN_LINE, f"broken JSON ({detail}){saved}")


def records_in(
    reader: LineReader, tell: Callable[[Kind, int, str], object]
) -> Iterator[tuple[int, Record]]:
    """All sound records of a log, with the numbers of their lines.

    What cannot be read is left out, and ``tell(kind, line, message)`` called for it.
    """
    for part in reader:
        if isinstance(part, Problem):
            tell(part.kind, part.line, part.message)
            continue
        for number, line in enumerate(part.lines, part.first):
            try:
                record = decode(line)
            except (ValueError, RecursionError):
                records, findings = decode_or_explain(line, part.complete)
                for kind, message in findings:
                    tell(kind, number, message)
                yield from ((number, record) for record in records)
            else:
                yield number, record


def read_records(
    sources: Sources, problems: Problems, on_progress: Progress | None = None
) -> Iterator[Record]:
    """The records of some logs, one after the other. What cannot be read goes to ``problems``.

    Whether the records are legal nobody looks at.
    """
    path = ""

    def tell(kind: Kind, line: int, message: str) -> None:
        problems.add(Problem(kind, path, line, message))

    for problem in sources.problems:
        problems.add(problem)
    for path in sources.paths:
        for _, record in records_in(LineReader(path, None, on_progress), tell):
            yield record


# -- names ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """The files to read, oldest first; what was asked for and is not there; bytes in all."""

    paths: tuple[str, ...]
    problems: tuple[Problem, ...]
    size: int


def find_sources(names: Sequence[str]) -> Sources:
    """Resolve file names, globs and ``-``.

    A file that was named twice is read once. Regular files come in the order of their first
    record's time, because a connection's records continue from a rotated log to the next one;
    pipes and standard input follow in the order given.
    """
    problems: list[Problem] = []
    dated: list[tuple[datetime, str]] = []
    streams: list[str] = []
    seen: set[tuple[int, int]] = set()
    size = 0
    for path in _expand(names, problems):
        if path == STDIN:
            if STDIN not in streams:
                streams.append(STDIN)
            continue
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
                streams.append(path)
                continue
            open_log(path).close()
        except OSError as error:
            problems.append(Problem(Kind.UNREADABLE, path, 0, f"cannot be opened: {why(error)}"))
            continue
        dated.append((_FIRST, path))
        size += status.st_size
    if len(dated) > 1:
        dated = sorted(((_first_moment(path), path) for _, path in dated), key=lambda one: one[0])
    paths = (*(path for _, path in dated), *streams)
    return Sources(paths, tuple(problems), size)


def name_files(files: Sequence[str]) -> str:
    """The logs in a few words."""
    shown = ", ".join(files[:3])
    return shown if len(files) <= 3 else f"{shown} and {len(files) - 3} more"


def _expand(names: Iterable[str], problems: list[Problem]) -> list[str]:
    """File names; a pattern that matches nothing becomes a problem."""
    paths: list[str] = []
    for name in names:
        if name == STDIN or not glob.has_magic(name) or os.path.exists(name):
            paths.append(name)
            continue
        found = sorted(glob.glob(name, recursive=True))
        if not found:
            problems.append(Problem(Kind.UNREADABLE, name, 0, "no file matches this pattern"))
        paths.extend(found)
    return paths


def _first_moment(path: str) -> datetime:
    """When the first record of a file was written; a file without records comes last."""
    left = _PEEK_LINES
    for batch in LineReader(path):
        if isinstance(batch, Batch):
            for line in batch.lines[:left]:
                records, _ = decode_or_explain(line)
                if records:
                    return records[0].ts
            left -= len(batch.lines)
        if left <= 0:
            break
    return _LAST
