"""Records as JSON lines in a file that several processes may share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache

from ..errors import ConfigError
from ..fork import on_fork_in_child
from .records import RECORDS_LOST, RecordsLost, Sink, TransitionRecord

ENVIRONMENT = "MILVUS_LIFECYCLE_AUDIT"
# Built once: json.dumps with separators builds an encoder for each line.
_encode = json.JSONEncoder(separators=(",", ":")).encode
# Windows would write "\r\n" otherwise. Nowhere do children inherit the file: Python sees to that.
_BINARY: int = getattr(os, "O_BINARY", 0)


@cache
def _quick() -> Callable[[TransitionRecord], bytes] | None:
    """What encodes a record in a fifth of the time, if it is installed: msgspec by the extra
    "audit", orjson by pymilvus."""
    with suppress(ImportError):
        from msgspec.json import Encoder

        return Encoder().encode
    with suppress(ImportError):
        from orjson import dumps

        return dumps
    return None


def encode_record(record: TransitionRecord) -> bytes:
    """A record as JSON."""
    quick = _quick()
    if quick is not None:
        # Half a character: the standard library escapes it.
        with suppress(UnicodeEncodeError, TypeError):
            return quick(record)
    return _encode(record.as_dict()).encode()


def audit_path(audit: object) -> str | None:
    """The path that ``install(audit=...)`` and the environment ask for. Raises ConfigError."""
    chosen = os.environ.get(ENVIRONMENT) or None if audit is None else audit
    if chosen is None:
        return None
    if not isinstance(chosen, (str, os.PathLike)) or not os.fspath(chosen):
        raise ConfigError(
            f"audit must be a path or None, not {type(chosen).__name__}", field="audit"
        )
    path = os.path.abspath(os.fspath(chosen))
    folder = os.path.dirname(path)
    if not os.path.isdir(folder) or os.path.isdir(path):
        raise ConfigError(f"audit={path!r} is not a file path in an existing folder", field="audit")
    return path


class JsonLines(Sink):
    """Appends one line per record. Lines of several processes do not mix: O_APPEND, one write.

    A rotated or removed file is opened anew. A full disk costs records, never calls: once
    writing works again, a ``connection.records_lost`` line says how many. Only its reader's thread
    touches the file.
    """

    def __init__(self, path: str) -> None:
        self._fd = -1
        self._opened: os.stat_result  # of the file behind ``_fd``
        self.path = path
        self.lost = 0
        self._torn = False
        self._ended = False
        _quick()  # imported here, not on a reader's thread
        on_fork_in_child(self)

    def write(self, record: TransitionRecord, level: int) -> None:
        """Append the record. Never raises: what could not be written is counted."""
        self._put(encode_record(record) + b"\n")

    def note_lost(self, count: int) -> None:
        """Say so in the file, at this place in the order, or before the next record."""
        self.lost += count
        self._put(b"")

    def _put(self, line: bytes) -> None:
        try:
            self._reopen_if_moved()
            if self.lost:
                now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
                record = RecordsLost(RECORDS_LOST, now, None, self.lost, os.getpid())
                self._append(_encode(asdict(record)).encode() + b"\n")
                self.lost = 0
            if line:
                self._append(line)
        except OSError:
            self.lost += bool(line)
            self._close()
        if self._ended:
            self._close()

    def end(self) -> None:
        """Close the file for good: a record that comes late does not leave it open again."""
        self._ended = True
        self._close()

    def _append(self, line: bytes) -> None:
        # A write that the disk cut short must not swallow the next line.
        data = b"\n" + line if self._torn else line
        written = os.write(self._fd, data)
        if written == len(data):
            self._torn = False
            return
        if written > 0:
            self._torn = not self._blank(written)
        raise OSError("short write")

    def _blank(self, written: int) -> bool:
        """Make an empty line of what the disk has cut short. Writing over it takes no room."""
        end = os.lseek(self._fd, 0, os.SEEK_CUR)  # of what this process wrote, whoever came after
        try:
            # Not through the file's own descriptor: what is written there is appended.
            fd = os.open(self.path, os.O_WRONLY | _BINARY)
        except OSError:
            return False
        try:
            if not os.path.samestat(os.fstat(fd), self._opened):
                return False
            os.lseek(fd, end - written, os.SEEK_SET)
            return os.write(fd, b" " * (written - 1) + b"\n") == written
        except OSError:
            return False
        finally:
            os.close(fd)

    def _reopen_if_moved(self) -> None:
        if self._fd >= 0:
            try:
                if os.path.samestat(os.stat(self.path), self._opened):
                    return
            except FileNotFoundError:
                pass
            self._close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | _BINARY
        self._fd = os.open(self.path, flags, 0o640)
        self._opened = os.fstat(self._fd)

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def fork_child(self) -> None:
        """In the child: what the parent lost is its own."""
        self.lost = 0

    def __del__(self) -> None:
        self._close()
