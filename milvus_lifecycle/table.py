"""The lifecycle of one pooled connection, as data: every state, every trigger, every cell.

Theory
------
A pooled connection is one machine with five states, and each state is a promise:

IDLE        Pooled. Nothing vouches for its channel right now: it is new, or nobody uses it,
            or its last recovery ran out (then it is also *suspect*).
ACTIVE      Its channel was validated and at least one client holds it. RPCs go through it
            without asking anybody.
PROBING     Exactly one probe is in flight. For a connection that never had a channel the
            probe is its first connect. Everybody who wants the connection joins the flight.
RECOVERING  Exactly one recovery is in flight: build a fresh channel, validate it, swap it
            in, retire the old one. A recovery is *mandatory* when the current channel
            failed, and *optional* when it began as reroute or recycle: then the current
            channel is healthy and goes on serving until the swap.
CLOSED      Final. No row leads out of it.

The state is the lock. Who moves a connection into PROBING or RECOVERING leads the flight;
who finds it there joins. A flight has a number, its outcome carries that number, and an
outcome of any other flight is ignored in every state: that is why close can win at once, why
a late probe cannot undo a recovery, and why no row needs to know what a thread is doing.

Generations answer the question "is this failure about the channel we use now?". Each swap
adds one. An RPC carries the generation that it started with, so a failure of an older
generation can be told from a fresh one however late it comes.

Rows are tried in the order in which they stand, and the first row whose conditions all hold
is taken. A condition is a name: ``strategy.x`` asks the connection's strategy (policy about
endpoints: may this error recover, has the target moved, is it old?), any other name asks the
connection itself (facts: is it held, is this the flight's outcome?). Actions are names too:
methods of its lifecycle that keep its books while the row is taken. Conditions and actions
are pure: they read and write memory and never wait.

A (trigger, state) pair that has no row is accounted for below: in ``IGNORED``, a legal no-op
with its reason, or in ``IMPOSSIBLE``, which raises. A test fails for a cell in none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any


class State(str, Enum):
    """The five states of a pooled connection."""

    IDLE = "IDLE"
    ACTIVE = "ACTIVE"
    PROBING = "PROBING"
    RECOVERING = "RECOVERING"
    CLOSED = "CLOSED"

    def __str__(self) -> str:
        return self.value


class Trigger(str, Enum):
    """Everything that can happen to a pooled connection."""

    ACQUIRE = "acquire"
    SERVED = "served"
    DOUBT = "doubt"
    PROBE_PASSED = "probe_passed"
    PROBE_FAILED = "probe_failed"
    FAIL = "fail"
    REROUTE = "reroute"
    RECYCLE = "recycle"
    RETRY = "retry"
    RECOVERED = "recovered"
    STAND_DOWN = "stand_down"
    GIVE_UP = "give_up"
    ABANDONED = "abandoned"
    RELEASE = "release"
    EXPIRE = "expire"
    FORKED = "forked"
    CLOSE = "close"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Row:
    """One transition: when ``trigger`` comes in ``source`` and all conditions hold, go to ``dest``.

    ``why`` is the promise that the row keeps, in words; it is the record's reason when the
    trigger brought none. ``guard`` is the short label that diagrams show.
    """

    trigger: Trigger
    source: State
    dest: State
    why: str
    conditions: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    guard: str = ""


_IDLE, _ACTIVE, _PROBING = State.IDLE, State.ACTIVE, State.PROBING
_RECOVERING, _CLOSED = State.RECOVERING, State.CLOSED
LIVE = (_IDLE, _ACTIVE, _PROBING, _RECOVERING)
T = Trigger


def _landings(
    trigger: Trigger, source: State, why: str, conditions: tuple[str, ...], *actions: str
) -> tuple[Row, Row]:
    """The two rows in which a flight ends well: ACTIVE for whoever holds it, else IDLE."""
    held = (*conditions, "held")
    return (
        Row(trigger, source, _ACTIVE, why, held, (), actions, "held"),
        Row(trigger, source, _IDLE, why + "; nobody holds it", conditions, (), actions, "not held"),
    )


def _each(
    trigger: Trigger, sources: tuple[State, ...], dest: State, why: str, *how: Any, **more: Any
) -> tuple[Row, ...]:
    """The same row from each of ``sources``."""
    return tuple(Row(trigger, source, dest, why, *how, **more) for source in sources)


TRANSITIONS: tuple[Row, ...] = (
    # -- acquire: a checkout, or an RPC that starts on a connection idle for too long.
    Row(
        T.ACQUIRE,
        _IDLE,
        _PROBING,
        "nothing vouches for the channel: never validated, suspect or idle for too long",
        ("strategy.needs_probe",),
        actions=("begin_probe",),
        guard="needs_probe",
    ),
    Row(T.ACQUIRE, _IDLE, _ACTIVE, "validated a moment ago", ("held",), guard="held"),
    Row(
        T.ACQUIRE,
        _ACTIVE,
        _PROBING,
        "idle for too long while held",
        ("strategy.needs_probe",),
        actions=("begin_probe",),
        guard="needs_probe",
    ),
    # -- served: after a give_up clients do not check out again; their RPCs tell the news.
    Row(
        T.SERVED,
        _IDLE,
        _ACTIVE,
        "an RPC of the current generation succeeded",
        ("held", "same_generation", "has_channel"),
        actions=("clear_suspicion",),
        guard="held",
    ),
    # -- doubt: a black hole shows no UNAVAILABLE, only deadlines that pass.
    Row(
        T.DOUBT,
        _ACTIVE,
        _PROBING,
        "an RPC ran into its deadline and none has succeeded since it started",
        ("same_generation", "silent_since"),
        actions=("begin_probe",),
        guard="silent",
    ),
    # -- the probe's outcomes.
    *_landings(
        T.PROBE_PASSED, _PROBING, "the channel answered", ("same_flight",), "bind", "end_flight"
    ),
    Row(
        T.PROBE_FAILED,
        _PROBING,
        _RECOVERING,
        "the channel that once was good does not answer",
        ("same_flight", "validated"),
        actions=("end_flight", "begin_recovery"),
        guard="validated before",
    ),
    Row(
        T.PROBE_FAILED,
        _PROBING,
        _CLOSED,
        "the first connect failed",
        ("same_flight",),
        ("validated",),
        ("end_flight",),
        "never validated",
    ),
    # -- fail: an RPC failed in a way that the strategy says a new channel can mend.
    *_each(
        T.FAIL,
        (_IDLE, _ACTIVE, _PROBING),
        _RECOVERING,
        "an RPC of the current generation failed",
        ("validated", "same_generation", "strategy.may_recover"),
        actions=("end_flight", "begin_recovery"),
        guard="may_recover",
    ),
    # -- reroute, recycle: move before anything fails; the current channel goes on serving. TLS
    # files that have changed make a channel old, and its record says so.
    *_each(
        T.REROUTE,
        (_IDLE, _ACTIVE),
        _RECOVERING,
        "the strategy's target is not the address in use",
        ("validated", "strategy.target_changed"),
        actions=("begin_recovery",),
        guard="target_changed",
    ),
    *_each(
        T.RECYCLE,
        (_IDLE, _ACTIVE),
        _RECOVERING,
        "older than max_age",
        ("validated", "held", "strategy.aged"),
        ("suspect",),
        ("begin_recovery",),
        "held, aged",
    ),
    # -- the recovery's outcomes.
    Row(
        T.RETRY,
        _RECOVERING,
        _RECOVERING,
        "an attempt failed; budget is left",
        ("same_flight", "budget_left"),
        ("permanent",),
        ("count_attempt",),
        "budget left",
    ),
    *_landings(
        T.RECOVERED,
        _RECOVERING,
        "a fresh channel was validated and swapped in",
        ("same_flight",),
        "bind",
        "end_flight",
    ),
    *_landings(
        T.STAND_DOWN,
        _RECOVERING,
        "nothing to change: the current channel serves",
        ("same_flight", "may_stand_down"),
        "drop_candidate",
        "keep_standby",
        "end_flight",
    ),
    Row(
        T.GIVE_UP,
        _RECOVERING,
        _IDLE,
        "the recovery budget is spent, or the error is permanent",
        ("same_flight",),
        actions=("count_attempt", "keep_candidate", "become_suspect", "end_flight"),
    ),
    # -- abandoned: the flight's leader died or was cancelled; waiters start the next flight.
    *_each(
        T.ABANDONED,
        (_PROBING, _RECOVERING),
        _IDLE,
        "the flight's leader died or was cancelled",
        ("same_flight", "validated"),
        actions=("keep_candidate", "become_suspect", "end_flight"),
        guard="validated before",
    ),
    Row(
        T.ABANDONED,
        _PROBING,
        _CLOSED,
        "nobody waits for the first connect any more",
        ("same_flight",),
        ("validated",),
        ("end_flight",),
        "never validated",
    ),
    # -- release: the last client left.
    *_each(
        T.RELEASE,
        (_IDLE, _ACTIVE),
        _CLOSED,
        "dedicated: its client left",
        ("dedicated",),
        ("held",),
        guard="dedicated",
    ),
    Row(
        T.RELEASE,
        _ACTIVE,
        _IDLE,
        "shared: the last client left",
        unless=("held", "dedicated"),
        guard="shared",
    ),
    # -- the ends.
    Row(
        T.EXPIRE,
        _IDLE,
        _CLOSED,
        "nobody held or used it for the linger time",
        ("strategy.expired",),
        ("held",),
        guard="lingered",
    ),
    *_each(
        T.FORKED,
        LIVE,
        _IDLE,
        "in a forked child: the parent's channels and flight are forgotten, not closed",
        actions=("forget_parent",),
    ),
    *(Row(T.CLOSE, source, _CLOSED, "closed by its owner") for source in LIVE),
)

_JOINS = "a flight is under way: the caller joins it and gets its outcome"
_FLYING = "a flight is under way: each attempt asks for its target anew, each landing checks again"
_STALE = "an outcome of another flight: a later trigger has already decided"
_OVER = "CLOSED is absorbing"


def _ignored() -> Iterator[tuple[tuple[State, Trigger], str]]:
    """Cells without a row that are legal, each with its reason."""
    for state in (_PROBING, _RECOVERING):
        yield (state, T.ACQUIRE), _JOINS
        yield (state, T.SERVED), "the flight's outcome decides"
        yield (state, T.DOUBT), "a flight is already finding out"
        yield (state, T.REROUTE), _FLYING
        yield (state, T.RECYCLE), _FLYING
        yield (state, T.RELEASE), "the lease is given back; the landing sees who still holds it"
        yield (state, T.EXPIRE), "a flight is under way: not idle"
    yield (_RECOVERING, T.FAIL), "joins the recovery; an optional flight becomes mandatory"
    yield (_ACTIVE, T.SERVED), "already vouched for"
    yield (_IDLE, T.DOUBT), "nothing vouches for an idle channel anyway: it becomes suspect"
    yield (_ACTIVE, T.EXPIRE), "held again since the timer was set"
    rows = {(row.source, row.trigger) for row in TRANSITIONS}
    outcomes = (T.PROBE_PASSED, T.PROBE_FAILED, T.RETRY, T.RECOVERED, T.STAND_DOWN, T.GIVE_UP)
    for trigger in (*outcomes, T.ABANDONED):
        for state in LIVE:
            if (state, trigger) not in rows:
                yield (state, trigger), _STALE
    yield (_CLOSED, T.ACQUIRE), "refused: the manager looks the connection up again or creates anew"
    for trigger in Trigger:
        if trigger not in (T.ACQUIRE, T.FAIL):
            yield (_CLOSED, trigger), _OVER


#: (state, trigger) -> why nothing happens. A row whose conditions do not hold is a no-op as well.
IGNORED: dict[tuple[State, Trigger], str] = dict(_ignored())

#: Cells of IGNORED whose no-op is worth a ``connection.refused`` record.
REFUSED: frozenset[tuple[State, Trigger]] = frozenset({(_CLOSED, T.ACQUIRE)})

#: (state, trigger) -> why this raises.
IMPOSSIBLE: dict[tuple[State, Trigger], str] = {
    (_CLOSED, T.FAIL): "a closed connection has no current generation: its callers get the "
    "closed error"
}
