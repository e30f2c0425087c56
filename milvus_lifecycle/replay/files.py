"""Logs from their names to records: files in order, their lines, and what each line says.

    names --find_sources--> files --LineReader--> numbered lines --decode--> records
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
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Iterates over some lines at a time: (the number of the first, lines without newlines).

    Of a plain file it reads the bytes from ``start`` to ``end`` (None: to where it ends). ``tell``
    hears of what is no line or no record; damage of the file itself ends the iteration.
    """

    def __init__(
        self,
        path: str,
        tell: Callable[[Problem], object] = lambda problem: None,
        start: int = 0,
        end: int | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self.path = path
        #: lines so far
        self.lines = 0
        #: did reading stop early?
        self.failed = False
        self._tell = tell
        self._start, self._end = start, end
        self._on_progress = on_progress
        self._complete = True

    def __iter__(self) -> Iterator[tuple[int, list[bytes]]]:
        try:
            raw = open_log(self.path)
        except OSError as error:
            self.failed = True
            what = f"cannot be opened: {why(error)}"
            self._tell(Problem(Kind.UNREADABLE, self.path, 0, what))
            return
        try:
            yield from self._split(self._chunks(raw))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self._stop(Kind.CUT_FILE, f"the compressed file is damaged: {error}")
        except OSError as error:
            self._stop(Kind.UNREADABLE, f"cannot be read: {why(error)}")
        finally:
            if self.path != STDIN:
                raw.close()

    def _stop(self, kind: Kind, what: str) -> None:
        self.failed = True
        what += "; nothing after this place was read"
        self._tell(Problem(kind, self.path, self.lines + 1, what))

    def _chunks(self, raw: BufferedReader) -> Iterator[bytes]:
        start, end = self._start, self._end
        read: Callable[[int], bytes] = raw.read
        if start:
            raw.seek(start)
        elif raw.peek(len(_GZIP)).startswith(_GZIP):
            # read1: of a damaged file, what came before the damage is not lost.
            read = gzip.GzipFile(fileobj=raw).read1
        elif raw.peek(len(_BOM)).startswith(_BOM):
            raw.read(len(_BOM))
        on_progress = self._on_progress if raw.seekable() else None
        while chunk := read(CHUNK if end is None else min(CHUNK, end - raw.tell())):
            if on_progress is not None:
                on_progress(raw.tell() - start)
                start = raw.tell()
            yield chunk

    def _split(self, chunks: Iterator[bytes]) -> Iterator[tuple[int, list[bytes]]]:
        pending = b""
        skipped = 0  # bytes of a line that is too long
        for chunk in chunks:
            lines = (pending + chunk).split(b"\n")
            pending = lines.pop()
            if lines and (skipped or len(lines[0]) > MAX_LINE):
                self._skip(skipped + len(lines.pop(0)))
                skipped = 0
            if lines:
                first = self.lines + 1
                self.lines += len(lines)
                yield first, lines
            if skipped or len(pending) > MAX_LINE:
                skipped += len(pending)
                pending = b""
        if skipped:
            self._skip(skipped)
        elif pending:
            self.lines += 1
            self._complete = False
            yield self.lines, [pending]

    def _skip(self, size: int) -> None:
        self.lines += 1
        what = f"a line of {size:,} bytes is no audit record (limit {MAX_LINE:,}): skipped"
        self._tell(Problem(Kind.LONG_LINE, self.path, self.lines, what))

    def records(self) -> Iterator[tuple[int, Record]]:
        """All sound records of the log, with the numbers of their lines."""
        for first, lines in self:
            for number, line in enumerate(lines, first):
                try:
                    record = decode(line)
                except (ValueError, RecursionError):
                    records, findings = decode_or_explain(line, self._complete)
                    for kind, message in findings:
                        self._tell(Problem(kind, self.path, number, message))
                    yield from ((number, record) for record in records)
                else:
                    yield number, record


# -- records ----------------------------------------------------------------------------------

Finding = tuple[Kind, str]
_Found = tuple[list[Record], Finding | None]


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
    return records, findings if problem is None else [*findings, problem]


def _examine(line: bytes, complete: bool) -> _Found:
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


def _convert(values: dict[str, object]) -> _Found:
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


def _salvage(text: str, error: JSONDecodeError, complete: bool) -> _Found:
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


def read_records(
    sources: Sources, problems: Problems, on_progress: Progress | None = None
) -> Iterator[Record]:
    """The records of some logs, legal or not. What cannot be read goes to ``problems``."""
    for path in sources.paths:
        for _, record in LineReader(path, problems.add, on_progress=on_progress).records():
            yield record


# -- names ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sources:
    """The files to read, oldest first, and their bytes in all."""

    paths: tuple[str, ...]
    size: int


def find_sources(names: Sequence[str], problems: Problems) -> Sources:
    """Resolve file names, globs and ``-``; what is not there goes to ``problems``.

    A file that was named twice is read once. Regular files come in the order of their first
    record's time, because a connection's records continue from a rotated log to the next one;
    pipes and standard input follow in the order given.
    """
    found: dict[object, str] = {}  # by inode
    for path in _expand(names, problems):
        try:
            status = None if path == STDIN else os.stat(path)
            if status is not None and (os.path.isfile(path) or os.path.isdir(path)):
                open_log(path).close()
            found.setdefault(status and (status.st_dev, status.st_ino), path)
        except OSError as error:
            problems.add(Problem(Kind.UNREADABLE, path, 0, f"cannot be opened: {why(error)}"))
    files = [path for path in found.values() if path != STDIN and os.path.isfile(path)]
    streams = [path for path in found.values() if path not in files]
    if len(files) > 1:
        files.sort(key=_first_moment)
    return Sources((*files, *streams), sum(map(os.path.getsize, files)))


def name_files(files: Sequence[str]) -> str:
    """The logs in a few words."""
    shown = ", ".join(files[:3])
    return shown if len(files) <= 3 else f"{shown} and {len(files) - 3} more"


def _expand(names: Iterable[str], problems: Problems) -> Iterator[str]:
    """File names; a pattern that matches nothing becomes a problem."""
    for name in names:
        pattern = glob.has_magic(name) and not os.path.exists(name)
        found = sorted(glob.glob(name, recursive=True)) if pattern else [name]
        if not found:
            problems.add(Problem(Kind.UNREADABLE, name, 0, "no file matches this pattern"))
        yield from found


def _first_moment(path: str) -> datetime:
    """When the first record of a file was written; a file without records comes last."""
    for line in islice((line for _, lines in LineReader(path) for line in lines), _PEEK_LINES):
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
        # One byte earlier, and the first line left out: the second one is whole.
        reader = LineReader(path, start=max(0, start - 1), end=end if plain else None)
        lines = (line for _, some in reader for line in some)
        matches = map(match, islice(lines, int(start > 0), None))
        found = deque((one for one in matches if one is not None), maxlen=wanted)
        if start == 0 or len(found) >= wanted:
            return list(found)
        window *= _GROWTH


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
        self._file, self._pending = None, b""

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
