"""Readiness: a server that listens again may still have to load what it served before.

Theory. Milvus answers a read of a collection that is not loaded with status 101, for whatever
reason it is not. After a restart Milvus itself loads what was loaded, and its GetLoadState says
LOADING from the first answer on; Milvus Lite never does, and says NOT_LOAD (measured, see
docs/decisions.md). So 101 is waited out if the collection was read before this channel was
bound, and as long as the server says LOADING. That is one ``Reload`` for each collection and
channel, shared by all calls; once it has ended, any other 101 is its caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from .wire import Binding

#: RPCs that only a loaded collection answers: search, hybrid_search, query, get, iterators.
READS = frozenset(
    f"/milvus.proto.milvus.MilvusService/{name}" for name in ("Search", "HybridSearch", "Query")
)
#: how many collections, and how many waits for one, are remembered
ANSWERED_LIMIT = 1000
RELOADS_LIMIT = 64

#: What happens to a wait, in words.
NEWS = {
    "loading": "the server is loading {} again: its calls wait",
    "loaded": "the server has loaded {} again",
    "not_loaded": "the server does not load {} again: somebody has to call load()",
    "overdue": "the server has not loaded {} again within recovery_budget",
    "interrupted": "the connection was lost while the server loaded {} again",
}

#: When a channel was bound: its opening (monotonic seconds) and the connection's generation (one
#: channel may be bound anew after an outage). Grows over the connections of one handler.
Epoch = tuple[float, int]


class LoadState(Enum):
    """What the server says of a collection; the values are Milvus's own."""

    NOT_EXIST = 0
    NOT_LOAD = 1
    LOADING = 2
    LOADED = 3


class Collection(NamedTuple):
    """What a read is about, in its caller's words: an alias counts as a name of its own."""

    database: str
    name: str
    partitions: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" of database {self.database!r}" if self.database else ""
        return f"collection {self.name!r}{where}"


@dataclass(slots=True)
class Reload:
    """The wait for one collection to be loaded again. Times are monotonic seconds."""

    collection: Collection
    began: float
    until: float
    asked_at: float = -math.inf
    #: how it ended (a key of NEWS), and when
    news: str = ""
    ended: float = math.inf
    _to_come: set[str] = field(default_factory=lambda: {"loading", "end"})

    @property
    def loading(self) -> bool:
        """Has the server said that it loads the collection?"""
        return "loading" not in self._to_come

    def first(self, what: str) -> bool:
        """True for the first of the calls that share this to say that "loading" or "end" came."""
        try:
            self._to_come.remove(what)  # atomic: no lock
        except KeyError:
            return False
        return True


@dataclass(slots=True)
class _Answered:
    epoch: Epoch
    #: when it was first answered in that epoch, and whether it had been in an earlier one
    since: float
    returned: bool


class Readiness:
    """What a handler's calls know of the collections that they read."""

    def __init__(self) -> None:
        self._answered: dict[tuple[str, str], _Answered] = {}
        self._reloads: dict[tuple[Epoch, Collection], Reload] = {}

    def answered(
        self, binding: Binding, metadata: Any, request: Any, clock: Callable[[], float]
    ) -> None:
        """A read was answered: the collection is loaded."""
        key = (_database(metadata), request.collection_name)
        known, epoch = self._answered.get(key), _epoch(binding)
        if known is None:
            if len(self._answered) < ANSWERED_LIMIT:
                self._answered[key] = _Answered(epoch, clock(), False)
        elif known.epoch < epoch:
            self._answered[key] = _Answered(epoch, clock(), True)

    def lost(self, binding: Binding, at: float, metadata: Any, request: Any) -> Collection | None:
        """``request``, sent ``at`` (monotonic seconds), was answered 101: what it may wait for.

        None if that is its caller's.
        """
        name = getattr(request, "collection_name", "")
        partitions = tuple(getattr(request, "partition_names", ()))
        collection, epoch = Collection(_database(metadata), name, partitions), _epoch(binding)
        reload = self._reloads.get((epoch, collection))
        if reload is not None:
            # Answers may overtake each other: whoever asked before the end belongs to the wait.
            return collection if at < reload.ended else None
        known = self._answered.get(collection[:2])
        if known is None or known.epoch > epoch:
            return None
        early = known.returned and at < known.since
        return collection if known.epoch < epoch or early else None

    def reload(self, binding: Binding, collection: Collection, now: float, budget: float) -> Reload:
        """The wait that an answer about ``collection`` belongs to; it may be over."""
        if len(self._reloads) >= RELOADS_LIMIT:
            self._reloads.clear()
        return self._reloads.setdefault(
            (_epoch(binding), collection), Reload(collection, now, now + budget)
        )


def _epoch(binding: Binding) -> Epoch:
    return binding.wire.opened_at, binding.generation


def _database(metadata: Any) -> str:
    for key, value in metadata or ():
        if key == "dbname":
            return str(value)
    return ""
