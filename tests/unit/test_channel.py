"""The permanent channel of the threads flavour: subscriptions, streams, futures and cuts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from milvus_lifecycle.core.face import TELEMETRY, UnavailableError
from milvus_lifecycle.core.wire import Rpc
from milvus_lifecycle.errors import REPLICATE_VIOLATION_MARK, ConnectionClosed
from milvus_lifecycle.table import State
from milvus_lifecycle.testing import FakeChannel, rpc_error
from tests.cores import CONFIG
from tests.observe import Call
from tests.rigs import Rig

KINDS = ("unary_stream", "stream_unary", "stream_stream")


def test_a_cut_rpc_is_an_error_a_call_and_a_finished_future() -> None:
    """Whatever grpc's interceptors and pymilvus's decorator ask of an error, it answers."""
    cut = UnavailableError("it was cut")
    assert cut.code() is grpc.StatusCode.UNAVAILABLE
    assert cut.details() == "it was cut"
    assert (cut.done(), cut.running(), cut.cancelled(), cut.cancel()) == (True, False, False, False)
    assert (cut.is_active(), cut.time_remaining(), cut.add_callback(print)) == (False, 0.0, False)
    assert (cut.initial_metadata(), cut.trailing_metadata()) == ((), ())
    assert cut.debug_error_string() == ""
    assert cut.exception() is cut
    assert cut.traceback() is None
    seen: list[Any] = []
    cut.add_done_callback(seen.append)
    assert seen == [cut]
    with pytest.raises(UnavailableError):
        cut.result()


def test_a_subscription_is_the_channels_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who watches a handler's channel watches the one in use, if there is one."""
    log: list[tuple[str, int]] = []

    def note(what: str) -> Callable[..., None]:
        return lambda channel, callback, connect=False: log.append((what, channel.number))

    for what in ("subscribe", "unsubscribe"):
        monkeypatch.setattr(FakeChannel, what, note(what), raising=False)
    with Rig() as rig:
        early = rig.manager._pool.create(CONFIG, dedicated=True).face
        for face in (early, rig.connected().face):
            face.subscribe(print, True)
            face.unsubscribe(print)
        assert log == [("subscribe", 1), ("unsubscribe", 1)]


def test_a_callable_of_grpcs_is_made_once() -> None:
    """For each channel and method: the next RPC finds the one that is there."""
    with Rig() as rig:
        handler = rig.connected()
        channel, made = handler.face.connection.lifecycle.binding.wire.channel, []
        make = channel.unary_unary

        def counted(method: str, *args: Any, **kwargs: Any) -> Any:
            made.append(method)
            return make(method, *args, **kwargs)

        channel.unary_unary = counted
        handler.rpc()
        handler.rpc()
        assert len(made) == 1


def test_telemetry_leaves_no_trace() -> None:
    """It uses the channel in use, or fails at once: no step, no activity, nothing in flight."""
    with Rig(idle_threshold=10.0) as rig:
        handler = rig.connected()
        life, send = handler.face.connection.lifecycle, handler.face.unary_unary(TELEMETRY + "It")
        rig.clock.advance(20.0)
        rig.script.hold("rpc")
        call = Call(send, b"", timeout=5.0)
        operation = rig.script.wait_held("rpc")
        assert (operation.timeout, operation.metadata) == (5.0, (("identifier", "identifier-1"),))
        assert (life.in_flight, life.idle_for(rig.clock())) == (0, 20.0)
        operation.fail(rpc_error("UNAVAILABLE"))
        with pytest.raises(grpc.RpcError, match="scripted"):
            call.value(10)
        assert (rig.triggers(), life.failures) == (["acquire", "probe_passed"], 0)
        rig.manager.close_all()
        with pytest.raises(grpc.RpcError, match="no channel to"):
            send(b"", timeout=5.0)


def test_a_channel_is_a_context() -> None:
    """Leaving it closes the connection for good; it shows which one that is."""
    with Rig() as rig:
        handler = rig.connected()
        with handler.face as face:
            assert handler.face.connection.id in repr(face)
        assert handler.face.connection.state is State.CLOSED
        with pytest.raises(ConnectionClosed):
            handler.rpc()


class Running(UnavailableError):
    """A stream that goes on until it is told to end."""

    end: Callable[[], None]

    def add_callback(self, callback: Any = None) -> bool:
        self.end = callback
        return True


def streams(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> None:
    """Let streaming methods of every channel return, or raise, this."""

    def make(channel: Any, method: str) -> Callable[..., Any]:
        def call(request: Any, **about: Any) -> Any:
            if isinstance(outcome, BaseException) and not isinstance(outcome, grpc.Call):
                raise outcome
            return outcome

        return call

    for kind in KINDS:
        monkeypatch.setattr(FakeChannel, kind, make, raising=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_counts_until_it_ends(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Its channel is not closed under it: it is one RPC in flight till its last callback."""
    running = Running("it goes on")
    streams(monkeypatch, running)
    with Rig() as rig:
        face = rig.connected().face
        assert getattr(face, kind)("/method")("request", timeout=5.0) is running
        assert face.connection.lifecycle.in_flight == 1
        running.end()
        assert face.connection.lifecycle.in_flight == 0


@pytest.mark.parametrize(
    "outcome", [UnavailableError("it is over"), iter(())], ids=["over", "unwatched"]
)
def test_a_stream_that_is_over_counts_no_more(
    monkeypatch: pytest.MonkeyPatch, outcome: Any
) -> None:
    """One that has ended before anybody could watch it, or cannot be watched."""
    streams(monkeypatch, outcome)
    with Rig() as rig:
        face = rig.connected().face
        assert face.unary_stream("/method")("request") is outcome
        assert face.connection.lifecycle.in_flight == 0


@pytest.mark.parametrize("error", [rpc_error("UNAVAILABLE"), TypeError("bad request")], ids=str)
def test_a_stream_that_does_not_begin(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Its failure is the caller's, counted as one of the connection if it is grpc's."""
    streams(monkeypatch, error)
    with Rig() as rig:
        face = rig.connected().face
        with pytest.raises(type(error)):
            face.unary_stream("/method")("request")
        assert face.connection.lifecycle.in_flight == 0
        assert face.connection.lifecycle.failures == isinstance(error, grpc.RpcError)


class Pending(grpc.RpcError):
    """grpc's future of one RPC."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[Any], None]] = []
        self.status, self.answer = grpc.StatusCode.OK, "answer"
        self.error: Any = None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def end(self, error: Any = None) -> None:
        if error is not None:
            self.status, self.error = grpc.StatusCode.UNAVAILABLE, error
        for callback in self.callbacks:
            callback(self)

    def code(self) -> grpc.StatusCode:
        return self.status

    def details(self) -> str:
        return "of grpc"

    def result(self, timeout: float | None = None) -> Any:
        if self.error is not None:
            raise self.error
        return self.answer

    def exception(self, timeout: float | None = None) -> Any:
        if isinstance(self.error, grpc.FutureCancelledError):
            raise self.error
        return self.error

    def cancel(self) -> bool:
        self.error = grpc.FutureCancelledError()
        return True

    def cancelled(self) -> bool:
        return isinstance(self.error, grpc.FutureCancelledError)

    def __getattr__(self, name: str) -> Any:
        return lambda *args: name


def pending(rig: Rig, pend: Any) -> Any:
    """A future of the engine's over one of grpc's."""
    face = rig.connected().face

    class Method:
        def future(self, request: Any, **about: Any) -> Any:
            if not isinstance(pend, Pending):
                raise pend
            return pend

    face.connection.lifecycle.binding.wire.methods["/method"] = Method()
    return face.unary_unary("/method").future("request", timeout=5.0)


def test_a_future_counts_until_it_is_done() -> None:
    """It is one RPC in flight; its answer and grpc's own facts about it are passed on."""
    call = Pending()
    with Rig() as rig:
        future = pending(rig, call)
        connection = rig.manager._pool.registry.all()[0]
        assert connection.lifecycle.in_flight == 1
        seen: list[Any] = []
        future.add_done_callback(seen.append)
        call.end()
        assert (connection.lifecycle.in_flight, seen) == (0, [future])
        assert (future.result(1), future.exception(1)) == ("answer", None)
        assert (future.code(), future.details()) == (grpc.StatusCode.OK, "of grpc")
        assert not future.cancelled()
        for name in ("initial_metadata", "trailing_metadata", "time_remaining", "is_active"):
            assert getattr(future, name)() == name
        assert (future.running(), future.done()) == ("running", "done")
        assert (future.traceback(1), future.add_callback(print)) == ("traceback", "add_callback")


@pytest.mark.parametrize("first", ["callback", "result", "exception"])
def test_a_future_reports_its_failure_once(first: str) -> None:
    """Whoever is first, grpc's callback or the caller: one failure, and everybody sees it."""
    call, error = Pending(), rpc_error("UNAVAILABLE")
    with Rig() as rig:
        future = pending(rig, call)
        call.status, call.error = grpc.StatusCode.UNAVAILABLE, error
        if first == "result":
            with pytest.raises(grpc.RpcError):
                future.result()
        elif first == "exception":
            assert future.exception() is error
        call.end(error)
        assert future.exception() is not None
        assert rig.triggers().count("fail") == 1


def test_a_future_that_its_caller_cancels_is_no_failure() -> None:
    """It is cancelled, to its caller too, and nothing is recovered."""
    call = Pending()
    with Rig() as rig:
        future = pending(rig, call)
        assert future.cancel()
        call.end(grpc.FutureCancelledError())
        assert future.cancelled()
        for ask in (future.result, future.exception):
            with pytest.raises(grpc.FutureCancelledError):
                ask()
        assert "fail" not in rig.triggers()


def test_a_future_that_is_cut_is_unavailable() -> None:
    """What drain_timeout cancels is never a cancellation to its caller."""
    call = Pending()
    with Rig() as rig:
        future = pending(rig, call)
        binding = rig.manager._pool.registry.all()[0].lifecycle.binding
        assert binding is not None
        binding.wire.close_now(cut=True)
        call.error = grpc.FutureCancelledError()
        assert isinstance(future.exception(), UnavailableError)
        assert future.code() is grpc.StatusCode.UNAVAILABLE
        assert "replaced" in future.details()
        assert "drain_timeout=30.0 s" in future.details()


@pytest.mark.parametrize("error", [rpc_error("UNAVAILABLE"), TypeError("bad")], ids=str)
def test_a_future_that_does_not_begin(error: Exception) -> None:
    """It counts as nothing in flight; grpc's error as a failure."""
    with Rig() as rig:
        with pytest.raises(type(error)):
            pending(rig, error)
        connection = rig.manager._pool.registry.all()[0]
        assert (connection.lifecycle.in_flight, connection.lifecycle.failures) == (
            0,
            isinstance(error, grpc.RpcError),
        )


def test_threads_are_answered_statuses_at_once() -> None:
    """Whatever a server answers, and however many threads: no answer becomes another error."""
    with Rig() as rig:
        face = rig.connected().face
        start, _, _ = face.quick(Rpc(), None)

        def work(worker: int) -> None:
            for number in range(5000):
                reason = f"{REPLICATE_VIOLATION_MARK} {worker} {number}"
                status = SimpleNamespace(code=5, reason=reason)
                face.answered(start, "/method", "request", None, status)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            for call in [Call(work, worker) for worker in range(8)]:
                call.value(60)
        finally:
            sys.setswitchinterval(interval)
            face.left(start)
