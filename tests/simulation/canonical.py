"""States of a run, made comparable: what the future can depend on, and nothing else.

Two runs that come to equal states have equal futures, so one of them need not go on. A state is
the connections' books, the schedule, and for every process where it stands: the frames of its
stack (generators that wait included) with what their local variables hold. Of an object of the
engine all fields count but those in ``_LEFT_OUT``; an object of any other class needs a form here.

What is renamed or left out, and why two states may be one all the same:

- Moments count from now, to the nanosecond: floats that ought to be equal differ by less, and
  set-ups deal in milliseconds.
- Actors with equal plans are interchangeable. They are put in an order, and whatever refers to
  one of them (a lease, a wake-up call, a lock) says its place there.
- Fields that nothing decides by: texts, statistics, what is only written into records. Moments
  that one field of the policy asks for count where the policy has it.
- What a frame holds besides local variables (a loop's iterator, arguments of a call that is not
  made yet) cannot be seen. The place in the code can, and the exception that is handled.

``test_equal_states_have_equal_futures`` looks whether it is so.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import partial
from types import BuiltinMethodType, CodeType, FrameType, FunctionType, GeneratorType, MethodType
from typing import Any

from transitions import EventData

from milvus_lifecycle import ConnectionConfig, LifecyclePolicy, TransitionRecord
from milvus_lifecycle.audit.stream import Audit, Emission
from milvus_lifecycle.core.admission import Admission, Line
from milvus_lifecycle.core.checkout import Checkout
from milvus_lifecycle.core.connection import ManagedConnection
from milvus_lifecycle.core.face import Face, Start, _Call, _call, _status, stamp_of
from milvus_lifecycle.core.facts import Facts, Seams
from milvus_lifecycle.core.flight import Outage
from milvus_lifecycle.core.leases import Leases
from milvus_lifecycle.core.lifecycle import Lifecycle
from milvus_lifecycle.core.machine import RowTransition, TableEvent
from milvus_lifecycle.core.maintenance import Maintenance, Schedule
from milvus_lifecycle.core.mutex import Section
from milvus_lifecycle.core.registry import Registry
from milvus_lifecycle.core.retry import Retry
from milvus_lifecycle.core.strategies import ConnectionStrategy
from milvus_lifecycle.core.wire import Rpc, Wire
from milvus_lifecycle.drivers.rpc import Method
from milvus_lifecycle.errors import FailureSummary, error_code
from milvus_lifecycle.testing import FakeHandler
from tests.simulation.actors import Actor, Client
from tests.simulation.kernel import EPOCH, LONG_AGO, Kernel, Pause, Process, SimLock
from tests.simulation.setup import Plan, Setup, Signpost
from tests.simulation.world import Channel, SearchDriver, SearchPool, Waiting, World

#: fields that nothing decides by, or that count elsewhere
_LEFT_OUT: dict[type, tuple[str, ...]] = {
    Lifecycle: (
        *("created_at", "failures", "id", "recoveries", "seq", "state_since"),
        *("idle_limit", "strict", "unit"),  # the same in every run of a set-up
        "leases",
    ),
    Outage: ("attempts", "landings", "waited", "failed", "told"),
    Wire: ("methods", "running"),
    FailureSummary: ("text", "_copy"),
    Facts: ("reason",),
    _Call: ("face", "waited"),
    Start: ("waited",),
    Checkout: ("counted", "joined", "too_long"),
    Retry: ("waited",),
}
#: lists whose order makes no difference
_BAGS = ("wakes", "waiters")
#: moments that grow old, up to LONG_AGO -> what the policy has if anything is decided by them
_AGING = {
    (Lifecycle, "last_success"): None,
    (Lifecycle, "last_used_at"): "idle_threshold",
    (Lifecycle, "last_rpc_ended"): "linger",
    (Wire, "opened_at"): "max_age",
    (Line, "due"): None,
}
#: of these there is one in a run, or all there is in them counts elsewhere
_KNOWN = (
    *(Admission, Audit, ConnectionConfig, ConnectionStrategy, Emission, EventData, Kernel),
    *(
        LifecyclePolicy,
        Maintenance,
        Method,
        Pause,
        Plan,
        Registry,
        Schedule,
        Seams,
        SearchDriver,
        SearchPool,
    ),
    *(Section, Setup, Signpost, TransitionRecord, World),
)
_PLAIN = frozenset({bool, bytes, int, str, type(None)})
_UNBOUND = ("unbound",)
#: code -> the local variables of its frames that count
_NAMES: dict[CodeType, tuple[str, ...]] = {}
#: (class, what the policy has) -> reads the fields that count
_FIELDS: dict[tuple[type, frozenset[str]], tuple[list[str], ...]] = {}


class Canon:
    """Makes one state of one world comparable."""

    def __init__(self, world: World, alone: Actor | None = None) -> None:
        self.world = world
        self.now = world.kernel.now
        policy = world.pool.policy
        self.has = frozenset(n for n in _AGING.values() if n and getattr(policy, n) is not None)
        self.others = [p for p in world.kernel.processes if not isinstance(p.about, Actor)]
        #: id of what is told apart by being itself -> what it is called here
        self.names: dict[int, Any] = {id(process): process.name for process in self.others}
        for place, connection in enumerate(world.connections):
            self.names[id(connection)] = ("connection", place)
            self.names.setdefault(id(connection.face), ("face", place))
        self.actors = world.actors if alone else self.ordered()
        for place, actor in enumerate(self.actors):
            name: Any = ("actor", place)
            if alone is not None:
                name = ("mine" if actor is alone else "others", actor.kind)
            for its in (actor, actor.process, actor.client):
                self.names[id(its)] = name
        self.names.pop(id(None), None)
        for process in world.kernel.processes:
            if isinstance(process.pending, Waiting):
                self.names[id(process.pending.woken)] = ("wakes", self.names[id(process)])

    def ordered(self) -> list[Actor]:
        ranks = {actor: _rank(actor) for actor in self.world.actors}
        if len(set(ranks.values())) < len(ranks):
            ranks = {a: (rank, hash(Canon(self.world, a).actor(a))) for a, rank in ranks.items()}
        return sorted(ranks, key=ranks.__getitem__)

    def state(self) -> Any:
        """The state. Not its hash: -1.0 and -2.0 have the same."""
        world, pool, kernel = self.world, self.world.pool, self.world.kernel
        heap: Any = pool.maintenance.schedule._heap
        return (
            tuple(self.actor(actor) for actor in self.actors),
            tuple((process.name, self.process(process)) for process in self.others),
            tuple(self.connection(connection) for connection in world.connections),
            self.value(pool.registry.all()),
            self.value((*pool.admission.lines.values(), pool.admission._lock)),
            tuple((self.time(at), self.value(job)) for at, _, job in sorted(heap)),
            self.value(world.driver.mailbox),
            tuple((c.closed, c.rpcs, c in world.inherited) for c in world.channels),
            (world.faults, world.target, len(world.watch.orphans), self.drains()),
            self.value(world.traps),
            None if kernel.cut is None else self.name(kernel.cut),
            kernel.preemptions,
            self.now if world.setup.stops else None,
        )

    def time(self, value: float) -> float:
        """A moment, as far from now as it is."""
        return round(value - self.now, 9) if EPOCH <= value < 1e9 else value

    def name(self, value: Any) -> Any:
        """What it is called; if it has no name yet, the number of those that have."""
        return self.names.setdefault(id(value), len(self.names))

    def actor(self, actor: Actor) -> Any:
        finalizer = actor.client is not None and actor.client.on_end is not None
        stand = self.process(actor.process)
        face = self.value(actor.face)
        return (actor.kind, actor.left, actor.busy, actor.holds, finalizer, face, stand)

    def process(self, process: Process) -> Any:
        pending, about = process.pending, process.about
        if pending is None:
            return ()
        frames: list[Any] = []
        frame = process.runner.gr_frame
        while frame is not None:
            self.frame(frame, frames)
            frame = frame.f_back
        context, leads = process.runner.gr_context, self.world.watch.leads
        return (
            (type(pending).__name__, pending.label, self.time(pending.due)),
            self.value(getattr(pending, "options", None)),
            self.value(getattr(pending, "about", None)),
            bool(pending.ready()) if hasattr(pending, "ready") else None,
            (self.value(about), (process, about[1]) in leads) if type(about) is tuple else None,
            (process.locks, process.handles),
            self.value([context.get(it) if context else None for it in (_call, _status)]),
            tuple(frames),
        )

    def frame(self, frame: FrameType, into: list[Any]) -> None:
        code = frame.f_code
        names = _NAMES.get(code)
        if names is None:
            ours = frame.f_globals["__name__"].partition(".")[0] in ("milvus_lifecycle", "tests")
            every = (*code.co_varnames, *code.co_cellvars, *code.co_freevars) if ours else ()
            names = _NAMES[code] = tuple(dict.fromkeys(every))
        values = frame.f_locals if names else {}
        known = tuple(self.value(values.get(name, _UNBOUND)) for name in names)
        into.append((code.co_name, code.co_firstlineno, frame.f_lasti, known))

    def connection(self, c: ManagedConnection) -> Any:
        leases, watch = c.leases, self.world.watch
        return (
            self.fields(c.lifecycle),
            self.bag(leases.held.values()),
            max(self.time(leases.unheld_since), -LONG_AGO) if "linger" in self.has else None,
            leases.loss_noted,
            c.face.revivable,
            self.value(c.face.connection),
            self.value(c.owner),
            self.value((watch.down.get(c), c in watch.vouched)),
            len(watch.moved.get(c, ())) - watch.checked.get(c.id, 0),
        )

    def drains(self) -> Any:
        """Law 7 looks how long a channel has drained."""
        if self.world.pool.policy.drain_timeout is None:
            return None
        since, channels = self.world.watch.draining, self.world.channels
        return tuple((n, self.time(at)) for n, at in since.items() if not channels[n - 1].closed)

    # -- anything that a local variable or a field may hold ----------------------------------------

    def value(self, value: Any) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        form = _FORMS.get(kind)
        if form is None:
            form = _FORMS[kind] = _form_of(kind)
        return form(self, value)

    def many(self, value: Any) -> Any:
        return tuple(self.value(item) for item in value)

    def bag(self, value: Any) -> Any:
        return tuple(sorted(self.many(value), key=repr))

    def whole(self, value: Any) -> Any:
        """An object of the engine: where it is met first, all of it."""
        name = self.names.get(id(value))
        if name is None:
            return (self.name(value), type(value).__name__, self.fields(value))
        return name

    def fields(self, value: Any) -> Any:
        kind = type(value)
        names = _FIELDS.get((kind, self.has))
        if names is None:
            names = _FIELDS[kind, self.has] = _fields_of(value, self.has)
        count, age, bags = names
        known = [self.value(getattr(value, name)) for name in count]
        known += [self.bag(getattr(value, name)) for name in bags]
        known += [max(self.time(getattr(value, name)), -LONG_AGO) for name in age]
        return tuple(known)

    def of_connection(self, value: ManagedConnection) -> Any:
        """Its name; of one that is not pooled, all of it."""
        name = self.names.get(id(value))
        return (self.name(value), self.connection(value)) if name is None else name

    def of_call(self, call: Any) -> Any:
        return None if call.taken else (self.names.get(call.face), self.fields(call))

    def of_function(self, value: Any) -> Any:
        cells = value.__closure__ or ()
        if value.__name__ == "restore":  # of a step that raises: no set-up has such a thing
            cells = ()
        return (value.__qualname__, *(self.value(cell.cell_contents) for cell in cells))

    def of_generator(self, value: Any) -> Any:
        if value.gi_running or id(value) in self.names:
            return self.name(value)  # its frame is one of its process, or was met before
        frames: list[Any] = [self.name(value)]
        waiting: Any = value
        while isinstance(waiting, GeneratorType) and waiting.gi_frame is not None:
            self.frame(waiting.gi_frame, frames)
            waiting = waiting.gi_yieldfrom
        return tuple(frames)


def _rank(actor: Actor) -> Any:
    pending = actor.process.pending
    stand = ("", 0.0) if pending is None else (pending.label, pending.due)
    return (actor.kind, actor.left, actor.busy, actor.holds, stand)


def _fields_of(value: Any, has: frozenset[str]) -> tuple[list[str], ...]:
    """The fields of objects of this class that count, and those that age."""
    kind = type(value)
    every = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    every += getattr(value, "__dict__", ())
    aging = {name: field for (cls, name), field in _AGING.items() if cls is kind}
    out = ("__weakref__", *_LEFT_OUT.get(kind, ()), *aging)
    ages = [name for name, field in aging.items() if field is None or field in has]
    bags = [name for name in every if name in _BAGS]
    return [name for name in every if name not in out and name not in bags], ages, bags


def _form_of(kind: type) -> Callable[[Canon, Any], Any]:
    for base in kind.__mro__[: -1 if kind is not object else None]:
        if base in _FORMS:
            return _FORMS[base]
    if kind.__module__.startswith("milvus_lifecycle."):
        return Canon.whole
    raise TypeError(f"of what there is in a {kind.__qualname__}, what can the future depend on?")


_FORMS: dict[type, Callable[[Canon, Any], Any]] = {
    **dict.fromkeys(_KNOWN, lambda canon, value: type(value).__name__),
    **dict.fromkeys((tuple, list, deque), Canon.many),
    **dict.fromkeys((set, frozenset), Canon.bag),
    **dict.fromkeys((Client, Actor, Process, Face, object), Canon.name),
    # numbers are ids of what there is in the values
    dict: lambda canon, value: canon.many(i[1] if type(i[0]) is int else i for i in value.items()),
    float: Canon.time,
    type(iter([])): lambda canon, value: canon.many(value.__reduce__()[1:]),
    Enum: lambda canon, value: value,
    type: lambda canon, value: value,
    weakref.ref: lambda canon, value: canon.value(value()),
    GeneratorType: Canon.of_generator,
    FunctionType: Canon.of_function,
    MethodType: lambda canon, value: (value.__func__.__qualname__, canon.value(value.__self__)),
    BuiltinMethodType: lambda canon, value: (value.__name__, canon.name(value.__self__)),
    partial: lambda canon, value: canon.many((value.func, value.args, value.keywords)),
    BaseException: lambda canon, value: (
        type(value).__name__,
        error_code(value),
        canon.value(stamp_of(value)),
    ),
    ManagedConnection: Canon.of_connection,
    Lifecycle: lambda canon, value: ("lifecycle", canon.value(value.leases.home())),
    Leases: lambda canon, value: ("leases", canon.value(value.home())),
    RowTransition: lambda canon, value: canon.value(value.row),
    TableEvent: lambda canon, value: value.name,
    _Call: Canon.of_call,
    FakeHandler: lambda canon, value: canon.value(value.face),
    Rpc: lambda canon, value: (canon.name(value), value.severed, value.counted is None),
    Wire: lambda canon, value: (canon.whole(value), value.in_flight),
    SimLock: lambda canon, value: (canon.value(value.owner), value.count),
    Channel: lambda canon, value: value.number,
}
