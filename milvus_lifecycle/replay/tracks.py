"""What is remembered of each connection while a log is read, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Generic, TypeVar

from ..table import State
from .records import Created, Transition

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

K = TypeVar("K")
V = TypeVar("V")

#: Entries in one of the two generations. With half a kilobyte each, 100 MB at most.
CAPACITY = 100_000


class Recent(Generic[K, V]):
    """Entries in two generations of at most ``capacity`` each (None: unbounded).

    When the young generation is full, the old one is forgotten and the young one becomes old.
    So an entry lives at least until ``capacity`` others were touched after it. ``forget`` is
    called with each value that is forgotten. ``young`` is public for fast paths; whoever misses
    there asks ``find``.
    """

    def __init__(
        self, capacity: int | None = CAPACITY, forget: Callable[[V], object] | None = None
    ) -> None:
        self.young: dict[K, V] = {}
        self.forgotten = 0
        self._old: dict[K, V] = {}
        self._capacity = capacity
        self._forget = forget

    def find(self, key: K) -> V | None:
        """The entry of ``key``, made young again; None if it is unknown or forgotten."""
        value = self.young.get(key)
        if value is None:
            value = self._old.pop(key, None)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Remember ``value``."""
        full = self._capacity is not None and len(self.young) >= self._capacity
        if full and key not in self.young:
            self.forgotten += len(self._old)
            gone, self._old, self.young = self._old, self.young, {}
            if self._forget is not None:
                for lost in gone.values():
                    self._forget(lost)
        self.young[key] = value

    def drop(self, key: K) -> None:
        """Nothing more will be heard of ``key``."""
        if self.young.pop(key, None) is None:
            self._old.pop(key, None)

    def values(self) -> Iterator[V]:
        """All entries that are remembered, the older generation first."""
        yield from self._old.values()
        yield from self.young.values()
