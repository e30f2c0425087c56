"""OpenTelemetry: metrics of the connections, and a span for each recovery.

::

    from milvus_lifecycle.integrations.otel import OpenTelemetry
    milvus_lifecycle.install(listeners=[OpenTelemetry()])

What happens comes from the records, on the listener's own thread; what is (connections, calls that
wait) is asked of the managers when somebody collects it. The names are those of OpenTelemetry's
conventions for database client connection pools, where these have one; the rest, and what there is
not, stands in ``docs/operations.md``. Needs ``opentelemetry-api`` (the extra ``otel``), and nothing
of OpenTelemetry besides.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter
from opentelemetry.trace import INVALID_SPAN, Span, Status, StatusCode, TracerProvider, get_tracer
from opentelemetry.util.types import AttributeValue

from ..audit.records import CREATED, TRANSITION, TransitionRecord, Waited
from ..table import LIVE, State, Trigger
from .health import status

Attributes = dict[str, AttributeValue]

POOL = "db.client.connection.pool.name"
_OURS = "milvus.client.connection"
#: Buckets (seconds): the conventions' for what a client does, and for what it lives through.
_SHORT = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_LONG = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0, 86400.0)
#: So many connections are remembered. One whose close was lost (the listener was too slow) is not
#: kept for ever.
LIMIT = 10_000

_IDLE, _ACTIVE, _PROBING, _RECOVERING, _CLOSED = map(str, State)
_FORKED, _GIVE_UP = str(Trigger.FORKED), str(Trigger.GIVE_UP)
_FAILURES = (str(Trigger.FAIL), str(Trigger.PROBE_FAILED))
_GOOD = (Trigger.RECOVERED, Trigger.STAND_DOWN, Trigger.PROBE_PASSED, Trigger.SERVED)
_ENDS = tuple(map(str, _GOOD))
_ATTEMPTS = (str(Trigger.RETRY), _GIVE_UP, str(Trigger.RECOVERED))
_BAD = (_GIVE_UP, str(Trigger.ABANDONED))


@dataclass(slots=True)
class _Life:
    """What of a connection is remembered from one of its records to the next."""

    generation: int
    held: bool
    #: seconds in its state so far, failed attempts included
    stay: float = 0.0
    #: seconds since it left IDLE, if this was there
    used: float | None = None
    #: seconds of the outage under way
    outage: float | None = None
    #: what began the recovery under way
    cause: str = "unknown"
    span: Span = INVALID_SPAN
    waited: int = 0
    failed: int = 0


@dataclass(unsafe_hash=True)
class OpenTelemetry:
    """A listener for ``install``. Without providers it takes those that the process has set.

    Two of the same providers are equal, so that ``install`` may be called with either again.
    """

    meter_provider: MeterProvider | None = None
    tracer_provider: TracerProvider | None = None

    def __post_init__(self) -> None:
        self._pid, self._lives = os.getpid(), dict[str, _Life]()
        self._tracer = get_tracer("milvus_lifecycle", tracer_provider=self.tracer_provider)
        meter = get_meter("milvus_lifecycle", meter_provider=self.meter_provider)
        for name, unit, observe, what in _OBSERVED:
            meter.create_observable_up_down_counter(name, [observe], unit, what)
        self._create_time = meter.create_histogram(
            "db.client.connection.create_time",
            "s",
            "The time it took to create a new connection: its first connect",
            explicit_bucket_boundaries_advisory=_SHORT,
        )
        self._wait_time = meter.create_histogram(
            "db.client.connection.wait_time",
            "s",
            "The time it took to obtain an open connection, of calls that had to wait for one",
            explicit_bucket_boundaries_advisory=_LONG,
        )
        self._use_time = meter.create_histogram(
            "db.client.connection.use_time",
            "s",
            "The time between borrowing a connection and returning it to the pool: out of IDLE",
            explicit_bucket_boundaries_advisory=_LONG,
        )
        self._timeouts = meter.create_counter(
            "db.client.connection.timeouts",
            "{timeout}",
            "The number of connection timeouts that have occurred trying to obtain a connection",
        )
        self._state_time = meter.create_histogram(
            f"{_OURS}.state.duration",
            "s",
            "How long a connection was in a state, when it leaves it",
            explicit_bucket_boundaries_advisory=_LONG,
        )
        self._outage_time = meter.create_histogram(
            f"{_OURS}.outage.duration",
            "s",
            "How long a connection was down, when it is back or closed",
            explicit_bucket_boundaries_advisory=_LONG,
        )
        self._recoveries = meter.create_counter(
            f"{_OURS}.recoveries", "{recovery}", "Recoveries, and how they ended"
        )
        self._outages = meter.create_counter(
            f"{_OURS}.outages", "{outage}", "Outages of a connection that have begun"
        )
        self._waited = meter.create_counter(
            f"{_OURS}.calls.waited", "{call}", "Calls that waited for a connection in an outage"
        )
        self._failed = meter.create_counter(
            f"{_OURS}.calls.failed", "{call}", "Calls of an outage that ended in the engine's error"
        )

    def __call__(self, record: TransitionRecord) -> None:
        """Count one record of a connection. Those of one connection come in order."""
        if record.pid != self._pid:  # a forked child: what was under way is the parent's to tell
            self._pid = record.pid
            self._lives.clear()
        life = self._lives.pop(record.connection_id, None)
        if record.event == CREATED or record.trigger == _FORKED:
            life = _Life(record.generation, record.clients > 0)
            self._begin_at_zero({POOL: record.address})
        elif record.event == TRANSITION:
            life = life or _Life(record.generation, True)  # it was there before this listened
            self._count_calls(record, life)
            self._follow(record, life)
        elif life is not None:
            self._count_calls(record, life)
        if life is not None and record.dest != _CLOSED:
            self._lives[record.connection_id] = life
            if len(self._lives) > LIMIT:
                del self._lives[next(iter(self._lives))]

    def wait_ended(self, waited: Waited) -> None:
        """Count a call that waited for a connection."""
        pool: Attributes = {POOL: waited.address}
        if waited.served:
            self._wait_time.record(waited.seconds, pool)
        else:
            self._timeouts.add(1, pool)

    def _begin_at_zero(self, pool: Attributes) -> None:
        """Prometheus sees no increase in a counter that it has not known at zero."""
        for counter in (self._outages, self._waited, self._failed, self._timeouts):
            counter.add(0, pool)
        for cause in _FAILURES:
            for outcome in (_GIVE_UP, str(Trigger.RECOVERED)):
                self._recoveries.add(0, {**pool, **_recovery(cause, outcome)})

    def _count_calls(self, record: TransitionRecord, life: _Life) -> None:
        """What calls had of the outage since the record before: records say how many so far.

        Outside of an outage they say 0, and the end of one may be told after that.
        """
        begins = record.dest == _RECOVERING != record.source
        for name, counter in (("waited", self._waited), ("failed", self._failed)):
            now, before = getattr(record, name, 0), getattr(life, name)
            counter.add(max(0, now - before), {POOL: record.address})
            setattr(life, name, now if begins else max(now, before))

    def _follow(self, record: TransitionRecord, life: _Life) -> None:
        """One step of a life."""
        pool: Attributes = {POOL: record.address}
        if life.outage is not None and (life.held or record.source != _IDLE):
            life.outage += record.dwell_s  # nobody suffers from one that is idle and not held
        life.stay += record.dwell_s
        if record.source == _IDLE:
            life.used = 0.0
        elif life.used is not None:
            life.used += record.dwell_s
            if record.dest in (_IDLE, _CLOSED):
                self._use_time.record(life.used, pool)
        self._recover(record, life, pool)
        self._suffer(record, life, pool)
        if record.source != record.dest:
            self._state_time.record(life.stay, {**pool, f"{_OURS}.state": str(record.source)})
            if record.source == _PROBING and record.generation > life.generation:
                self._create_time.record(life.stay, pool)
            life.stay = 0.0
        life.generation, life.held = record.generation, record.clients > 0

    def _suffer(self, record: TransitionRecord, life: _Life, pool: Attributes) -> None:
        """The outage, by the definition of ``docs/audit.md``."""
        failed = record.dest == _RECOVERING and record.trigger in _FAILURES
        if life.outage is None and (failed or record.trigger == _GIVE_UP):
            # A move that gives up: its channel failed on the way.
            life.outage = 0.0 if failed else life.stay
            self._outages.add(1, pool)
        if life.outage is not None and (record.trigger in _ENDS or record.dest == _CLOSED):
            self._outage_time.record(life.outage, pool)
            life.outage = None

    def _recover(self, record: TransitionRecord, life: _Life, pool: Attributes) -> None:
        """The recovery: its span, whose events are the attempts."""
        if record.dest == _RECOVERING and record.source != _RECOVERING:
            life.cause = str(record.trigger)
            life.span = self._tracer.start_span(
                f"{_OURS}.recovery",
                Context(),  # nobody's request: not that of the call that noticed it, either
                attributes={
                    "db.system.name": "milvus",
                    **_server(record.address),
                    f"{_OURS}.id": record.connection_id,
                    f"{_OURS}.recovery.reason": record.reason,
                },
                start_time=_nanoseconds(record.ts),
            )
        if record.source != _RECOVERING:
            return
        moment, outcome = _nanoseconds(record.ts), str(record.trigger)
        if outcome in _ATTEMPTS:
            error: Attributes = {"error.type": record.error_code} if record.error_code else {}
            attempt = {**error, "outcome": outcome, "failed": record.attempt}
            life.span.add_event("attempt", {**attempt, "reason": record.reason}, moment)
        if record.dest != _RECOVERING:
            recovery = _recovery(life.cause, outcome)
            self._recoveries.add(1, {**pool, **recovery})
            life.span.set_attributes(recovery)
            if outcome in _BAD:
                life.span.set_status(Status(StatusCode.ERROR, record.reason))
            life.span.end(moment)
            life.cause, life.span = "unknown", INVALID_SPAN


def _recovery(cause: str, outcome: str) -> Attributes:
    return {f"{_OURS}.recovery.cause": cause, f"{_OURS}.recovery.outcome": outcome}


def _server(address: str) -> Attributes:
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # a file, say
        return {"server.address": address}
    return {"server.address": host.strip("[]"), "server.port": int(port)}


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _nanoseconds(ts: str) -> int:
    return (datetime.fromisoformat(ts) - _EPOCH) // timedelta(microseconds=1) * 1000


# -- what is, asked when somebody collects it -----------------------------------------------------

# Nothing here belongs to one listener: a meter knows its instruments for ever, and the callbacks
# of whoever came first.
_Row = dict[str, Any]


def _rows() -> list[_Row]:
    return [row for manager in status()["managers"] for row in manager["connections"]]


def _count(
    attribute: str, states: tuple[str, ...], told: Callable[[str], str]
) -> Callable[[CallbackOptions], list[Observation]]:
    """Connections by state, those without any, too: a graph has no gaps then."""

    def observe(options: CallbackOptions) -> list[Observation]:
        counts: Counter[tuple[str, str]] = Counter()
        for row in _rows():
            for state in states:
                counts[row["address"], state] += state == told(row["state"])
        return [
            Observation(count, {POOL: pool, attribute: state})
            for (pool, state), count in counts.items()
        ]

    return observe


def _usage(state: str) -> str:
    return "idle" if state == _IDLE else "used"


def _by_pool(figure: Callable[[_Row], int]) -> Callable[[CallbackOptions], list[Observation]]:
    def observe(options: CallbackOptions) -> list[Observation]:
        sums: Counter[str] = Counter()
        for row in _rows():
            sums[row["address"]] += figure(row)
        return [Observation(total, {POOL: pool}) for pool, total in sums.items()]

    return observe


def _waiting(row: _Row) -> int:
    return int(row["waiting"])


def _down(row: _Row) -> int:
    # An outage lasts until a call has succeeded; one that is ACTIVE again is not down.
    suffers = row["state"] != _ACTIVE and (row["state"] != _IDLE or row["clients"] > 0)
    return int(row["outage"] is not None and suffers)


_OBSERVED = (
    (
        "db.client.connection.count",
        "{connection}",
        _count("db.client.connection.state", ("idle", "used"), _usage),
        "The number of connections that are currently in state described by the state attribute",
    ),
    (
        "db.client.connection.pending_requests",
        "{request}",
        _by_pool(_waiting),
        "The number of current pending requests for an open connection",
    ),
    (
        f"{_OURS}.state.count",
        "{connection}",
        _count(f"{_OURS}.state", tuple(map(str, LIVE)), str),
        "Connections that are in this state now",
    ),
    (f"{_OURS}.down", "{connection}", _by_pool(_down), "Connections that are in an outage now"),
)


class Instrumentor:
    """What ``opentelemetry-instrument`` finds by its entry point, and calls.

    Not derived from its BaseInstrumentor: two methods are not worth a dependency.
    """

    def instrument(self, **options: Any) -> None:
        """Install the engine with the listener; an ``install`` of the program's own keeps it.

        ``meter_provider`` and ``tracer_provider`` as in ``OpenTelemetry``. Raises RuntimeError if
        the program has installed the engine already.
        """
        from .pymilvus import install_around

        listener = OpenTelemetry(options.get("meter_provider"), options.get("tracer_provider"))
        install_around((listener,))

    def uninstrument(self, **options: Any) -> None:
        """``uninstall``: the engine, too."""
        from .pymilvus import uninstall

        uninstall()
