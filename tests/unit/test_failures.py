"""What is kept of an error: it tells the same, and holds nothing of the call that failed."""

from __future__ import annotations

import gc
import weakref

import grpc
import pytest

from milvus_lifecycle.errors import (
    ConnectFailed,
    Failure,
    RecoveryExhausted,
    TopologyError,
    TopologyReason,
    brief,
    classify,
    error_code,
    shown,
    summarize,
)


class _Rpc(grpc.RpcError):
    """What grpc raises: code and details are methods."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return "connection refused"


class _Status(Exception):
    """What pymilvus raises: code and message are attributes."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__()
        self.code = code
        self.message = message


class _Rigid(Exception):
    """Cannot be made without its keyword argument."""

    def __new__(cls, *args: object, way: str) -> _Rigid:
        return super().__new__(cls, *args)

    def __init__(self, *args: object, way: str) -> None:
        super().__init__(*args)


ERRORS = (
    _Rpc(),
    _Status(101, "collection not loaded"),
    RecoveryExhausted(address="host:19530", attempts=3, elapsed=1.0, last_error=_Rpc()),
    TopologyError(TopologyReason.EMPTY, "no clusters", address="host:443"),
    ConnectionRefusedError(111, "Connection refused"),
    KeyError("name"),
    _Rigid("one", way="hard"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_it_tells_the_same(error: BaseException) -> None:
    """It means and shows the same, and so does what users see of it, also when kept twice."""
    known = classify(error), error_code(error), brief(error)
    for kept in (summarize(error), summarize(summarize(error).error)):
        assert (kept.kind, kept.code, kept.text) == known
        seen = kept.error
        assert (classify(seen), error_code(seen), brief(seen)) == known


def test_an_rpc_summary_is_an_rpc_error() -> None:
    """Who looks at the last error of a failure finds the code and the details of its RPC."""
    copy = summarize(_Rpc()).error
    assert isinstance(copy, grpc.RpcError)
    assert copy.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined,unused-ignore]
    assert classify(copy) is Failure.TRANSIENT
    assert str(copy) == "UNAVAILABLE: connection refused"


class _Data:
    """Stands for a request, or for a call object that holds a socket."""


def _fail_once(kind: type[Exception], data: _Data) -> None:
    raise kind("of this kind")


def _fail(kind: type[Exception], data: _Data) -> BaseException:
    """Keep an error whose frames, and whose context's frames, held the data."""
    try:
        try:
            _fail_once(ValueError, data)
        except ValueError:
            _fail_once(kind, data)
    except Exception as caught:
        return summarize(caught).error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize("kind", [_Rpc, ConnectFailed, KeyError])
def test_it_holds_nothing_of_the_call(kind: type[Exception]) -> None:
    """What the frames of a failed call held is freed at once while its error is kept."""
    data = _Data()
    watched = weakref.ref(data)
    gc.disable()
    try:
        copy = _fail(kind, data)
        del data
        assert watched() is None
    finally:
        gc.enable()
    assert copy.__traceback__ is None
    assert copy.__context__ is None


def test_nothing_of_nothing() -> None:
    """Without an error there is nothing to keep."""
    assert shown(None) is None
