"""A fake Milvus on real gRPC that a test scripts; `python -m tests.servers` serves it alone."""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from pymilvus.grpc_gen import common_pb2, milvus_pb2
from typing_extensions import Self

from tests.network import free_port

SERVICE = milvus_pb2.DESCRIPTOR.services_by_name["MilvusService"]

#: What a connect and a probe need; a "flapping" server goes on answering these.
HANDSHAKE = ("Connect", "GetVersion")

#: Every held answer gives up after this many seconds, so that no worker outlives its test.
HOLD_LIMIT = 60.0


class RpcFailure(Exception):
    """Raised by an answer function: the RPC ends with this status code."""

    def __init__(self, code: grpc.StatusCode, details: str = "scripted") -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details


@dataclass(frozen=True)
class ServedCall:
    """One RPC as the server saw it; `at` in seconds of time.monotonic, `number` from 1."""

    method: str
    number: int
    at: float
    peer: str
    metadata: Mapping[str, str]
    time_remaining: float | None
    request: Any
    context: grpc.ServicerContext


Answer = Callable[[ServedCall], Any]


class Hold:
    """Answers that wait until the test lets them go, one by one or all."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets = 0
        self._open = False
        self._failure: RpcFailure | None = None
        self.waiting = 0

    def __call__(self, call: ServedCall) -> None:
        deadline = time.monotonic() + HOLD_LIMIT
        with self._changed:
            self.waiting += 1
            try:
                while not self._open and not self._tickets:
                    self._changed.wait(0.05)
                    if not call.context.is_active() or time.monotonic() > deadline:
                        return
                if not self._open:
                    self._tickets -= 1
                failure = self._failure
            finally:
                self.waiting -= 1
        if failure is not None:
            raise failure

    def release_one(self, failure: RpcFailure | None = None) -> None:
        with self._changed:
            self._failure = failure
            self._tickets += 1
            self._changed.notify_all()

    def release(self, failure: RpcFailure | None = None) -> None:
        with self._changed:
            self._failure = failure
            self._open = True
            self._changed.notify_all()


@dataclass(frozen=True)
class TlsFiles:
    """Paths of a self-made authority's certificate, and of a server's certificate and key.

    `mutual`: a server that has them asks clients for a certificate of the same authority.
    """

    ca: str
    certificate: str
    key: str
    mutual: bool = False

    def configure_cert(self, context: ssl.SSLContext) -> None:
        """Have a server use it, as trustme's certificates do it."""
        context.load_cert_chain(self.certificate, self.key)


def make_tls_files(directory: Path, *names: str) -> TlsFiles:
    """Write certificates for the names (default: localhost and 127.0.0.1) into a directory."""
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert(*(names or ("localhost", "127.0.0.1")))
    ca, certificate, key = (str(directory / f) for f in ("ca.pem", "server.pem", "server.key"))
    files = TlsFiles(ca, certificate, key)
    authority.cert_pem.write_to_path(files.ca)
    Path(files.certificate).write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(files.key)
    return files


class _Router(grpc.GenericRpcHandler):
    """Serves every method of MilvusService by asking the fake for the answer.

    Telemetry, too: as bytes, since pymilvus before 3.0 does not know its messages.
    """

    def __init__(self, answer: Callable[[str, Any, grpc.ServicerContext], Any]) -> None:
        self._answer = answer

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler[Any, Any] | None:
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        if service == "milvus.proto.milvus.ClientTelemetryService":
            return grpc.unary_unary_rpc_method_handler(partial(self._answer, name))
        if service != SERVICE.full_name or name not in SERVICE.methods_by_name:
            return None
        method = SERVICE.methods_by_name[name]
        request_class = GetMessageClass(method.input_type)

        def behaviour(request: Any, context: grpc.ServicerContext) -> Any:
            return self._answer(name, request, context)

        return grpc.unary_unary_rpc_method_handler(
            behaviour,
            request_deserializer=request_class.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )


class FakeMilvus:
    """A scriptable Milvus inside this process; it can stop and start again on its port.

    Without a script every method answers an empty success; Connect hands out identifiers
    1, 2, 3 ..., ShowCollections answers `collections`.
    """

    def __init__(
        self,
        port: int | None = None,
        *,
        host: str = "127.0.0.1",
        tls: TlsFiles | None = None,
        workers: int = 64,
        collections: Iterable[str] = ("demo",),
        options: Iterable[tuple[str, Any]] = (),
    ) -> None:
        self.host = host
        self.port = free_port(host) if port is None else port
        self.calls: list[ServedCall] = []
        self.identifiers: list[int] = []
        self.collections = list(collections)
        self._tls = tls
        self._workers = workers
        self._options = list(options)
        self._answers: dict[str, Answer] = {}
        self._fallback: tuple[Answer, frozenset[str]] | None = None
        self._lock = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._next_identifier = itertools.count(1)
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def uri(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.address}"

    # -- life --------------------------------------------------------------------------------

    def start(self) -> Self:
        server = grpc.server(
            futures.ThreadPoolExecutor(self._workers, thread_name_prefix="fake-milvus"),
            handlers=[_Router(self._serve)],
            # Two servers on one port would share its connections at random.
            options=[("grpc.so_reuseport", 0), *self._options],
        )
        deadline = time.monotonic() + 5
        while True:
            try:
                self._bind(server)
                break
            except RuntimeError:
                # The socket of the server that stopped just now may not be gone yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        server.start()
        self._server = server
        return self

    def _bind(self, server: grpc.Server) -> None:
        if self._tls is None:
            server.add_insecure_port(self.address)
            return
        credentials = grpc.dynamic_ssl_server_credentials(
            self._certificates(), self._certificates, self._tls.mutual
        )
        server.add_secure_port(self.address, credentials)

    def _certificates(self) -> Any:
        """Those of its files now: each handshake asks anew."""
        assert self._tls is not None
        pair = (Path(self._tls.key).read_bytes(), Path(self._tls.certificate).read_bytes())
        root = Path(self._tls.ca).read_bytes() if self._tls.mutual else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=root)

    def stop(self, grace: float | None = None) -> None:
        """Stop listening; running RPCs are cut at once, or after `grace` seconds."""
        server, self._server = self._server, None
        if server is not None:
            server.stop(grace).wait(10)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # -- script ------------------------------------------------------------------------------

    def on(self, method: str, answer: Answer) -> None:
        """Answer a method by a function: a message, None for the default, or RpcFailure."""
        self._answers[method] = answer

    def hold(self, method: str) -> Hold:
        """Let every RPC of a method wait for the test."""
        hold = Hold()
        self.on(method, hold)
        return hold

    def fail(
        self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, spare: Sequence[str] = HANDSHAKE
    ) -> None:
        """Answer every method but the spared ones with a status code."""

        def failing(call: ServedCall) -> None:
            raise RpcFailure(code)

        self._fallback = (failing, frozenset(spare))

    def fail_next(self, method: str, times: int = 1, *, details: str = "scripted") -> None:
        """Answer the next calls of a method with UNAVAILABLE, and those after them well."""
        left = iter(range(times))

        def answer(call: ServedCall) -> None:
            if next(left, None) is not None:
                raise RpcFailure(grpc.StatusCode.UNAVAILABLE, details)

        self.on(method, answer)

    def heal(self) -> None:
        """Forget the whole script."""
        self._answers.clear()
        self._fallback = None

    # -- what was seen -----------------------------------------------------------------------

    def count(self, method: str) -> int:
        return self._numbers.get(method, 0)

    def seen(self, method: str) -> list[ServedCall]:
        return [call for call in list(self.calls) if call.method == method]

    def _serve(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        with self._lock:
            self._numbers[method] = number = self._numbers.get(method, 0) + 1
            call = ServedCall(
                method=method,
                number=number,
                at=time.monotonic(),
                peer=context.peer(),
                metadata={key: str(value) for key, value in context.invocation_metadata()},
                time_remaining=context.time_remaining(),
                request=request,
                context=context,
            )
            self.calls.append(call)
        answer = self._answers.get(method)
        if self._fallback is not None and method not in self._fallback[1]:
            answer = answer or self._fallback[0]
        try:
            message = answer(call) if answer is not None else None
        except RpcFailure as failure:
            context.abort(failure.code, failure.details)
        return self._default(method) if message is None else message

    def _default(self, method: str) -> Any:
        if method == "Connect":
            with self._lock:
                identifier = next(self._next_identifier)
                self.identifiers.append(identifier)
            return milvus_pb2.ConnectResponse(identifier=identifier)
        if method not in SERVICE.methods_by_name:
            return b""
        if method == "GetVersion":
            return milvus_pb2.GetVersionResponse(version="v2.6-fake")
        if method == "ShowCollections":
            return milvus_pb2.ShowCollectionsResponse(collection_names=self.collections)
        return GetMessageClass(SERVICE.methods_by_name[method].output_type)()


def status(code: int, reason: str) -> common_pb2.Status:
    """A Milvus status that says an RPC failed although gRPC says OK."""
    return common_pb2.Status(code=code, reason=reason, error_code=common_pb2.UnexpectedError)


def _pause(seconds: float) -> Answer:
    def answer(call: ServedCall) -> None:
        time.sleep(seconds)

    return answer


def credentials(call: ServedCall) -> str:
    """The user and password, or the token, that an RPC came with."""
    return base64.b64decode(call.metadata.get("authorization", "")).decode()


def every_other(call: ServedCall) -> None:
    """An answer for ``on``: the first call fails, and every other one after it."""
    if call.number % 2:
        raise RpcFailure(grpc.StatusCode.UNAVAILABLE)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until standard input ends or a signal does."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int)
    parser.add_argument("--delay", action="append", default=[], metavar="METHOD=SECONDS")
    parser.add_argument("--flaky", action="append", default=[], metavar="METHOD")
    options = parser.parse_args(arguments)
    fake = FakeMilvus(options.port)
    for method in options.flaky:
        fake.on(method, every_other)
    for item in options.delay:
        method, _, seconds = item.partition("=")
        fake.on(method, _pause(float(seconds)))
    fake.start()
    print(f"listening on {fake.port}", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
