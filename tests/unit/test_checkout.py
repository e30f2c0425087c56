"""What callers go through, where calls meet in ways that no scenario can arrange."""

from __future__ import annotations

import threading
from contextvars import copy_context
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from milvus_lifecycle import ConnectionManager, LifecyclePolicy
from milvus_lifecycle.audit.records import Waited
from milvus_lifecycle.core.checkout import Checkout, _Caller
from milvus_lifecycle.core.face import Start
from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.core.readiness import LoadState
from milvus_lifecycle.core.requests import AskLoadState, Pause, Wait
from milvus_lifecycle.core.retry import Retry
from milvus_lifecycle.core.wire import Rpc
from milvus_lifecycle.errors import (
    REPLICATE_VIOLATION_MARK,
    ConnectFailed,
    ConnectionClosed,
    DeadlineExceeded,
    LifecycleError,
    PermanentFailure,
    RecoveryExhausted,
    summarize,
)
from milvus_lifecycle.table import State, Trigger
from milvus_lifecycle.testing import Script, rpc_error, until
from tests.cores import CONFIG
from tests.observe import Call, Client
from tests.rigs import Rig

UNAVAILABLE = rpc_error("UNAVAILABLE")
LOST = summarize(UNAVAILABLE)


class Hearing:
    """A listener that hears of calls, too."""

    def __init__(self, rig: Rig) -> None:
        self.waits: list[Waited] = []
        self.rig, self.deaf = rig, rig.manager.subscribe(self)

    def __call__(self, record: object) -> None:
        """Records are not what it is here for."""

    def wait_ended(self, waited: Waited) -> None:
        self.waits.append(waited)

    def heard(self) -> list[tuple[float, bool]]:
        assert self.rig.manager._pool.audit.flush(20)
        assert {waited.address for waited in self.waits} <= {CONFIG.address}
        heard = [(waited.seconds, waited.served) for waited in self.waits]
        self.waits.clear()
        return heard


def shut_behind_its_back(rig: Rig, connection: Any) -> None:
    """Close a connection so that it is still pooled: as in the middle of somebody's close."""
    connection.lifecycle.step(Trigger.CLOSE, Facts(now=rig.clock()))
    assert rig.manager._pool.registry.find(CONFIG.key) is connection


def test_a_checkout_that_finds_a_closed_connection_gets_another() -> None:
    """Whoever comes in the middle of a close is refused there, on record, and served anew."""
    with Rig() as rig:
        first = rig.connected()
        shut_behind_its_back(rig, first.face.connection)
        second = rig.connected()
        assert second is not first
        assert second.face.connection.state is State.ACTIVE
        refused = [r for r in rig.audit.records if r.event == "connection.refused"]
        assert [r.connection_id for r in refused] == [first.face.connection.id]


def test_a_revival_that_finds_a_closed_connection_makes_another() -> None:
    """The successor of a closed connection may be closed itself by then: its client is served."""
    with Rig() as rig:
        handler = rig.connected()
        rig.manager.close_all()
        other = rig.connected()
        shut_behind_its_back(rig, other.face.connection)
        handler.rpc()
        assert handler.face.connection.state is State.ACTIVE
        assert rig.manager.get_stats()["total_connections"] == 1


def test_a_revival_is_not_begun_without_time() -> None:
    """An RPC whose time is over when it finds its connection closed opens nothing."""
    with Rig() as rig:
        handler = rig.connected()
        rig.manager.close_all()
        opened = len(rig.script.channels)
        with pytest.raises(DeadlineExceeded):
            handler.rpc(timeout=0)
        assert len(rig.script.channels) == opened
        assert rig.manager.get_stats()["total_connections"] == 0


def test_a_handler_that_is_closed_while_it_revives_takes_nobody_along() -> None:
    """Its call ends as closed; the connection that it had found is another client's, and lives."""
    with Rig() as rig:
        ann, bob = Client(), Client()
        old = rig.connected(ann)
        rig.manager.close_all()
        rig.script.hold("register")
        new = Call(rig.connected, bob)
        rig.script.wait_held("register")
        call = Call(old.rpc)
        rig.sees(lambda: rig.clock.sleeping() == 2, "the call does not wait for the other's")
        old.face.close()
        rig.script.let_go()
        with pytest.raises(ConnectionClosed):
            call.value(20)
        connection = new.value(20).face.connection
        assert connection.state is State.ACTIVE
        assert connection.clients == {bob}


def test_no_time_no_wait() -> None:
    """A caller whose time is over when it meets a flight does not join it."""
    with Rig() as rig:
        handler = rig.connected()
        call = rig.failing(handler, "register")
        with pytest.raises(DeadlineExceeded):
            handler.rpc(timeout=0)
        assert rig.clock.sleeping() == 1
        rig.script.let_go()
        call.value(20)


def waiting(rig: Rig, timeout: float | None) -> tuple[Any, Any, Any]:
    """A caller, driven by hand, that waits for a recovery: (connection, procedure, its wait)."""
    handler = rig.connected()
    rig.script.hold("register")
    connection, now = handler.face.connection, rig.clock()
    rig.manager._pool.step(connection, Trigger.FAIL, failure=LOST, generation=1)
    until = None if timeout is None else now + timeout
    caller = Checkout(rig.manager._pool, now, until).admit(handler.face, Rpc(), timeout)
    request = next(caller)
    assert isinstance(request, Wait)
    return connection, caller, request


def land(rig: Rig, connection: Any) -> None:
    generation = connection.generation
    rig.script.finish(rig.script.wait_held("register"))
    rig.sees(lambda: connection.generation > generation, "it did not recover")


def test_a_flight_that_lands_too_late_for_its_caller() -> None:
    """A deadline that passes while the flight lands is a deadline: no RPC with no time is sent."""
    with Rig() as rig:
        connection, caller, _ = waiting(rig, 5.0)
        hearing = Hearing(rig)
        rig.clock.advance(5)
        land(rig, connection)
        with pytest.raises(DeadlineExceeded):
            caller.send(None)
        assert rig.count("rpc") == 0
        assert hearing.heard() == [(5.0, False)]
        assert connection.lifecycle.outage.failed == 1


def test_a_first_connect_ends_with_a_caller_that_has_no_time_for_it() -> None:
    """Its connection lands and is closed as its time ends: no other connect goes on for nobody."""
    with Rig() as rig:
        rig.script.hold("register")
        caller = Checkout.within(rig.manager._pool, 1.0).obtain(CONFIG, False, None)
        request = next(caller)
        assert isinstance(request, Wait)
        rig.clock.advance(1)
        land(rig, request.connection)
        rig.manager.close_all()
        call = Call(lambda: rig.manager._driver.drive(caller))
        rig.sees(lambda: rig.clock.sleeping() == 1, "it does not wait for a verdict")
        rig.clock.advance(1)
        with pytest.raises(ConnectFailed):
            call.value(20)
        assert rig.manager.get_stats()["total_connections"] == 0
        assert rig.triggers()[-2:] == ["acquire", "abandoned"]


@pytest.mark.parametrize(("left", "retried"), [(0.5, True), (0.01, False)])
def test_a_retry_needs_some_time(left: float, retried: bool) -> None:
    """A failure half a second before the deadline of its call is retried, one in its end is not."""
    with Rig() as rig:
        handler = rig.connected()
        rig.script.hold("rpc")
        call = Call(handler.call, None, 5.0)
        failed = rig.script.wait_held("rpc")
        rig.clock.advance(5.0 - left)
        failed.fail(rpc_error("UNAVAILABLE"))
        if retried:
            rig.sees(lambda: rig.count("rpc") == 2, "it is not retried")
            rig.script.let_go()
            call.value(20)
        else:
            with pytest.raises(DeadlineExceeded):
                call.value(20)
            outage = handler.face.connection.lifecycle.outage
            assert outage.failed == 1


def test_a_flight_that_lands_and_fails_before_its_caller_wakes() -> None:
    """The caller joins the next flight at once, within the time that it has left."""
    with Rig() as rig:
        connection, caller, first = waiting(rig, 50.0)
        land(rig, connection)
        rig.manager._pool.step(connection, Trigger.FAIL, failure=LOST, generation=2)
        second = caller.send(None)
        assert isinstance(second, Wait)
        assert second.flight is connection.lifecycle.flight
        assert second.flight is not first.flight
        assert second.until == first.until
        caller.close()


def no_thread(connection: Any, flight: Any) -> None:
    """There is no thread to be had for a flight."""
    raise RuntimeError("can't start new thread")


def test_without_workers_a_caller_waits_no_longer_than_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no flight can be started its caller tries again, and gives up with the cause."""
    with Rig() as rig:
        handler, pool = rig.connected(), rig.manager._pool
        monkeypatch.setattr(pool.driver, "launch", no_thread)
        connection, now = handler.face.connection, rig.clock()
        pool.step(connection, Trigger.FAIL, failure=LOST, generation=1)
        caller = Checkout(pool, now, None).admit(handler.face, Rpc(), None)
        request = next(caller)
        assert isinstance(request, Pause)
        assert request.seconds == pytest.approx(0.1)
        rig.clock.advance(60)
        with pytest.raises(RecoveryExhausted, match="can't start new thread"):
            caller.send(None)


@pytest.mark.parametrize("known", [True, False])
def test_a_call_that_has_waited_is_counted_once_however_often_it_is_tried(known: bool) -> None:
    """Its next RPC may have to wait in the same outage again."""
    with Rig() as rig:
        handler = rig.connected()
        face, connection, began = handler.face, handler.face.connection, rig.clock()
        rig.script.hold("register")
        rig.manager._pool.step(connection, Trigger.FAIL, failure=LOST, generation=1)
        start = Start(connection, connection.lifecycle.binding, Rpc(), began, began, None, None)

        def again() -> None:
            face.expect_retry(replace(start, waited=known))
            face.expect_retry(start)  # and once more: what is known stays known
            caller = Checkout(rig.manager._pool, began, None).admit(face, Rpc(), None)
            assert isinstance(next(caller), Wait)
            caller.close()

        copy_context().run(again)
        assert connection.lifecycle.outage.waited == (0 if known else 1)


# -- what is told of those that waited ------------------------------------------------------------


def test_who_waits_is_told_of() -> None:
    """A first connect and the end of an outage; what waits for nothing is not, nor who is deaf."""
    with Rig() as rig:
        hearing = Hearing(rig)
        rig.script.hold("register")
        connect = Call(rig.connected)
        rig.script.wait_held("register")
        rig.sees(lambda: rig.clock.sleeping() == 1, "it does not wait")
        rig.clock.advance(3)
        rig.script.let_go()
        handler = connect.value(20)
        rig.sees(lambda: len(hearing.waits) == 1, "nobody reads")
        handler.call()
        assert hearing.heard() == [(3.0, True)]
        call = rig.failing(handler, "register")
        rig.clock.advance(2)
        rig.script.let_go()
        call.value(20)
        assert hearing.heard() == [(2.0, True)]
        hearing.deaf()
        call = rig.failing(handler, "register")
        rig.script.let_go()
        call.value(20)
        assert hearing.heard() == []


def test_a_wait_goes_on_while_something_is_in_the_way() -> None:
    """It began as the call joined the first flight, and ends with a connection: once."""
    with Rig() as rig:
        handler, hearing, pool = rig.connected(), Hearing(rig), rig.manager._pool
        rig.script.hold("register")
        connection = handler.face.connection
        pool.step(connection, Trigger.FAIL, failure=LOST, generation=1)
        call = Checkout(pool, rig.clock() - 7.0, None).admit(handler.face, Rpc(), None)
        next(call)
        rig.clock.advance(1)
        land(rig, connection)
        pool.step(connection, Trigger.FAIL, failure=LOST, generation=2)
        call.send(None)
        rig.clock.advance(2)
        land(rig, connection)
        with pytest.raises(StopIteration):
            call.send(None)
        assert hearing.heard() == [(3.0, True)]


def test_a_wait_ends_with_the_connection_that_is_looked_up_anew() -> None:
    """Not with the one that the last waiter of its first connect has just closed."""
    with Rig() as rig:
        hearing = Hearing(rig)
        rig.script.hold("register")
        caller = Checkout.within(rig.manager._pool, None).obtain(CONFIG, False, None)
        first = next(caller)
        assert isinstance(first, Wait)
        rig.clock.advance(1)
        rig.manager._pool.step(first.connection, Trigger.ABANDONED, flight=first.flight.number)
        second = caller.send(None)
        assert isinstance(second, Wait)
        assert second.connection is not first.connection
        rig.clock.advance(2)
        rig.script.let_go()
        rig.sees(lambda: second.connection.state is State.ACTIVE, "it does not connect")
        with pytest.raises(StopIteration):
            caller.send(None)
        assert hearing.heard() == [(3.0, True)]


def test_who_is_not_to_hear_of_waits_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that never asked has no place in its queue taken; one that left hears no more."""
    with Rig() as rig:
        rig.manager.subscribe(lambda record: None)
        hearing, audit = Hearing(rig), rig.manager._pool.audit
        heard, go_on = threading.Event(), threading.Event()

        def stay(waited: Waited) -> None:
            hearing.waits.append(waited)
            heard.set()
            go_on.wait(20)

        *others, reader = audit.readers
        monkeypatch.setattr(reader._sink, "note_wait", stay)
        with monkeypatch.context() as patch:
            for other in others:
                patch.setattr(other.outlet, "put", None)
            for _ in range(2):
                audit.tell_wait(Waited(CONFIG.address, 1.0, True))
            assert heard.wait(20)
        hearing.deaf()
        go_on.set()
        assert reader.outlet.flush(20)
        assert len(hearing.waits) == 1


@pytest.mark.parametrize(("timeout", "error"), [(5.0, DeadlineExceeded), (None, RecoveryExhausted)])
def test_who_waits_for_too_long_is_told_of(timeout: float | None, error: type[Exception]) -> None:
    """Its own deadline, or the budget; closing is no matter of time."""
    with Rig(recovery_budget=10.0) as rig:
        handler, hearing = rig.connected(), Hearing(rig)
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.hold("register")
        call, other = Call(handler.call, None, timeout), Call(handler.call)
        rig.sees(lambda: rig.clock.sleeping() == 2, "they do not wait")
        rig.clock.advance(timeout or 10.0)
        with pytest.raises(error):
            call.value(20)
        if timeout is None:
            with pytest.raises(RecoveryExhausted):
                other.value(20)
            assert hearing.heard() == [(10.0, False)] * 2
        else:
            assert hearing.heard() == [(5.0, False)]
            rig.manager.close_all()
            with pytest.raises(ConnectionClosed):
                other.value(20)
            assert hearing.heard() == []


@pytest.mark.parametrize(
    ("error", "heard"),
    [("UNAVAILABLE", [(10.0, False)]), ("UNAUTHENTICATED", [])],
)
def test_a_give_up_is_a_matter_of_time_or_of_the_server(
    error: str, heard: list[tuple[float, bool]]
) -> None:
    """An outage that outlasts the budget is one; a server that refuses the client is none."""
    with Rig(recovery_budget=10.0) as rig:
        connection, caller, _ = waiting(rig, None)
        hearing = Hearing(rig)
        rig.clock.advance(10.0)
        rig.script.wait_held("register").fail(rpc_error(error))
        rig.sees(lambda: connection.lifecycle.flight is None, "it does not give up")
        with pytest.raises(RecoveryExhausted if heard else PermanentFailure):
            caller.send(None)
        assert hearing.heard() == heard


@pytest.mark.parametrize(
    ("patience", "error", "heard"),
    [
        (0.0, "UNAVAILABLE", []),
        (0.0, "DEADLINE_EXCEEDED", [(0.0, False)]),
        (3.0, "UNAVAILABLE", [(3.0, False)]),
        (3.0, "UNAUTHENTICATED", []),
    ],
)
def test_the_verdict_of_a_first_connect_may_be_one_of_time(
    patience: float, error: str, heard: list[tuple[float, bool]]
) -> None:
    """It says so in gRPC's words, or comes when all patience is spent; a refusal is none."""
    with Rig(first_connect_patience=patience) as rig:
        hearing = Hearing(rig)
        caller = Checkout.within(rig.manager._pool, None).obtain(CONFIG, False, None)
        rig.script.hold("register")
        request = next(caller)
        assert isinstance(request, Wait)
        rig.clock.advance(patience)
        rig.script.wait_held("register").fail(rpc_error(error))
        rig.sees(lambda: request.connection.state is State.CLOSED, "it does not fail")
        with pytest.raises(LifecycleError):
            caller.send(None)
        assert hearing.heard() == heard


def test_a_first_connect_that_takes_too_long_is_told_of() -> None:
    """One that is refused at once is not."""
    with Rig() as rig:
        hearing = Hearing(rig)
        rig.script.plan("register", rpc_error("UNAUTHENTICATED"))
        with pytest.raises(LifecycleError):
            rig.connected()
        assert hearing.heard() == []
        rig.script.hold("register")
        call = Call(rig.connected, timeout=4.0)
        rig.sees(lambda: rig.clock.sleeping() == 1, "it does not wait")
        rig.clock.advance(5.0)
        with pytest.raises(ConnectFailed):
            call.value(20)
        ((seconds, served),) = hearing.heard()
        assert (seconds >= 4.0, served) == (True, False)


# -- what the retry decorator asks ----------------------------------------------------------------


class Status(Exception):
    """What pymilvus raises for a response that carries a status: a code and a message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


NOT_LOADED = Status(101, "collection not loaded")
SEARCH = SimpleNamespace(collection_name="demo", partition_names=["new"])


def read(handler: Any, timeout: float | None = None) -> Any:
    """One search, without a decorator around it."""
    search = handler.face.unary_unary("/milvus.proto.milvus.MilvusService/Search")
    return search(SEARCH, timeout=timeout)


def answer(rig: Rig, handler: Any, error: Status, timeout: float | None = None) -> None:
    """A search that the server answers with this status."""
    rig.script.plan("rpc", SimpleNamespace(code=error.code, reason=error.message))
    read(handler, timeout)


def lose(rig: Rig, handler: Any) -> None:
    """One recovery."""
    rig.script.plan("rpc", UNAVAILABLE)
    handler.call()


def restarted(rig: Rig) -> Any:
    """A handler that searched, lost its server, and has it back (generation 2)."""
    handler = rig.connected()
    read(handler)
    lose(rig, handler)
    assert handler.face.connection.generation == 2
    return handler


def unready(rig: Rig, timeout: float | None = None) -> tuple[Any, Any]:
    """A handler whose search is answered "not loaded" after a restart; what asks for it."""
    handler = restarted(rig)
    answer(rig, handler, NOT_LOADED, timeout)
    return handler, Retry(handler.face).ask(NOT_LOADED)


def both_unready(rig: Rig) -> tuple[Any, Any, Any]:
    """A handler, and two of its searches that have asked the server."""
    handler, first = unready(rig)
    assert isinstance(next(first), AskLoadState)
    answer(rig, handler, NOT_LOADED)
    second = Retry(handler.face).ask(NOT_LOADED)
    assert isinstance(next(second), AskLoadState), "there is no answer yet"
    return handler, first, second


def verdict(asked: Any, send: object = None) -> bool:
    """How a procedure ends that is sent this, or has it thrown in."""
    with pytest.raises(StopIteration) as ended:
        asked.throw(send) if isinstance(send, Exception) else asked.send(send)
    return bool(ended.value.value)


def waits(rig: Rig) -> list[tuple[str | None, str | None, float]]:
    """What is on record of waits."""
    return [
        (record.trigger, record.error_code, record.dwell_s)
        for record in rig.audit.records
        if record.event == "connection.waiting"
    ]


def test_a_server_that_loads_is_waited_for_and_asked_now_and_then() -> None:
    """Its answer is not older than a pause; the call is tried again in its own time."""
    with Rig() as rig:
        handler, asked = unready(rig, 10.0)
        question = next(asked)
        assert isinstance(question, AskLoadState)
        assert question.collection == ("", "demo", ("new",))
        pause = asked.send(LoadState.LOADING)
        assert isinstance(pause, Pause)
        rig.clock.advance(pause.seconds)
        assert isinstance(asked.send(None), AskLoadState)
        assert verdict(asked, LoadState.LOADED) is True
        read(handler, 10.0)
        assert rig.script.operations[-1].timeout == pytest.approx(10.0 - pause.seconds)
        rig.sees(lambda: len(waits(rig)) == 2, "the wait is not on record")
        assert waits(rig) == [("loading", "101", 0.0), ("loaded", None, pause.seconds)]


def test_a_wait_that_nobody_listens_to() -> None:
    """It is waited all the same."""
    with Rig() as rig:
        rig.audit.stop()
        _, asked = unready(rig)
        assert isinstance(next(asked), AskLoadState)
        assert isinstance(asked.send(LoadState.LOADING), Pause)
        rig.clock.advance(1)
        assert isinstance(asked.send(None), AskLoadState)
        assert verdict(asked, LoadState.LOADED) is True


def test_calls_that_wait_for_one_collection_share_the_answers() -> None:
    """Who finds a fresh answer does not ask; the end of the wait is everybody's."""
    with Rig() as rig:
        _, first, second = both_unready(rig)
        for asked in (first, second):
            assert isinstance(asked.send(LoadState.LOADING), Pause)
        rig.clock.advance(1)
        assert isinstance(first.send(None), AskLoadState)
        assert isinstance(second.send(None), Pause), "the first one asks"
        assert verdict(first, LoadState.LOADED) is True
        rig.clock.advance(1)
        assert verdict(second) is True
        rig.sees(lambda: len(waits(rig)) == 2, "the wait is not on record")
        assert [news for news, _, _ in waits(rig)] == ["loading", "loaded"]


@pytest.mark.parametrize(
    "said", [LoadState.NOT_LOAD, LoadState.NOT_EXIST, Status(1, "no")], ids=str
)
def test_a_server_that_does_not_load_is_not_waited_for(said: Any) -> None:
    """What nobody loads is the caller's, and is asked for once in a recovery."""
    with Rig() as rig:
        handler, asked = unready(rig)
        assert isinstance(next(asked), AskLoadState)
        assert verdict(asked, said) is False
        rig.clock.advance(1)
        answer(rig, handler, NOT_LOADED)
        assert rig.manager.handle_error(handler, NOT_LOADED) is False
        assert rig.count("load_state") == 0
        assert waits(rig) == []
        lose(rig, handler)
        answer(rig, handler, NOT_LOADED)
        assert rig.manager.handle_error(handler, NOT_LOADED) is True, "another recovery"
        assert rig.count("load_state") == 1


def test_no_answer_is_no_news() -> None:
    """A question that runs into its deadline is asked again, while there is time."""
    with Rig() as rig:
        _, asked = unready(rig, 6.0)
        question = next(asked)
        assert question.timeout == 5.0, "no longer than a probe"
        rig.clock.advance(question.timeout)
        question = asked.throw(rpc_error("DEADLINE_EXCEEDED"))
        assert isinstance(question, AskLoadState)
        rig.clock.advance(question.timeout)
        assert verdict(asked, rpc_error("DEADLINE_EXCEEDED")) is False


def test_a_connection_that_is_lost_meanwhile_ends_the_wait() -> None:
    """The call goes on to the next recovery; so does one that only paused."""
    with Rig() as rig:
        handler, first, second = both_unready(rig)
        assert isinstance(second.send(LoadState.LOADING), Pause)
        lose(rig, handler)
        assert verdict(first, UNAVAILABLE) is True
        assert verdict(second) is True
        rig.sees(lambda: len(waits(rig)) == 2, "the wait is not on record")
        assert [news for news, _, _ in waits(rig)] == ["loading", "interrupted"]


@pytest.mark.parametrize("timeout", [0.2, None])
def test_not_ready_is_told_when_time_is_over(timeout: float | None) -> None:
    """Neither its own timeout nor the budget of a recovery is overstepped by waiting."""
    with Rig() as rig:
        handler = restarted(rig)
        answer(rig, handler, NOT_LOADED, timeout)
        if timeout is None:
            rig.clock.advance(60)
        assert rig.manager.handle_error(handler, NOT_LOADED) is False


def test_a_wait_is_over_for_everybody_when_it_has_lasted_for_the_budget() -> None:
    """A call that comes later waits for the rest of it, and for nothing after it."""
    with Rig() as rig:
        handler, first = unready(rig)
        assert isinstance(next(first), AskLoadState)
        assert isinstance(first.send(LoadState.LOADING), Pause)
        rig.clock.advance(40)
        answer(rig, handler, NOT_LOADED)
        second = Retry(handler.face).ask(NOT_LOADED)
        assert isinstance(next(second), AskLoadState)
        rig.clock.advance(20)
        assert verdict(second, LoadState.LOADING) is False
        answer(rig, handler, NOT_LOADED)
        assert rig.manager.handle_error(handler, NOT_LOADED) is False
        assert rig.count("load_state") == 0
        rig.sees(lambda: len(waits(rig)) == 2, "the wait is not on record")
        assert waits(rig)[-1] == ("overdue", "101", 60.0)


def test_not_ready_that_never_was_ready_is_the_callers() -> None:
    """A collection that was not read before any outage is not waited for."""
    with Rig() as rig:
        handler = rig.connected()
        lose(rig, handler)
        answer(rig, handler, NOT_LOADED)
        assert rig.manager.handle_error(handler, NOT_LOADED) is False
        assert rig.count("load_state") == 0


def test_writing_to_a_secondary_is_the_callers_where_there_is_no_cluster() -> None:
    """Only a global cluster's strategy knows a better place; elsewhere nothing is recovered."""
    error = Status(5, f"{REPLICATE_VIOLATION_MARK}: not the primary")
    with Rig() as rig:
        handler = rig.connected()
        answer(rig, handler, error)
        assert rig.manager.handle_error(handler, error) is False
        assert rig.triggers() == ["acquire", "probe_passed"]


def test_an_error_brought_in_by_hand_counts_for_the_channel_in_use() -> None:
    """An RPC error that went through nobody's channel is recovered from, and to be retried."""
    with Rig() as rig:
        handler = rig.connected()
        assert rig.manager.handle_error(handler, rpc_error("UNAVAILABLE")) is True
        assert rig.triggers()[2:] == ["fail", "recovered"]
        assert rig.manager.handle_error(handler, ValueError("mine")) is False


class Stubborn(Exception):
    """No copy can be made of it."""

    def __new__(cls, *, word: str) -> Stubborn:
        return super().__new__(cls)

    def __init__(self, *, word: str) -> None:
        super().__init__(word)


def test_an_error_that_is_the_callers_stays_as_it_is() -> None:
    """Its traceback is the caller's, whatever the error is made of."""
    with Rig() as rig:
        handler = rig.connected()
        with pytest.raises(Stubborn) as raised:
            raise Stubborn(word="mine")
        assert rig.manager.handle_error(handler, raised.value) is False
        assert raised.value.__traceback__ is not None


@pytest.mark.parametrize("joins", [False, True], ids=["its own flight", "somebody else's"])
def test_a_first_connect_that_fails_before_its_caller_waits_is_hoped_for(joins: bool) -> None:
    """The caller says what it hopes as the flight begins; who joins one without hope too late
    begins another."""
    script, policy = Script(), LifecyclePolicy(first_connect_patience=30.0)
    manager = ConnectionManager(policy, transport=script.threads())
    driver: Any = manager._driver
    launch, flown = driver.launch, list[Any]()

    def fly_here(connection: Any, flight: Any) -> None:
        flown.append(flight)
        if joins and len(flown) == 1:
            flight.hope = 0.0
        launch(connection, flight)
        until(lambda: flight.outcome is not None, 20, "it flies on")

    driver.launch = fly_here
    script.plan("register", rpc_error("UNAVAILABLE"))
    client = Client()
    handler = manager.get_or_create(CONFIG, client=client)
    assert len(flown) == 1 + joins
    manager.release(handler, client)
    manager.close_all()
    until(lambda: driver._keeper is None, 20, "its timekeeper goes on")


def test_a_call_that_waits_on_a_closed_connection_is_no_heir_of_it() -> None:
    """Its lease is given back where it has it: on the successor nobody would do that."""
    with Rig() as rig:
        client, caller = Client(), _Caller()
        handler = rig.connected(client)
        closed = handler.face.connection
        assert closed.lease(caller)
        rig.manager._pool.close(closed, "by a test")
        assert handler.call() is None
        leases = handler.face.connection.leases
        assert handler.face.connection is not closed
        assert (leases.is_held_by(client), leases.is_held_by(caller)) == (True, False)
