"""A flight: the one probe or recovery that a connection may have under way, and its outage.

Flights are written to only under their connection's mutex. Waiters join with a wake-up call
and leave on their own; the outcome is set once, and then every call is made exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..errors import FailureSummary
    from ..table import Trigger
    from .wire import Wire


#: Whoever wakes so much later (seconds) than he wanted was not run meanwhile: the process was
#: stopped or the machine suspended, and its budgets ran out without a try.
STOPPED = 1.0


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
    FORKED = "forked"


class Outage:
    """What outlives a flight while a connection is down or flapping.

    It begins with the failure that makes a recovery mandatory and ends when a user's RPC has
    succeeded on the current generation: a connection that validates but fails every RPC is
    still in the same outage, with the same backoff, budget, channel count and WARNING.
    """

    __slots__ = ("attempts", "began", "budget_from", "channels", "flaps", "generation", "noticed")

    def __init__(self, began: float, generation: int) -> None:
        self.began = began
        #: start of the budget; a new one begins with the flight after a give_up
        self.budget_from: float | None = began
        #: failed attempts
        self.attempts = 0
        #: channels opened
        self.channels = 0
        #: recoveries that landed and then failed before any user's RPC succeeded
        self.flaps = 0
        #: generation that failed when the outage began
        self.generation = generation
        #: was a step of it marked for people's notice? One is enough.
        self.noticed = False


class Flight:
    """One probe or recovery. Times are ``time.monotonic()`` seconds."""

    __slots__ = (
        "attempts",
        "began",
        "candidate",
        "cause",
        "deadline",
        "failure",
        "kind",
        "launched",
        "leader",
        "mandatory",
        "not_before",
        "nudge",
        "number",
        "outcome",
        "patience",
        "plan",
        "refresh",
        "standby",
        "thawed",
        "waiters",
    )

    def __init__(
        self, number: int, kind: FlightKind, cause: Trigger, began: float, deadline: float
    ) -> None:
        self.number = number
        self.kind = kind
        self.cause = cause
        self.began = began
        #: when the budget is spent (recovery) or the I/O times out (probe)
        self.deadline = deadline
        #: how long the most patient waiter waits (first connect)
        self.patience = began
        #: earliest start of the next attempt (backoff while flapping)
        self.not_before = began
        #: when its driver was asked, last, for somebody who flies it
        self.launched = float("-inf")
        #: has its time been extended, because it ran out while the process did not run?
        self.thawed = False
        #: the thread or task that flies it
        self.leader: object = None
        #: wakes the leader who waits for that
        self.nudge: Callable[[], None] | None = None
        #: False while the current channel is healthy (reroute, recycle)
        self.mandatory = True
        self.attempts = 0
        self.candidate: Wire | None = None
        #: the channel that failed, while it may turn out to be good
        self.standby: Wire | None = None
        #: open a fresh candidate for the next attempt: this one got no answer at all
        self.refresh = False
        #: what the strategy asked for when the state was entered (an Effect)
        self.plan: object = None
        self.failure: FailureSummary | None = None
        self.outcome: Outcome | None = None
        self.waiters: list[Callable[[], None]] = []

    @property
    def limit(self) -> float:
        """When it is to end: a first connect, for the most patient who waits."""
        patient = self.kind is FlightKind.CONNECT and self.patience > self.began
        return self.patience if patient else self.deadline

    def thaw(self, now: float, extra: float) -> bool:
        """If its time ran out while the process was not run: ``extra`` seconds, once.

        True if it has been given that, now or before.
        """
        if not self.thawed and now > self.limit + STOPPED:
            self.thawed = True
            self.deadline = self.patience = now + extra
        return self.thawed
