"""OpenTelemetry, fed by the engine on a script and a fake clock: exact figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from milvus_lifecycle import ConnectionConfig
from milvus_lifecycle.audit.records import CREATED, REFUSED, TRANSITION, WAITING
from milvus_lifecycle.errors import RecoveryExhausted
from milvus_lifecycle.integrations import otel
from milvus_lifecycle.integrations.otel import POOL, OpenTelemetry
from milvus_lifecycle.testing import ScriptedRpcError, rpc_error
from tests.observe import Call
from tests.rigs import Rig

#: `status()` is asked of all managers of the process: nobody else is here.
CONFIG = ConnectionConfig.from_uri("http://telemetry:19530")
UNAVAILABLE = rpc_error("UNAVAILABLE")
#: 2030-01-01, when the fake clock began (nanoseconds)
BEGAN = 1_893_456_000 * 10**9
SECOND = 10**9
#: Known from the beginning, so that the first one is an increase.
NO_RECOVERY = {
    f"{cause} {outcome}": 0
    for cause in ("fail", "probe_failed")
    for outcome in ("recovered", "give_up")
}


class Telemetry:
    """A listener, and what the SDK has of it."""

    def __init__(self) -> None:
        self._reader, self._spans = InMemoryMetricReader(), InMemorySpanExporter()
        self._meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.traces = TracerProvider(shutdown_on_exit=False)
        self.traces.add_span_processor(SimpleSpanProcessor(self._spans))
        self.listener = OpenTelemetry(self._meters, self.traces)

    def figures(self, name: str) -> dict[str, Any]:
        """A metric's values by their attributes; of a histogram, how many and their sum."""
        data = self._reader.get_metrics_data()
        found: dict[str, Any] = {}
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
            for point in metric.data.data_points if metric.name == name else ():
                given = dict(point.attributes or {})
                assert set(given) >= {POOL}
                if given.pop(POOL) == CONFIG.address:
                    key = " ".join(str(given[each]) for each in sorted(given))
                    found[key] = getattr(point, "value", None)
                    if isinstance(point, HistogramDataPoint):
                        found[key] = (point.count, point.sum)
        return found

    def spans(self) -> list[ReadableSpan]:
        return list(self._spans.get_finished_spans())


@pytest.fixture
def telemetry() -> Telemetry:
    """One that listens to nobody yet."""
    return Telemetry()


Connect = Callable[[Rig], Any]


@pytest.fixture
def connect(telemetry: Telemetry) -> Iterator[Connect]:
    """Connects a client within 2 s; the listener hears all of it."""
    clients: list[object] = []

    def connected(rig: Rig) -> Any:
        client = type("Client", (), {})()
        clients.append(client)
        rig.manager.subscribe(telemetry.listener)
        rig.script.hold("register")
        call = Call(rig.manager.get_or_create, CONFIG, client=client)
        rig.script.wait_held("register")
        rig.sees(lambda: rig.clock.sleeping() == 1, "it does not wait")
        rig.clock.advance(2.0)
        rig.script.let_go()
        return call.value(20)

    yield connected
    clients.clear()


def test_an_outage(telemetry: Telemetry, connect: Connect) -> None:
    """What it was, while it lasts and after it, to the second; its span is nobody's child."""
    with Rig() as rig:
        handler = connect(rig)
        rig.clock.advance(10.0)
        tracer = telemetry.traces.get_tracer("a user's")

        def request() -> None:
            with tracer.start_as_current_span("request"):
                handler.call()

        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.plan("register", UNAVAILABLE, UNAVAILABLE)  # an attempt asks twice
        rig.script.hold("register")
        call = Call(request)
        rig.audit.wait_for("retry")
        rig.sees(lambda: rig.clock.sleeping() == 2, "caller and leader do not wait")
        assert telemetry.figures("db.client.connection.pending_requests") == {"": 1}
        assert telemetry.figures("milvus.client.connection.down") == {"": 1}
        assert telemetry.figures("db.client.connection.count") == {"idle": 0, "used": 1}
        assert telemetry.figures("milvus.client.connection.state.count") == {
            **dict.fromkeys(("IDLE", "ACTIVE", "PROBING"), 0),
            "RECOVERING": 1,
        }
        rig.clock.advance(3.0)
        rig.script.wait_held("register")
        rig.clock.advance(1.0)
        rig.script.let_go()
        call.value(20)
        assert rig.audit.transitions("recovered")
        assert telemetry.figures("db.client.connection.pending_requests") == {"": 0}
        assert telemetry.figures("milvus.client.connection.down") == {"": 0}
        rig.clock.advance(5.0)
        rig.manager.close_all()
        assert rig.audit.transitions("close")
    assert telemetry.figures("db.client.connection.count") == {}
    assert telemetry.figures("db.client.connection.create_time") == {"": (1, 2.0)}
    assert telemetry.figures("db.client.connection.wait_time") == {"": (2, 6.0)}
    assert telemetry.figures("db.client.connection.timeouts") == {"": 0}
    assert telemetry.figures("db.client.connection.use_time") == {"": (1, 21.0)}
    assert telemetry.figures("milvus.client.connection.outage.duration") == {"": (1, 4.0)}
    assert telemetry.figures("milvus.client.connection.outages") == {"": 1}
    assert telemetry.figures("milvus.client.connection.recoveries") == {
        **NO_RECOVERY,
        "fail recovered": 1,
    }
    assert telemetry.figures("milvus.client.connection.state.duration") == {
        "IDLE": (1, 0.0),
        "PROBING": (1, 2.0),
        "ACTIVE": (2, 15.0),
        "RECOVERING": (1, 4.0),
    }
    recovery, user = sorted(telemetry.spans(), key=lambda span: span.name)
    assert (recovery.name, user.name) == ("milvus.client.connection.recovery", "request")
    assert recovery.parent is None
    assert recovery.start_time == BEGAN + 12 * SECOND
    assert recovery.end_time == BEGAN + 16 * SECOND
    assert recovery.status.status_code is StatusCode.UNSET
    about = dict(recovery.attributes or {})
    assert about["db.system.name"] == "milvus"
    assert (about["server.address"], about["server.port"]) == ("telemetry", 19530)
    assert about["milvus.client.connection.recovery.cause"] == "fail"
    assert about["milvus.client.connection.recovery.outcome"] == "recovered"
    attempts = [
        (event.timestamp, dict(event.attributes or {})["outcome"]) for event in recovery.events
    ]
    assert attempts == [(BEGAN + 12 * SECOND, "retry"), (BEGAN + 16 * SECOND, "recovered")]
    assert dict(recovery.events[0].attributes or {})["error.type"] == "UNAVAILABLE"


def test_an_outage_that_outlives_its_recovery(telemetry: Telemetry, connect: Connect) -> None:
    """A give_up is an error of its span; the outage goes on as long as somebody has none."""
    with Rig(recovery_budget=5.0) as rig:
        handler = connect(rig)
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.hold("register")
        call = Call(handler.call)
        lost = rig.script.wait_held("register")
        rig.sees(lambda: rig.clock.sleeping() == 1, "the call does not wait")
        rig.clock.advance(5.0)
        lost.fail(UNAVAILABLE)
        with pytest.raises(RecoveryExhausted):
            call.value(20)
        rig.audit.wait_for("give_up")
        (span,) = telemetry.spans()
        assert span.status.status_code is StatusCode.ERROR
        assert telemetry.figures("milvus.client.connection.recoveries") == {
            **NO_RECOVERY,
            "fail give_up": 1,
        }
        assert telemetry.figures("milvus.client.connection.down") == {"": 1}
        assert telemetry.figures("db.client.connection.count") == {"idle": 1, "used": 0}
        assert telemetry.figures("milvus.client.connection.outage.duration") == {}
        rig.clock.advance(7.0)
        rig.manager.close_all()
        assert rig.audit.transitions("close")
        records = rig.audit.records
    assert telemetry.figures("milvus.client.connection.outage.duration") == {"": (1, 12.0)}
    assert telemetry.figures("db.client.connection.timeouts") == {"": 1}
    assert telemetry.figures("db.client.connection.wait_time") == {"": (1, 2.0)}  # its connect
    for name in ("waited", "failed"):
        calls = max(getattr(record, name, 0) for record in records)
        assert telemetry.figures(f"milvus.client.connection.calls.{name}") == {"": calls}


def test_who_works_is_not_down(telemetry: Telemetry) -> None:
    """Neither one that connects for the first time, nor one that is back and had no call yet."""
    with Rig() as rig:
        rig.script.hold("register")
        call = Call(rig.manager.get_or_create, CONFIG, client=telemetry)
        rig.script.wait_held("register")
        assert telemetry.figures("milvus.client.connection.down") == {"": 0}
        rig.script.let_go()
        handler = call.value(20)
        rig.script.plan("rpc", UNAVAILABLE)
        with pytest.raises(ScriptedRpcError):
            handler.rpc()
        rig.audit.wait_for("recovered")
        (row,) = rig.manager.get_stats()["connections"]
        assert (row["state"], row["outage"] is None) == ("ACTIVE", False)
        assert telemetry.figures("milvus.client.connection.down") == {"": 0}


# -- records that are made up ---------------------------------------------------------------------


def told(trigger: str, source: str | None, dest: str, dwell_s: float = 0.0, **more: Any) -> Any:
    """A record of a connection that a client holds."""
    usual = {
        "event": TRANSITION,
        "ts": "2030-01-01T00:00:00.000000+00:00",
        "connection_id": "one",
        "address": CONFIG.address,
        "reason": "made up",
        "error_code": None,
        "pid": 1,
        "clients": 1,
        "generation": 1,
        "attempt": 0,
    }
    return SimpleNamespace(
        **{**usual, "trigger": trigger, "source": source, "dest": dest, "dwell_s": dwell_s, **more}
    )


FAIL = told("fail", "ACTIVE", "RECOVERING", 100.0)
RECOVERED = told("recovered", "RECOVERING", "ACTIVE", 1.0, generation=2)
CLOSE = told("close", "ACTIVE", "CLOSED")


def test_calls_of_an_outage_are_counted_once(telemetry: Telemetry) -> None:
    """Records say how many there were so far in this outage; the next one begins anew."""
    news: dict[str, Any] = {"event": "connection.outage", "seq": None}
    telemetry.listener(told("acquire", "PROBING", "ACTIVE"))
    for waited, failed, record in (
        (0, 0, FAIL),
        (2, 0, told("retry", "RECOVERING", "RECOVERING")),
        (3, 1, RECOVERED),
        (0, 0, told("release", "ACTIVE", "IDLE")),
        (3, 2, told("back", "ACTIVE", "ACTIVE", **news)),  # of the outage that is over
        (0, 0, FAIL),
        (1, 1, told("retry", "RECOVERING", "RECOVERING")),
        (1, 1, told("close", "RECOVERING", "CLOSED")),
        (1, 1, told("closed", "CLOSED", "CLOSED", **news)),
    ):
        counted: Any = SimpleNamespace(**{**vars(record), "waited": waited, "failed": failed})
        telemetry.listener(counted)
    assert telemetry.figures("milvus.client.connection.calls.waited") == {"": 4}
    assert telemetry.figures("milvus.client.connection.calls.failed") == {"": 3}


OUTAGES = {
    "a first connect that fails is none": (
        [told("acquire", "IDLE", "PROBING"), told("probe_failed", "PROBING", "CLOSED", 5.0)],
        None,
    ),
    "a probe that fails begins one": (
        [told("probe_failed", "PROBING", "RECOVERING", 5.0), RECOVERED],
        1.0,
    ),
    "a move is none": ([told("reroute", "ACTIVE", "RECOVERING"), RECOVERED], None),
    "a move that gives up is one from its beginning": (
        [
            told("recycle", "ACTIVE", "RECOVERING", 100.0),
            told("retry", "RECOVERING", "RECOVERING", 3.0),
            told("give_up", "RECOVERING", "IDLE", 2.0),
            told("served", "IDLE", "ACTIVE", 4.0),
        ],
        9.0,
    ),
    "one that goes on after a give_up": (
        [
            FAIL,
            told("give_up", "RECOVERING", "IDLE", 2.0),
            told("acquire", "IDLE", "PROBING", 4.0),
            told("probe_failed", "PROBING", "RECOVERING", 8.0),
            told("stand_down", "RECOVERING", "ACTIVE", 16.0),
            told("release", "ACTIVE", "IDLE", 32.0),
        ],
        30.0,
    ),
    "nobody suffers while nobody holds it": (
        [
            FAIL,
            told("give_up", "RECOVERING", "IDLE", 2.0, clients=0),
            told("acquire", "IDLE", "PROBING", 50.0),
            told("probe_passed", "PROBING", "ACTIVE", 4.0),
        ],
        6.0,
    ),
    "it ends with the connection": ([FAIL, told("close", "RECOVERING", "CLOSED", 3.0)], 3.0),
}


@pytest.mark.parametrize("case", OUTAGES)
def test_how_long_an_outage_was(telemetry: Telemetry, case: str) -> None:
    """As ``docs/audit.md`` has it."""
    records, seconds = OUTAGES[case]
    for record in records:
        telemetry.listener(record)
    ended = {} if seconds is None else {"": (1, seconds)}
    assert telemetry.figures("milvus.client.connection.outage.duration") == ended
    assert telemetry.figures("milvus.client.connection.outages") == ({"": 1} if ended else {})


def test_how_long_a_connection_was_in_use(telemetry: Telemetry) -> None:
    """From IDLE to IDLE or to the end, whatever happens; not if its beginning was missed."""
    telemetry.listener(told("release", "ACTIVE", "IDLE", 1.0))
    for record in (
        told("acquire", "IDLE", "PROBING", 2.0),
        told("probe_passed", "PROBING", "ACTIVE", 4.0),
        told("release", "ACTIVE", "IDLE", 8.0),
        told("acquire", "IDLE", "ACTIVE", 16.0),
        told("fail", "ACTIVE", "RECOVERING", 32.0),
        told("close", "RECOVERING", "CLOSED", 64.0),
    ):
        telemetry.listener(record)
    assert telemetry.figures("db.client.connection.use_time") == {"": (2, 12.0 + 96.0)}
    telemetry.listener(told("created", None, "IDLE", event=CREATED, connection_id="unused"))
    telemetry.listener(told("expire", "IDLE", "CLOSED", 128.0, connection_id="unused"))
    assert telemetry.figures("db.client.connection.use_time") == {"": (2, 12.0 + 96.0)}


def test_a_recovery_that_nobody_saw_begin(telemetry: Telemetry) -> None:
    """The connection was there before the listener: it is counted, without a cause or a span."""
    telemetry.listener(RECOVERED)
    assert telemetry.figures("milvus.client.connection.recoveries") == {"unknown recovered": 1}
    assert telemetry.figures("db.client.connection.create_time") == {}
    assert telemetry.spans() == []


def test_a_probe_creates_nothing(telemetry: Telemetry) -> None:
    """Nor does a first connect that fails."""
    telemetry.listener(told("acquire", "IDLE", "PROBING"))
    telemetry.listener(told("probe_passed", "PROBING", "ACTIVE", 1.0))
    telemetry.listener(told("acquire", "ACTIVE", "PROBING"))
    telemetry.listener(told("probe_failed", "PROBING", "CLOSED", 1.0))
    assert telemetry.figures("db.client.connection.create_time") == {}


def test_what_changes_no_state_is_not_counted(telemetry: Telemetry) -> None:
    """A refusal, and calls that wait for a collection."""
    for event in (REFUSED, WAITING):
        telemetry.listener(told("loading", "ACTIVE", "ACTIVE", 7.0, event=event))
    telemetry.listener(told("release", "ACTIVE", "IDLE", 1.0))
    assert telemetry.figures("milvus.client.connection.state.duration") == {"ACTIVE": (1, 1.0)}


def test_an_address_may_be_a_file(telemetry: Telemetry) -> None:
    """Then its span has no port; and one in brackets is without them."""
    for address in ("/data/milvus.db", "[::1]:19530"):
        telemetry.listener(told("fail", "ACTIVE", "RECOVERING", address=address))
        telemetry.listener(told("recovered", "RECOVERING", "ACTIVE", address=address))
    places = [dict(span.attributes or {}) for span in telemetry.spans()]
    assert [place["server.address"] for place in places] == ["/data/milvus.db", "::1"]
    assert ["server.port" in place for place in places] == [False, True]


def test_who_is_gone_is_forgotten(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed connections; after a fork the parent's; and of too many, the one silent longest."""
    monkeypatch.setattr(otel, "LIMIT", 3)
    lives = telemetry.listener._lives
    for record in (FAIL, RECOVERED, CLOSE):
        telemetry.listener(record)
    assert not lives
    for name in "abcabd":
        telemetry.listener(told("created", None, "IDLE", event=CREATED, connection_id=name))
        telemetry.listener(told("acquire", "IDLE", "PROBING", connection_id=name))
    assert list(lives) == ["a", "b", "d"]
    before = telemetry.figures("milvus.client.connection.state.duration")
    telemetry.listener(told("forked", "ACTIVE", "IDLE", 99.0, connection_id="child", pid=2))
    assert list(lives) == ["child"]  # and the stay before the fork was the parent's
    assert telemetry.figures("milvus.client.connection.state.duration") == before


def test_listeners_of_the_same_providers_are_one() -> None:
    """So that a second, equal ``install`` does nothing."""
    assert OpenTelemetry() == OpenTelemetry()
    assert OpenTelemetry() != OpenTelemetry(MeterProvider(shutdown_on_exit=False))
