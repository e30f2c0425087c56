"""Broken cores: the engine's own code with one line changed, for each law at least one.

A ``Line`` takes the source text of one shipped function, changes one line of it, compiles it in
its own module and puts it in the function's place. A ``Rows`` changes rows of the table and has
the machine built from them. If the shipped text does not have the line any more, that is an error
here, not a passed test.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from milvus_lifecycle import table
from milvus_lifecycle.core import machine, mutex
from milvus_lifecycle.core.admission import Admission
from milvus_lifecycle.core.checkout import Checkout
from milvus_lifecycle.core.lifecycle import Lifecycle
from milvus_lifecycle.core.pool import Pool
from milvus_lifecycle.core.recovery import Recovery
from milvus_lifecycle.core.retry import Retry
from milvus_lifecycle.core.wire import Wire
from milvus_lifecycle.table import IGNORED, TRANSITIONS, Row, State, Trigger

T = Trigger


@dataclass(frozen=True)
class Line:
    """One changed line of one function."""

    owner: type | ModuleType
    function: str
    shipped: str
    broken: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        original = vars(self.owner)[self.function]
        source = textwrap.dedent(inspect.getsource(original))
        if source.count(self.shipped) != 1:
            raise LookupError(f"{self.function} does not have this line once: {self.shipped}")
        module = inspect.getmodule(original)
        names: dict[str, Any] = {}
        changed = source.replace(self.shipped, self.broken)
        # Zero-argument super() would need a class cell: none of these functions uses it.
        exec(compile(changed, f"<broken {self.function}>", "exec"), vars(module), names)
        setattr(self.owner, self.function, names[self.function])
        try:
            yield
        finally:
            setattr(self.owner, self.function, original)


@dataclass(frozen=True)
class Rows:
    """Changed rows of the table. ``change`` returns the row, another one, or None: no such row."""

    change: Callable[[Row], Row | None]
    more: tuple[Row, ...] = ()

    @contextmanager
    def applied(self) -> Iterator[None]:
        rows = tuple(r for r in map(self.change, TRANSITIONS) if r is not None) + self.more
        ignored = dict(IGNORED)
        cells = {(row.source, row.trigger) for row in rows}
        for cell in cells:
            IGNORED.pop(cell, None)
        for row in TRANSITIONS:
            if (row.source, row.trigger) not in cells:
                IGNORED[row.source, row.trigger] = "a row is missing"
        events = dict(machine._EVENTS)
        machine.TRANSITIONS = rows  # type: ignore[attr-defined]
        built = machine.build_machine()
        machine._EVENTS.update({t: built.events[t.value] for t in Trigger})
        try:
            yield
        finally:
            machine.TRANSITIONS = table.TRANSITIONS  # type: ignore[attr-defined]
            machine._EVENTS.update(events)
            IGNORED.clear()
            IGNORED.update(ignored)


@dataclass(frozen=True)
class Mutant:
    """A broken core, what is wrong with it, and where the search finds that."""

    name: str
    laws: tuple[int, ...]
    patch: Line | Rows
    #: a set-up that every run of the tests searches
    setup: str


def _unless(condition: str, *triggers: Trigger) -> Callable[[Row], Row]:
    """Rows of ``triggers`` without one of their conditions."""

    def change(row: Row) -> Row:
        if row.trigger not in triggers:
            return row
        left = tuple(name for name in row.conditions if name != condition)
        return replace(row, conditions=left)

    return change


def _without(trigger: Trigger, *sources: State) -> Callable[[Row], Row | None]:
    return lambda row: None if row.trigger is trigger and row.source in sources else row


MUTANTS: tuple[Mutant, ...] = (
    # -- law 1: one flight
    Mutant(
        "two leaders: who joins flies, too",
        (1,),
        Line(Lifecycle, "lead", "if flight.leader is not None or", "if"),
        "threads: first connect",
    ),
    Mutant(
        "outcomes of other flights count",
        (1,),
        Line(
            Lifecycle,
            "guard_same_flight",
            "self.flight is not None and self.flight.number == facts.flight",
            "self.flight is not None",
        ),
        "dead leaders",
    ),
    Mutant(
        "a flight is not ended by the failure that supersedes it",
        (1, 4),
        Rows(
            lambda row: (
                replace(row, actions=("begin_recovery",))
                if row.trigger is T.PROBE_FAILED and row.dest is State.RECOVERING
                else row
            )
        ),
        "idle",
    ),
    # -- law 2: no lock during I/O or in a listener
    Mutant(
        "lock held over I/O",
        (2,),
        Line(
            Recovery,
            "_probe",
            "yield Ping(",
            "with self.life.lock: yield Ping(",
        ),
        "dead probe",
    ),
    Mutant(
        "all knock at once",
        (2,),
        Line(Admission, "admit", "if len(line.inside) >= line.most:", "if False:"),
        "one address",
    ),
    # -- law 3: CLOSED is absorbing, close wins at once
    Mutant(
        "CLOSED left: acquire re-opens",
        (3,),
        Rows(
            lambda row: row,
            (Row(T.ACQUIRE, State.CLOSED, State.IDLE, "re-opened"),),
        ),
        "fork",
    ),
    Mutant(
        "close waits for the flight",
        (3, 7, 4, 9),
        Rows(_without(T.CLOSE, State.PROBING, State.RECOVERING)),
        "first connect and close_all",
    ),
    Mutant(
        "close leaves the candidate open",
        (3, 7),
        Line(
            Lifecycle,
            "_shut",
            "wires.append(flight.candidate)",
            "pass",
        ),
        "first connect and close_all",
    ),
    Mutant(
        "a channel that comes up after close is kept",
        (7,),
        Line(Recovery, "_candidate", "self.pool.close_channel(wire)", "pass"),
        "impatient first connect",
    ),
    # -- law 4: every waiter wakes
    Mutant(
        "a waiter is lost",
        (4,),
        Line(
            Lifecycle,
            "_end",
            "self.result.wakes.extend(flight.waiters)",
            "self.result.wakes.extend(flight.waiters[:1])",
        ),
        "first connect",
    ),
    Mutant(
        "waiters are not woken by close",
        (1, 4),
        Line(Lifecycle, "_shut", "self._end(Outcome.CLOSED)", "self.flight = None"),
        "first connect and close_all",
    ),
    Mutant(
        "the outcome is not set when the leader dies",
        (4,),
        Line(Recovery, "abandon", "if self.flight.outcome is None and", "if False and"),
        "dead probe",
    ),
    Mutant(
        "a cancelled waiter stays on the list",
        (4,),
        Line(
            Lifecycle,
            "leave",
            "flight.waiters.remove(wake)",
            "pass",
        ),
        "server away",
    ),
    Mutant(
        "joining misses a flight that has just ended",
        (4,),
        Line(Lifecycle, "join", "under_way = flight.outcome is None", "under_way = True"),
        "threads: dedicated",
    ),
    Mutant(
        "who leaves a line gives nobody a turn",
        (4,),
        Line(Admission, "ended", "turns = _turns(line, now)", "turns = []"),
        "one address",
    ),
    Mutant(
        "a flight that is over keeps its place in line",
        (4,),
        Line(Admission, "ended", "line.inside.pop(flight, None)", "pass"),
        "one address",
    ),
    Mutant(
        "nobody looks at those in line",
        (4,),
        Line(Pool, "_may_begin", "self._watch(line)", "pass"),
        "one address",
    ),
    Mutant(
        "a flight that is put off is forgotten",
        (4,),
        Line(Pool, "_may_begin", "self.maintenance.plan(flight.not_before, again)", "pass"),
        "server away",
    ),
    # -- law 5: generations
    Mutant(
        "generation guard dropped",
        (5,),
        Line(
            Lifecycle,
            "guard_same_generation",
            "facts.generation is None or facts.generation == self.generation",
            "True",
        ),
        "outage upon outage",
    ),
    Mutant(
        "a failure of an older generation recovers again",
        (5,),
        Rows(_unless("same_generation", T.FAIL)),
        "outage upon outage",
    ),
    Mutant(
        "a failure of an older generation waits for a flight that is none of its business",
        (5,),
        Line(
            Retry,
            "_settle",
            "if generation is not None and generation < life.generation:",
            "if False:",
        ),
        "outage upon outage",
    ),
    Mutant(
        "a channel that is swapped in has the generation of the one before",
        (5,),
        Line(Lifecycle, "action_bind", "self.generation += 1", "pass"),
        "first connect",
    ),
    # -- law 6: the handler is for ever
    Mutant(
        "a landing makes a new handler",
        (6,),
        Line(
            Pool,
            "_follow_up",
            "self.maintenance.plan_refresh(connection)",
            "connection.handler = self.transport.make_handler(connection, connection.face)",
        ),
        "fork while idle",
    ),
    # -- law 7: no channel is lost, none closed under an RPC
    Mutant(
        "channel not disposed of",
        (7,),
        Line(Pool, "finish", "if wire.close_if_drained():", "if False:"),
        "first refusal",
    ),
    Mutant(
        "the old channel is forgotten at a swap",
        (7,),
        Line(Lifecycle, "action_bind", "self._retire(self.binding.wire)", "pass"),
        "moved while idle",
    ),
    Mutant(
        "a retired channel is closed under its RPCs",
        (7,),
        Line(Pool, "finish", "if wire.close_if_drained():", "if wire.close_now(cut=False):"),
        "standby",
    ),
    Mutant(
        "RPCs are not counted in",
        (7,),
        Line(Wire, "enter", "self.running.add(rpc.counted)", "pass"),
        "dead probe",
    ),
    Mutant(
        "a drained channel is not closed",
        (7,),
        Line(Pool, "drained", "self.close_channel(wire)", "pass"),
        "first refusal",
    ),
    Mutant(
        "drain_timeout is forgotten",
        (7,),
        Line(Pool, "finish", "elif timeout is not None and wire.running:", "elif False:"),
        "drain",
    ),
    Mutant(
        "an attempt's channel is dropped for the next",
        (7,),
        Line(
            Recovery,
            "_candidate",
            "self.pool.finish(self.connection, self.life.withdraw(self.flight))",
            "self.flight.candidate = None",
        ),
        "nobody left",
    ),
    # -- law 8: one record for each change
    Mutant(
        "record skipped",
        (8,),
        Line(
            Lifecycle,
            "_decide",
            "if (moved or refused) and",
            "if ((moved and trigger is not Trigger.RETRY) or refused) and",
        ),
        "nobody left",
    ),
    Mutant(
        "seq has gaps",
        (8,),
        Line(Lifecycle, "_decide", "self.seq += 1", "self.seq += 2"),
        "fork while idle",
    ),
    Mutant(
        "a change is told twice",
        (8,),
        Line(
            Lifecycle,
            "_tell",
            "self.audit.queue(emission)",
            "[self.audit.queue(emission) for _ in range(2)]",
        ),
        "fork while idle",
    ),
    # -- law 9: deadlines, and what callers see
    Mutant(
        "a caller's own limit is not looked at",
        (9,),
        Line(
            Checkout,
            "_ride_out",
            "limit = end if until is None else min(until, end)",
            "limit = end",
        ),
        "linger after an outage",
    ),
    Mutant(
        "a flight that gives up is the end for everybody in it",
        (9,),
        Line(
            Checkout,
            "_next_flight",
            "(permanent or self.clock() >= limit)",
            "True",
        ),
        "server away",
    ),
    Mutant(
        "each failure of an outage has a budget of its own",
        (9,),
        Line(Lifecycle, "make_mandatory", "if outage.budget_from is None:", "if True:"),
        "server away",
    ),
    Mutant(
        "an outage does not end with a good RPC",
        (9,),
        Line(Lifecycle, "succeeded", "self.outage = None", "pass"),
        "server away",
    ),
    Mutant(
        "a channel that was given up counts as good",
        (9,),
        Line(Lifecycle, "action_become_suspect", "self.suspect = True", "pass"),
        "dedicated, dead leader",
    ),
    Mutant(
        "the patience of who joins later is forgotten",
        (9,),
        Line(Lifecycle, "join", "flight.patience = max(flight.patience, until)", "pass"),
        "fork",
    ),
    Mutant(
        "RPCs run while their channel is doubted",
        (9,),
        Line(
            Lifecycle,
            "enter",
            "if state is State.ACTIVE or (state is State.IDLE and self.validated):",
            "if state is not State.CLOSED:",
        ),
        "doubt, nobody left",
    ),
    Mutant(
        "what the server refuses is tried again",
        (9,),
        Line(
            Lifecycle,
            "guard_permanent",
            "facts.failure is not None and facts.failure.kind is Failure.PERMANENT",
            "False",
        ),
        "refused in an outage",
    ),
    Mutant(
        "attempts go on when the budget is spent",
        (9,),
        Line(Lifecycle, "guard_budget_left", "facts.now < self.flight.deadline", "True"),
        "server away",
    ),
    # -- law 12: a collector inside the step
    Mutant(
        "a finalizer steps inside a step",
        (1, 4, 8, 12),
        Line(mutex, "inside", "return bool(locks)", "return False"),
        "a finalizer in a landing",
    ),
    Mutant(
        "lease lost: a release inside the step is dropped",
        (12,),
        Line(
            Pool,
            "give_back",
            "self.driver.post(partial(self.give_back, connection, client))",
            "pass",
        ),
        "finalizers inside a step",
    ),
    Mutant(
        "a lease is not given back when the checkout fails",
        (12,),
        Line(
            Checkout,
            "check_out",
            "if not connection.lease(caller):",
            "if not (connection.lease(client) and connection.lease(caller)):",
        ),
        "anonymous, cancelled",
    ),
    Mutant(
        "the last one out does not move the connection",
        (12,),
        Line(Pool, "settle", "self.step(connection, Trigger.RELEASE, reason=reason)", "pass"),
        "fork while idle",
    ),
)
