"""Logs from their names to records: files in order, their lines, and what each line says.

    names --find_sources--> files --LineReader--> numbered lines --records_in--> records
                            file  --last_matches, Follower--> its end, and what is added

A file is plain or gzip, or standard input. Memory holds one chunk and one unfinished line,
whatever the log's size. Nothing is raised for bad input: it is a finding.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
import stat
import sys
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from io import BufferedReader
from itertools import islice
from json import JSONDecodeError
from typing import TypeVar, cast

from ..audit.records import EVENTS
from .findings import Kind, Problem, Problems, clean
from .records import Record, convert, decode

T = TypeVar("T")

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
#: Lines to look at for a file's first moment before it is put at the end.
_PEEK_LINES = 100
#: ``last_matches`` looks at so many bytes, and at so many times more where that is not enough.
_WINDOW, _GROWTH = 256 * 1024, 8


# -- lines ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """A piece of a plain file: bytes ``start`` up to ``end`` (None: to its end)."""

    start: int = 0
    end: int | None = None


WHOLE = Span()


@dataclass(frozen=True)
class Batch:
    """Consecutive lines without their newlines. ``first`` is the number of the first one.

    ``complete`` is False for the last line of a file that does not end in a newline.
    """

    first: int
    lines: list[bytes]
    complete: bool = True


def open_log(path: str) -> BufferedReader:
    """Open ``path`` for reading bytes; OSError with a reason in plain words if that fails."""
    if path == STDIN:
        return cast(BufferedReader, sys.stdin.buffer)
    if os.path.isdir(path):
        raise IsADirectoryError(f"is a directory; name the files in it, for example {path}/*.jsonl")
    return open(path, "rb")


def is_plain(path: str) -> bool:
    """A file in which one can begin anywhere: not a stream, not compressed."""
    if path == STDIN or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(_GZIP)) != _GZIP


def why(error: OSError) -> str:
    """The reason of a failed open, without the path in it a second time."""
    return error.strerror or str(error)


class LineReader:
    """Iterates over ``Batch`` and ``Problem``: the lines, and what kept some from being lines.

    ``lines`` is the number of lines seen so far, ``failed`` tells whether reading stopped
    early. Damage of the file itself (a cut gzip, a read error) ends the iteration with a
    Problem; nothing is raised.
    """

    def __init__(self, path: str, span: Span = WHOLE, on_progress: Progress | None = None) -> None:
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

    def _read(self, raw: BufferedReader) -> Iterator[Batch | Problem]:
        start, end = self._span.start, self._span.end
        read: Callable[[int], bytes] = raw.read
        if start:
            raw.seek(start)
        elif raw.peek(len(_GZIP)).startswith(_GZIP):
            # read1: of a damaged file, what came before the damage is not lost.
            read = gzip.GzipFile(fileobj=raw).read1
        elif raw.peek(len(_BOM)).startswith(_BOM):
            raw.read(len(_BOM))
        counts = self._on_progress is not None and raw.seekable()
        pending = b""
        while True:
            chunk = read(CHUNK if end is None else min(CHUNK, end - raw.tell()))
            if counts and self._on_progress is not None:
                self._on_progress(raw.tell() - start)
                start = raw.tell()
            if not chunk:
                break
            pending = yield from self._split(pending, chunk)
        if self._skipping:
            yield self._long_line(0)
        elif pending:
            self.lines += 1
            yield Batch(self.lines, [pending], complete=False)

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
        what = f"a line of {total:,} bytes is no audit record (limit {MAX_LINE:,}): skipped"
        return Problem(Kind.LONG_LINE, self.path, self.lines, what)


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
        value = json.loads(text)
    except UnicodeDecodeError as error:
        return [], (Kind.BROKEN_LINE, f"not UTF-8 (byte {error.start + 1} of the line)")
    except JSONDecodeError as error:
        return _salvage(text, error, complete)
    except RecursionError:
        return [], (Kind.FOREIGN_LINE, "JSON nested too deeply to be an audit record")
    if not isinstance(value, dict):
        return [], (Kind.FOREIGN_LINE, "not an audit record: JSON, but no object")
    return _convert(value)


def _convert(values: dict[str, object]) -> tuple[list[Record], Finding | None]:
    names = (values.get(key) for key in ("event", *_ALIASES))
    event = next((name for name in names if name in EVENTS), None)
    if event is None:
        found = values.get("event")
        what = "JSON without an event name" if found is None else f"event {clean(str(found))!r}"
        return [], (Kind.FOREIGN_LINE, f"not an audit record: {what}")
    try:
        return [convert({**values, "event": event})], None
    except ValueError as error:
        return [], (Kind.BAD_RECORD, f"a {event} record with a fault: {error}")


def _salvage(
    text: str, error: JSONDecodeError, complete: bool
) -> tuple[list[Record], Finding | None]:
    """Not JSON as a whole: two records on one line, or a cut record with the next one behind it."""
    if not text.lstrip().startswith("{"):
        return [], (Kind.FOREIGN_LINE, f"not JSON: {clean(text)!r}")
    records: list[Record] = []
    whole, end = True, 0
    for start in islice(re.finditer(r'\{"', text), _TRIES):
        if start.start() < end:
            continue
        try:
            value, stop = json.JSONDecoder().raw_decode(text, start.start())
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
        for _, record in records_in(LineReader(path, on_progress=on_progress), tell):
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
    files: list[str] = []
    streams: list[str] = []
    seen: set[object] = set()
    size = 0
    for path in _expand(names, problems):
        try:
            status = None if path == STDIN else os.stat(path)
            identity = status and (status.st_dev, status.st_ino)
            if identity in seen:
                continue
            seen.add(identity)
            if status is None or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                streams.append(path)
                continue
            open_log(path).close()
        except OSError as error:
            problems.append(Problem(Kind.UNREADABLE, path, 0, f"cannot be opened: {why(error)}"))
            continue
        files.append(path)
        size += status.st_size
    if len(files) > 1:
        files.sort(key=_first_moment)
    return Sources((*files, *streams), tuple(problems), size)


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
    batches = (batch.lines for batch in LineReader(path) if isinstance(batch, Batch))
    for line in islice((line for lines in batches for line in lines), _PEEK_LINES):
        records, _ = decode_or_explain(line)
        if records:
            return records[0].ts
    return datetime.max.replace(tzinfo=timezone.utc)


# -- the end of a log -------------------------------------------------------------------------


def last_matches(
    path: str, wanted: int, match: Callable[[bytes], T | None], end: int | None = None
) -> list[T]:
    """What ``match`` makes of the last ``wanted`` lines for which it is not None.

    Of a large plain file only the end is read, in windows that grow until enough was found;
    what comes behind byte ``end`` is left out. Raises OSError if the file cannot be opened.
    """
    if path != STDIN:
        open_log(path).close()
    plain = is_plain(path)
    size = min(os.path.getsize(path), end or sys.maxsize) if plain else 0
    window = _WINDOW
    while True:
        start = max(0, size - window)
        # One byte earlier: then the first line is whole if and only if that byte is a newline.
        reader = LineReader(path, Span(max(0, start - 1), end if plain else None))
        found = deque(_matches(reader, start > 0, match), maxlen=wanted)
        if start == 0 or len(found) >= wanted:
            return list(found)
        window *= _GROWTH


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
        self._file: BufferedReader | None = None
        self._pending = b""

    def seek_end(self) -> int:
        """Start behind the last complete line that is there by now; returns where that is."""
        file = self._opened()
        if file is None:
            return 0
        end = file.seek(0, os.SEEK_END)
        start = file.seek(max(0, end - MAX_LINE))
        return file.seek(start + file.read(end - start).rfind(b"\n") + 1)

    def poll(self) -> list[bytes]:
        """The complete lines that were added since the last call."""
        lines = self._read()
        if self._moved():
            lines += self._read()  # what was written between the last look and the rotation
            if self._pending:
                lines.append(self._pending)
            self.close()
            lines += self._read()
        return lines

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._pending = b""

    def _opened(self) -> BufferedReader | None:
        if self._file is None:
            try:
                self._file = open_log(self.path)
            except FileNotFoundError:
                return None
        return self._file

    def _moved(self) -> bool:
        """Is there another file of that name by now? A missing one may yet come back."""
        try:
            return self._file is not None and not os.path.samestat(
                os.stat(self.path), os.fstat(self._file.fileno())
            )
        except FileNotFoundError:
            return False

    def _read(self) -> list[bytes]:
        file, lines = self._opened(), list[bytes]()
        if file is None:
            return lines
        if os.fstat(file.fileno()).st_size < file.tell():
            file.seek(0)
            self._pending = b""
        while chunk := file.read(CHUNK):
            *whole, rest = (self._pending + chunk).split(b"\n")
            lines += whole
            self._pending = rest if len(rest) <= MAX_LINE else b""
        return lines
