"""What is searched: who acts, what they may do, and how much may go wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from milvus_lifecycle import LifecyclePolicy
from milvus_lifecycle.core.facts import Located
from milvus_lifecycle.core.strategies import ConnectionStrategy, Locator
from milvus_lifecycle.endpoints.choose import default_strategy

#: Few different durations, so that few different moments exist. Two attempts fit the budget.
POLICY: dict[str, Any] = {
    "idle_threshold": None,
    "probe_timeout": 1.0,
    "connect_timeout": 1.0,
    "recovery_budget": 2.0,
    "backoff_initial": 1.0,
    "backoff_max": 1.0,
    "backoff_ceiling": 1.0,
    "backoff_patience": 100.0,
    "backoff_jitter": 0.0,
    "linger": None,
    "drain_timeout": None,
    "topology_refresh": None,
}


@dataclass(frozen=True)
class Plan:
    """One actor: how often it acts, and what it may do each time.

    ``menu``: checkout, rpc (one RPC, as ``_async`` calls are), call (with the retry decorator),
    release, vanish (its client is collected), vanish_in_step (inside somebody's critical
    section), close (the handler's own close). ``timeout`` and ``limit`` (seconds): of a checkout
    and of an RPC.
    """

    moves: int = 3
    menu: tuple[str, ...] = ("checkout", "call", "release")
    timeout: float | None = None
    limit: float | None = None
    dedicated: bool = False
    #: holds an anonymous lease (``client=None``)
    anonymous: bool = False
    #: ... which it gives back when it is collected, as clients of users do
    finalizer: bool = False
    #: has checked out when the search begins
    ready: bool = False


@dataclass(frozen=True)
class Setup:
    """One search. Every run of it ends: ``faults`` bounds what may go wrong in it."""

    name: str
    actors: tuple[Plan, ...]
    #: what the closer may do, once: close_all, close (the handler's), fork, move (the target)
    closer: tuple[str, ...] = ()
    #: RPCs and I/O that fail, leaders that die, threads that do not start, waiters cancelled
    faults: int = 2
    #: which faults: unavailable, late, dead, nothread, cancelled, refused
    kinds: tuple[str, ...] = ("unavailable", "late")
    #: switch between critical sections too (threads), at most so often; None: never (asyncio)
    preemptions: int | None = None
    #: a flight or generation more than this is not looked at
    flights: int = 4
    policy: dict[str, Any] = field(default_factory=dict)
    strategy: str = "regular"
    #: times at which the clock stops though nothing is due (seconds)
    stops: tuple[float, ...] = ()
    #: the first channel has an RPC that runs on and on
    stays: bool = False
    #: nodes at which the search gives up
    ceiling: int = 200_000
    #: what is smaller where it is searched in every run of the tests, though the whole takes long
    daily: dict[str, Any] = field(default_factory=dict)

    def everyday(self) -> Setup:
        """The set-up as every run of the tests searches it."""
        return replace(self, daily={}, **self.daily)

    def lifecycle_policy(self) -> LifecyclePolicy:
        return LifecyclePolicy(**{**POLICY, **self.policy})


class Compass(ConnectionStrategy):
    """A strategy whose target moves. Its locator answers at once."""

    name = "compass"

    def __init__(self, config: Any, target: Callable[[], str]) -> None:
        super().__init__(config)
        self.target = target

    def target_changed(self, connection: Any, facts: Any) -> bool:
        return bool(connection.address != self.target())

    def locator(self, connection: Any) -> Locator:
        return Signpost(self.target)


class Keeper(Compass):
    """A compass that asks the channel that failed before it opens another one."""

    name = "keeper"
    keeps_current = True


class Signpost:
    """The locator of a compass."""

    def __init__(self, target: Callable[[], str]) -> None:
        self.target = target

    def locate(self, connection: Any, last_error: Any, timeout: float) -> Located:
        return Located(self.target())

    def release(self, connection: Any) -> None:
        """Nothing is held."""


def strategy(kind: str, target: Callable[[], str]) -> Callable[[Any], ConnectionStrategy]:
    """The factory of a set-up's strategies."""
    if kind == "regular":
        return default_strategy
    made = {"compass": Compass, "keeper": Keeper}[kind]
    return lambda config: made(config, target)
