"""What is remembered of each connection while a log is read: its last record, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime

from ..table import State
from .records import Created, Transition

#: Connections in one generation of tracks (about 450 bytes each).
TRACKS = 100_000

#: One string object for each state, however many records name it.
STATES = {str(state): str(state) for state in State}

#: Who writes a connection's records: pid, flavour and strategy. They never change.
Identity = tuple[int | None, str, str]


def identity_of(record: Transition | Created) -> Identity:
    """The writer of ``record``."""
    return record.pid, record.flavour, record.strategy


class Track:
    """What the last record of one connection said."""

    __slots__ = (
        "connection_id",
        "file",
        "flavour",
        "generation",
        "line",
        "pid",
        "seq",
        "state",
        "strategy",
        "topology",
        "ts",
    )

    def __init__(self, record: Transition | Created, file: str, line: int) -> None:
        self.connection_id = record.connection_id
        self.pid = record.pid
        self.flavour = sys.intern(record.flavour)
        self.strategy = sys.intern(record.strategy)
        self.seq = record.seq or 0
        self.state = STATES.get(record.dest, record.dest)
        self.generation = record.generation
        self.topology = record.topology_version
        self.ts: datetime = record.ts
        self.file = file
        self.line = line

    @property
    def identity(self) -> Identity:
        """The connection's writer."""
        return self.pid, self.flavour, self.strategy

    def move(self, record: Transition, file: str, line: int) -> None:
        """Stand where ``record`` left the connection."""
        self.seq = record.seq
        self.state = STATES.get(record.dest, record.dest)
        self.generation = record.generation
        if record.topology_version is not None:
            self.topology = record.topology_version
        self.ts = record.ts
        self.file = file
        self.line = line


#: A connection's id; with the writer's identity for the second and later users of one id.
Key = str | tuple[str, Identity]


class Tracks:
    """Tracks by key, in two generations of at most ``TRACKS``: who is not heard of is forgotten.

    ``young`` is public for the fast path; whoever misses there asks ``find``.
    """

    def __init__(self, *, bounded: bool) -> None:
        self.young: dict[Key, Track] = {}
        self.forgotten = 0
        self._old: dict[Key, Track] = {}
        self._bounded = bounded

    def find(self, key: Key) -> Track | None:
        """The track of ``key``, made young again; None if it is unknown or forgotten."""
        track = self.young.get(key)
        if track is None:
            track = self._old.pop(key, None)
            if track is not None:
                self.put(key, track)
        return track

    def put(self, key: Key, track: Track) -> None:
        """Remember ``track``; if the young generation is full, the older one is forgotten."""
        if self._bounded and len(self.young) >= TRACKS and key not in self.young:
            self.forgotten += len(self._old)
            self._old, self.young = self.young, {}
        self.young[key] = track

    def __iter__(self) -> Iterator[Track]:
        yield from self._old.values()
        yield from self.young.values()
