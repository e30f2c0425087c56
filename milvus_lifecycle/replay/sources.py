"""Which files to read, and in which order: globs, doubles, rotated logs, ranges for workers."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from .decoding import decode_or_explain
from .lines import STDIN, Batch, LineReader, Span, open_log, why
from .problems import Kind, Problem

_FIRST = datetime.min.replace(tzinfo=timezone.utc)
_LAST = datetime.max.replace(tzinfo=timezone.utc)
#: Lines to look at for a file's first moment before it is put at the end.
_PEEK_LINES = 100
#: Bytes of a plain file that one worker reads at a time (at most).
_PIECE = 512 * 1024 * 1024
#: ... and at least: below, starting the worker takes longer.
_SMALLEST = 1024 * 1024


@dataclass(frozen=True)
class Piece:
    """What is read in one go: a whole file, or a line-aligned range of a plain one."""

    path: str
    span: Span | None = None
    #: False for standard input and pipes, which no other process can open
    regular: bool = True

    @property
    def continues(self) -> bool:
        """A later range of the file that the piece before it began."""
        return self.span is not None and self.span.start > 0


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


def plan_pieces(paths: Sequence[str], jobs: int, smallest: int = _SMALLEST) -> list[Piece]:
    """Cut plain files into line-aligned ranges for ``jobs`` workers; other files stay whole."""
    pieces: list[Piece] = []
    total = sum(os.path.getsize(path) for path in paths if os.path.isfile(path))
    target = max(smallest, min(_PIECE, total // (jobs * 4) + 1))
    for path in paths:
        if jobs < 2 or not os.path.isfile(path) or os.path.getsize(path) < 2 * target:
            pieces.append(Piece(path, regular=os.path.isfile(path)))
        else:
            pieces.extend(_cut(path, target))
    return pieces


def _cut(path: str, target: int) -> list[Piece]:
    size = os.path.getsize(path)
    cuts = [0]
    with open(path, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            return [Piece(path)]
        while cuts[-1] + target < size:
            file.seek(cuts[-1] + target)
            while True:
                line = file.readline(target)
                if not line or line.endswith(b"\n"):
                    break
            if file.tell() >= size:
                break
            cuts.append(file.tell())
    # The last range has no end: a log that still grows is read up to where it is by then.
    ends: list[int | None] = [*cuts[1:], None]
    return [Piece(path, Span(start, end)) for start, end in zip(cuts, ends, strict=True)]
