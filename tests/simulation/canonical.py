"""States of a run, made comparable: what the future can depend on, and nothing else.

Two runs that come to equal states have equal futures, so one of them need not go on. A state is
the connections' books, the schedule, and for every process where it stands: the frames of its
stack (generators that wait included) with what their local variables hold. Moments count from
now; names of actors do not count (actors with equal plans are interchangeable).
"""

from __future__ import annotations

import weakref
from collections import deque
from enum import Enum
from functools import partial
from types import CodeType, FrameType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any

from milvus_lifecycle.core.checkout import Checkout
from milvus_lifecycle.core.connection import ManagedConnection
from milvus_lifecycle.core.face import Start, stamp_of
from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.core.flight import Flight
from milvus_lifecycle.core.lifecycle import Lifecycle, StepResult
from milvus_lifecycle.core.recovery import Recovery
from milvus_lifecycle.core.requests import Locate, Open, Pause, Ping, Register, Wait
from milvus_lifecycle.core.wire import Binding, Wire
from milvus_lifecycle.errors import FailureSummary, error_code
from tests.simulation.kernel import EPOCH, Process

if TYPE_CHECKING:
    from tests.simulation.world import World

#: No call of a set-up is under way for longer (seconds).
LONG_AGO = 20.0
_PLAIN = frozenset({bool, int, str, type(None)})
_REQUESTS = (Wait, Register, Ping, Open, Locate, Pause)
#: frames of these files are where a process can stand
_FILES = ("milvus_lifecycle", "simulation")

#: code -> the local variables of its frames that count
_NAMES: dict[CodeType, tuple[str, ...]] = {}


class Canon:
    """Makes one state of one world comparable."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = world.kernel.now

    def state(self) -> Any:
        """The state. Not its hash: -1.0 and -2.0 have the same."""
        world = self.world
        actors = {actor.process: actor for actor in world.actors}
        crowd, others = [], []
        for process in world.kernel.processes:
            actor = actors.pop(process, None)
            stand = self.process(process)
            if actor is None:
                others.append((process.name, stand))
            else:
                crowd.append(self.actor(actor, stand))
        crowd.extend(self.actor(actor, ()) for actor in actors.values())
        cut, schedule = world.kernel.cut, world.pool.maintenance.schedule._heap
        return (
            tuple(sorted(crowd, key=hash)),
            tuple(others),
            tuple(self.connection(connection) for connection in world.connections),
            tuple(sorted((self.time(d), repr(self.value(j))) for d, _, j in schedule)),
            tuple(self.value(job) for job in world.driver.mailbox),
            tuple((channel.closed, channel.rpcs) for channel in world.channels),
            world.faults,
            world.target,
            len(world.traps),
            None if cut is None else (cut.name, self.process(cut)),
            world.kernel.preemptions,
            self.now if world.setup.stops else None,
        )

    def time(self, value: float) -> float:
        """A moment, as far from now as it is."""
        return round(value - self.now, 3) if EPOCH <= value < 1e9 else value

    def actor(self, actor: Any, stand: Any) -> Any:
        lease = None
        if actor.holds and actor.face is not None:
            connection = actor.face.connection
            lease = (self.value(connection), actor.lease in connection.leases.held)
        return (actor.kind, actor.left, actor.busy, actor.holds, lease, stand)

    def process(self, process: Process) -> Any:
        pending = process.pending
        if pending is None:
            return ()
        frames: list[Any] = []
        frame = process.runner.gr_frame
        while frame is not None:
            self.frame(frame, frames)
            frame = frame.f_back
        about = self.value(process.about) if isinstance(process.about, tuple) else None
        waits = getattr(pending, "about", None)
        ready = pending.ready() if hasattr(pending, "ready") else None
        return (
            pending.label,
            self.time(pending.due),
            self.value(waits),
            bool(ready),
            about,
            tuple(frames),
        )

    def frame(self, frame: FrameType, into: list[Any]) -> None:
        code = frame.f_code
        names = _NAMES.get(code)
        if names is None:
            ours = any(part in code.co_filename for part in _FILES)
            names = _NAMES[code] = code.co_varnames if ours else ()
        if names:
            values = frame.f_locals
            known = tuple(self.value(values.get(name)) for name in names)
            into.append((code.co_name, frame.f_lasti, known))

    def connection(self, c: ManagedConnection) -> Any:
        life, leases = c.lifecycle, c.leases
        outage, flight, b = life.outage, life.flight, life.binding
        return (
            c.state.value,
            c.generation,
            None if b is None else (b.generation, self.wire(b.wire), b.identifier is None),
            None if flight is None else self.flight(flight),
            None
            if outage is None
            else (
                self.time(outage.began),
                None if outage.budget_from is None else self.time(outage.budget_from),
                min(outage.channels, 8),
                outage.flaps,
                outage.generation,
            ),
            life.validated,
            life.was_good,
            life.suspect,
            c.dedicated,
            len(leases),
            0 in leases.held,
            tuple((self.wire(w), self.drains(w)) for w in life.draining),
            life.closed_by,
            self.failure(life.last_failure),
            max(self.time(life.last_success), -LONG_AGO),
            max(self.time(life.last_used_at), -LONG_AGO)
            if life.policy.idle_threshold is not None
            else None,
            max(self.time(leases.unheld_since), self.time(life.last_rpc_ended), -LONG_AGO)
            if life.policy.linger
            else None,
            leases.loss_noted,
            life.expiry_planned,
            c.face.revivable,
            c.face.connection is c,
        )

    def flight(self, f: Flight) -> Any:
        return (
            f.number,
            f.kind.value,
            self.time(f.began),
            self.time(f.deadline),
            self.time(f.patience),
            self.time(f.not_before),
            f.mandatory,
            None if f.leader is not None else self.time(f.launched),
            f.leader is not None,
            f.thawed,
            f.attempts,
            f.refresh,
            None if f.candidate is None else self.wire(f.candidate),
            None if f.standby is None else self.wire(f.standby),
            self.failure(f.failure),
            None if f.outcome is None else f.outcome.value,
            len(f.waiters),
        )

    def wire(self, w: Wire) -> Any:
        return (w.channel.number, w.state.value, w.in_flight, w.cut)

    def drains(self, w: Wire) -> float | None:
        if self.world.pool.policy.drain_timeout is None:
            return None
        return self.time(self.world.watch.draining.get(w.channel.number, self.now))

    def failure(self, failure: FailureSummary | None) -> Any:
        return None if failure is None else failure.code

    def value(self, value: Any) -> Any:
        """Anything that a local variable may hold."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, float):
            return self.time(value)
        if isinstance(value, (tuple, list, deque)):
            return tuple(self.value(item) for item in value)
        if isinstance(value, dict):
            return tuple((str(key), self.value(item)) for key, item in value.items())
        if isinstance(value, GeneratorType):
            frames: list[Any] = []
            waiting: Any = value
            while isinstance(waiting, GeneratorType) and waiting.gi_frame is not None:
                self.frame(waiting.gi_frame, frames)
                waiting = waiting.gi_yieldfrom
            return tuple(frames)
        return self.thing(value)

    def thing(self, value: Any) -> Any:
        """Objects of the engine, by what tells them apart."""
        if isinstance(value, ManagedConnection):
            known = self.world.connections
            return ("connection", known.index(value) if value in known else -1)
        if isinstance(value, Lifecycle):
            return ("lifecycle", value.seq)
        if isinstance(value, FailureSummary):
            return value.code
        if isinstance(value, Flight):
            outcome = value.outcome.value if value.outcome is not None else None
            return ("flight", value.number, outcome, self.failure(value.failure))
        if isinstance(value, Wire):
            return self.wire(value)
        if isinstance(value, Binding):
            return (value.generation, self.wire(value.wire))
        if isinstance(value, Start):
            until = None if value.until is None else self.time(value.until)
            return (value.binding.generation, self.time(value.at), self.time(value.began), until)
        if isinstance(value, BaseException):
            stamp = stamp_of(value)
            return (error_code(value), None if stamp is None else self.value(stamp))
        if isinstance(value, StepResult):
            wires = [self.wire(wire) for wire in (*value.closing, *value.retired)]
            return (value.moved, self.value(value.launch), len(value.wakes), tuple(wires))
        if isinstance(value, Recovery):
            return (self.value(value.connection), self.value(value.flight))
        if isinstance(value, Checkout):
            return (self.time(value.began), self.value(value.until))
        if isinstance(value, (Facts, *_REQUESTS)):
            fields = value.__slots__ if hasattr(value, "__slots__") else ()
            return tuple(self.value(getattr(value, name)) for name in fields)
        if isinstance(value, weakref.ref):
            return self.value(value())
        if isinstance(value, partial):
            return (self.value(value.func), self.value(value.args), self.value(value.keywords))
        if isinstance(value, MethodType):
            return (value.__func__.__qualname__,)
        return type(value).__name__
