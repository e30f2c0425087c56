"""Errors: what they say, what they hide, and what foreign errors mean to the engine."""

from __future__ import annotations

import pickle
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_lifecycle import errors
from milvus_lifecycle.errors import (
    ConfigError,
    ConnectFailed,
    Failure,
    LifecycleError,
    PermanentFailure,
    RecoveryExhausted,
    TopologyError,
    TopologyReason,
    brief,
    classify,
    error_code,
    redact,
)

TREE = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, LifecycleError)
]


class FakeRpcError(grpc.RpcError):
    """A gRPC error whose code and details are whatever the test says."""

    def __init__(self, code: Any = None, details: Any = None) -> None:
        super().__init__()
        self._code, self._details = code, details

    def code(self) -> Any:
        if isinstance(self._code, Exception):
            raise self._code
        return self._code

    def details(self) -> Any:
        if isinstance(self._details, Exception):
            raise self._details
        return self._details


class FakeMilvusError(Exception):
    """Looks like pymilvus's MilvusException: `code` and `message`."""

    def __init__(self, code: Any, message: Any) -> None:
        super().__init__()
        self.code, self.message = code, message

    def __str__(self) -> str:
        return f"<FakeMilvusError: (code={self.code}, message={self.message})>"


class Unprintable(Exception):
    """An error that cannot even be printed."""

    @property
    def code(self) -> int:
        raise RuntimeError("no code")

    @property
    def message(self) -> str:
        raise RuntimeError("no message")

    def __str__(self) -> str:
        raise RuntimeError("no text")


def build(cls: type[LifecycleError], message: str = "") -> LifecycleError:
    if issubclass(cls, TopologyError):
        return cls(TopologyReason.EMPTY, message)
    return cls(message)


@pytest.mark.parametrize("cls", TREE)
def test_tree_is_drawn_in_the_docstring(cls: type[LifecycleError]) -> None:
    """Whoever reads the module sees every error class in the drawing."""
    assert f" {cls.__name__} " in (errors.__doc__ or "")


@pytest.mark.parametrize("cls", TREE)
def test_every_error_has_something_to_say(cls: type[LifecycleError]) -> None:
    """Even an error raised without a message says what happened."""
    assert len(str(build(cls))) > 20


def test_message_says_what_where_and_what_to_do() -> None:
    """A failed connect names the address, the attempts, the last error and a way out."""
    error = ConnectFailed(
        address="db:19530",
        attempts=3,
        elapsed=2.04,
        last_error=FakeRpcError(grpc.StatusCode.UNAVAILABLE, "connection refused"),
    )
    text = str(error)
    for part in ("could not connect", "db:19530", "3 attempts in 2.0 s", "Check that Milvus"):
        assert part in text
    assert "UNAVAILABLE: connection refused" in text
    assert "1 attempt in" in str(RecoveryExhausted(attempts=1))
    assert "after 1.5 s" in str(errors.DeadlineExceeded(elapsed=1.5))


def test_config_error_is_a_value_error() -> None:
    """`except ValueError` catches a bad policy or URI, as the design promises."""
    error = ConfigError("linger=True is not a number", field="linger")
    assert isinstance(error, ValueError)
    assert error.field == "linger"


@pytest.mark.parametrize("cls", TREE)
def test_errors_survive_pickling(cls: type[LifecycleError]) -> None:
    """An error reaches the parent of a worker process, even with a gRPC error inside."""
    error = build(cls, "it broke")
    error.last_error = FakeRpcError(grpc.StatusCode.UNAVAILABLE, lambda: None)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert copy.__dict__ == {**error.__dict__, "last_error": None}


@pytest.mark.parametrize(
    ("error", "failure", "code"),
    [
        (FakeRpcError(grpc.StatusCode.UNAVAILABLE), Failure.TRANSIENT, "UNAVAILABLE"),
        (FakeRpcError(grpc.StatusCode.DEADLINE_EXCEEDED), Failure.DEADLINE, "DEADLINE_EXCEEDED"),
        (FakeRpcError(grpc.StatusCode.UNAUTHENTICATED), Failure.PERMANENT, "UNAUTHENTICATED"),
        (FakeRpcError(grpc.StatusCode.PERMISSION_DENIED), Failure.PERMANENT, "PERMISSION_DENIED"),
        (FakeRpcError(grpc.StatusCode.CANCELLED), Failure.OTHER, "CANCELLED"),
        (FakeRpcError(None), Failure.OTHER, "FakeRpcError"),
        (FakeRpcError(RuntimeError("no code")), Failure.OTHER, "FakeRpcError"),
        (grpc.RpcError(), Failure.OTHER, "RpcError"),
        (
            FakeMilvusError(65535, "x STREAMING_CODE_REPLICATE_VIOLATION y"),
            Failure.REPLICATE_VIOLATION,
            "REPLICATE_VIOLATION",
        ),
        (FakeMilvusError(101, "collection not loaded"), Failure.NOT_READY, "101"),
        (FakeMilvusError(100, "collection not found"), Failure.OTHER, "100"),
        (FakeMilvusError(grpc.StatusCode.UNAVAILABLE, "m"), Failure.OTHER, "UNAVAILABLE"),
        (FakeMilvusError(101, None), Failure.OTHER, "101"),
        (FakeMilvusError(10**5000, "m"), Failure.OTHER, "FakeMilvusError"),
        (ConfigError("bad"), Failure.PERMANENT, "ConfigError"),
        (PermanentFailure("no"), Failure.PERMANENT, "PermanentFailure"),
        (RecoveryExhausted("no"), Failure.OTHER, "RecoveryExhausted"),
        (TopologyError(TopologyReason.NO_PRIMARY), Failure.OTHER, "TOPOLOGY_NO_PRIMARY"),
        (Unprintable(), Failure.OTHER, "Unprintable"),
        (KeyboardInterrupt(), Failure.OTHER, "KeyboardInterrupt"),
        (ValueError("Cannot invoke RPC on closed channel!"), Failure.OTHER, "ValueError"),
    ],
)
def test_classification(error: BaseException, failure: Failure, code: str) -> None:
    """Each kind of error means one thing to the engine and has one short code."""
    assert classify(error) is failure
    assert error_code(error) == code


def test_code_that_is_an_attribute() -> None:
    """A gRPC error whose `code` is the status itself, not a method, is still understood."""
    error = grpc.RpcError()
    vars(error)["code"] = grpc.StatusCode.UNAVAILABLE
    assert classify(error) is Failure.TRANSIENT


def test_engine_never_recovers_from_its_own_errors() -> None:
    """An engine error that is also a MilvusException stays OTHER, whatever its message says."""

    class Boundary(ConnectFailed, FakeMilvusError):
        def __init__(self) -> None:
            FakeMilvusError.__init__(self, 101, "STREAMING_CODE_REPLICATE_VIOLATION")
            ConnectFailed.__init__(self, "no server")

    assert classify(Boundary()) is Failure.OTHER
    assert error_code(Boundary()) == "Boundary"
    assert brief(Boundary()).startswith("Boundary: no server")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FakeRpcError(grpc.StatusCode.UNAVAILABLE, "refused\n  now"), "UNAVAILABLE: refused now"),
        (FakeRpcError(grpc.StatusCode.UNAVAILABLE, None), "UNAVAILABLE"),
        (FakeRpcError(grpc.StatusCode.UNAVAILABLE, RuntimeError()), "UNAVAILABLE"),
        (FakeMilvusError(101, "not loaded"), "101: not loaded"),
        (
            FakeMilvusError(None, "odd"),
            "FakeMilvusError: <FakeMilvusError: (code=None, message=odd)>",
        ),
        (OSError(2, "No such file"), "FileNotFoundError: [Errno 2] No such file"),
        (Unprintable(), "Unprintable"),
        (ConfigError("linger is bad"), "ConfigError: linger is bad"),
    ],
)
def test_brief(error: BaseException, line: str) -> None:
    """One line says code and text."""
    assert brief(error) == line


def test_brief_keeps_the_end_of_what_grpc_says() -> None:
    """gRPC tells the cause last; the engine's own errors tell who is concerned first."""
    said = "failed to connect to all addresses; " + "ipv4:127.0.0.1:1: " * 20
    cause = "SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate"
    line = brief(FakeRpcError(grpc.StatusCode.UNAVAILABLE, said + cause))
    assert line.startswith("UNAVAILABLE: failed to connect")
    assert line.endswith(cause)
    own = brief(TopologyError(TopologyReason.EMPTY, "x" * 300, address="host:443"))
    assert own.startswith("TopologyError")
    assert own.endswith("...")


@given(st.text(max_size=3000))
def test_brief_is_one_short_line(text: str) -> None:
    """Whatever a server says, a log line stays one printable line of 200 characters."""
    for error in (
        FakeRpcError(grpc.StatusCode.UNKNOWN, text),
        FakeMilvusError(7, text),
        OSError(text),
    ):
        line = brief(error)
        assert 0 < len(line) <= 200
        assert line.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach http://root:s3cr3t@host:19530/db",
        "cannot reach https://root:a/s3cr3t@host",
        "header Authorization: Bearer s3cr3t was refused",
        "authorization=Basic s3cr3t",
        "token=s3cr3t refused",
        "{'password': 's3cr3t and more', 'x': 1}",
        'api_key = "s3cr3t"',
        "API-Key: s3cr3t",
        "secret:s3cr3t",
    ],
)
def test_credentials_are_cut_out(text: str) -> None:
    """A credential inside a foreign error's text reaches no message and no log line."""
    assert "s3cr3t" not in redact(text)
    assert "s3cr3t" not in brief(OSError(text))
    assert "s3cr3t" not in str(ConnectFailed(text, last_error=OSError(text)))


def test_plain_text_is_left_alone() -> None:
    """Redaction costs no ordinary message its meaning."""
    text = "connection refused at ipv4:127.0.0.1:19530 (errno 111): see https://milvus.io/docs"
    assert redact(text) == text


@pytest.mark.parametrize("told", ["failed while resolving the user", "Socket closed"])
def test_the_advice_is_of_the_cause(told: str) -> None:
    """What gRPC says of a connect that failed may be a word of the server's, too."""
    last = FakeRpcError(grpc.StatusCode.UNAUTHENTICATED, told)
    refused = PermanentFailure(address="home:19530", last_error=last)
    assert str(refused).endswith(PermanentFailure.advice)
    lost = FakeRpcError(grpc.StatusCode.UNAVAILABLE, f"errors resolving home: {told}")
    assert "The name cannot be resolved" in str(ConnectFailed(last_error=lost))
