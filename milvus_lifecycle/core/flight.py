"""A flight: the one probe or recovery that a connection may have under way, and its outage.

Flights are written to only under their connection's mutex. Waiters join with a wake-up call
and leave on their own; the outcome is set once, and then every call is made exactly once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from ..errors import Failure, FailureSummary
from .wire import Wire

#: Whoever wakes so much later (seconds) than he wanted was not run meanwhile: the process was
#: stopped or the machine suspended, and its budgets ran out without a try.
STOPPED = 1.0
#: A first attempt of an outage lasts this long (seconds) before it counts as failed; later ones
#: as long as the outage is old, up to ``connect_timeout``. The channel itself keeps connecting.
FIRST_SLICE = 1.0
#: Failures of a first connect that are waited out, if anybody waits.
HOPEFUL = (Failure.TRANSIENT, Failure.DEADLINE, Failure.NOT_UP)
#: What gRPC says, besides UNAVAILABLE, of a certificate that does not verify and of a server that
#: does not speak TLS. A server that is merely away says nothing of the kind.
_TLS_REFUSED = re.compile("OPENSSL_internal|Verification Check failed|CERTIFICATE_VERIFY_FAILED")


def may_pass(failure: FailureSummary) -> bool:
    """Is a first connect that ended so worth another try, in a while?"""
    return failure.kind in HOPEFUL and not _TLS_REFUSED.search(failure.text)


class FlightKind(Enum):
    """CONNECT and PROBE belong to PROBING, RECOVERY to RECOVERING."""

    CONNECT = "connect"
    PROBE = "probe"
    RECOVERY = "recovery"


class Outcome(Enum):
    """How a flight ended."""

    LANDED = "landed"
    #: another flight took over (a probe that failed, a failure during a probe): join that one
    SUPERSEDED = "superseded"
    #: the first connect failed; the connection is closed
    FAILED = "failed"
    GAVE_UP = "gave up"
    ABANDONED = "abandoned"
    CLOSED = "closed"


@dataclass(slots=True, eq=False, repr=False)
class Outage:
    """What outlives a flight while a connection is down or flapping.

    It begins with the failure that makes a recovery mandatory and ends when a user's RPC has
    succeeded on the current generation: a connection that validates but fails every RPC is
    still in the same outage, with the same backoff, budget, channel count and notice.
    """

    began: float
    #: generation that failed when the outage began
    generation: int
    #: start of the budget; a new one begins with the flight after a give_up
    budget_from: float | None = field(init=False)
    #: failed attempts
    attempts: int = 0
    #: channels opened
    channels: int = 0
    #: recoveries that landed and then failed before any user's RPC succeeded
    flaps: int = 0
    #: has a recovery of it given up, and nothing answered since?
    given_up: bool = False
    #: recoveries of it that landed
    landings: int = 0
    #: calls that waited for its end, and calls that it made fail
    waited: int = 0
    failed: int = 0
    #: what it was (``so_far``) when people were told that all is well; it may outlast that
    told: tuple[int, ...] = (0, 0, 0, 0)

    def __post_init__(self) -> None:
        self.budget_from = self.began

    def so_far(self) -> tuple[int, ...]:
        """Its tries, the calls that waited, those that failed, and its flaps."""
        return self.attempts + self.landings, self.waited, self.failed, self.flaps


@dataclass(slots=True, eq=False, repr=False)
class Flight:
    """One probe or recovery. Times are ``time.monotonic()`` seconds."""

    number: int
    kind: FlightKind
    began: float
    #: when the budget is spent (recovery) or the I/O times out (probe)
    deadline: float
    #: how long the most patient waiter waits (first connect)
    patience: float = field(init=False)
    #: until when a first connect waits for a server that refuses it; 0: not at all
    hope: float = 0.0
    #: earliest start of the next attempt (backoff while flapping)
    not_before: float = field(init=False)
    #: when its driver was asked, last, for somebody who flies it
    launched: float | None = None
    #: is there a timer that launches it, once it may begin?
    put_off: bool = False
    #: has its time been extended, because it ran out while the process did not run?
    thawed: bool = False
    #: the thread or task that flies it
    leader: object = None
    #: wakes the leader who waits for that
    nudge: Callable[[], None] | None = None
    #: False while the current channel is healthy (reroute, recycle)
    mandatory: bool = True
    attempts: int = 0
    candidate: Wire | None = None
    #: the channel that failed, while it may turn out to be good
    standby: Wire | None = None
    #: open a fresh candidate for the next attempt: this one got no answer at all
    refresh: bool = False
    #: what the strategy asked for when the state was entered (an Effect)
    plan: object = None
    failure: FailureSummary | None = None
    outcome: Outcome | None = None
    waiters: list[Callable[[], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patience = self.not_before = self.began

    @property
    def limit(self) -> float:
        """When it is to end: a first connect, for the most patient who waits."""
        patient = self.kind is FlightKind.CONNECT and self.patience > self.began
        return self.patience if patient else self.deadline

    @property
    def waiting(self) -> int:
        """How many calls wait with it; its leader, who may be pausing, is none of them."""
        return sum(wake is not self.nudge for wake in self.waiters)

    def lost(self, now: float) -> bool:
        """Does nobody lead it, nor is about to? Whoever was to do it was perhaps interrupted."""
        asked = self.launched
        return self.leader is None and (asked is None or now > asked + STOPPED)

    def thaw(self, now: float, extra: float) -> bool:
        """If its time ran out while the process was not run: ``extra`` seconds, once.

        True if it has been given that, now or before.
        """
        if not self.thawed and now > self.limit + STOPPED:
            self.thawed = True
            self.deadline = self.patience = now + extra
        return self.thawed
