"""A mapping in bounded memory: what was not asked for while many others were is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

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
