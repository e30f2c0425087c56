"""The permanent channel of the threads flavour: a grpc.Channel whose inside can be swapped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import grpc

from ..core.checkout import Checkout
from ..core.connection import ManagedConnection
from ..core.face import TELEMETRY, Face, GrpcFuture, Refused, Start, UnavailableError
from ..core.pool import Pool
from ..core.requests import Procedure
from ..core.retry import Retry
from ..core.wire import Rpc
from ..errors import LifecycleError
from ..policy import parse_timeout
from .rpc import Method


class LifecycleChannel(Face, grpc.Channel):
    """What ``GrpcHandler`` takes for its channel, for as long as it lives."""

    def __init__(
        self, pool: Pool, drive: Callable[[Procedure[Any]], Any], connection: ManagedConnection
    ) -> None:
        super().__init__(pool, connection)
        self._drive = drive

    # -- RPCs: begin, and the methods that stubs ask for -----------------------------------

    def begin(self, timeout: float | None) -> Start:
        """Let an RPC in, waiting for a flight if need be. Raises what the caller is to see."""
        rpc = Rpc()
        try:
            if timeout is not None:
                timeout = parse_timeout(timeout)
            start, began, until = self.quick(rpc, timeout)
            if start is None:
                checkout = Checkout(self.pool, began, until)
                start = self._drive(checkout.admit(self, rpc, timeout))
            return start
        except LifecycleError as error:
            raise self.pool.transport.translate(error) from None

    def method(self, kind: str, name: str, args: Any, kwargs: Any) -> Any:
        of_kind: type[Method[LifecycleChannel]] = (
            _UnaryUnary if kind == "unary_unary" else _Streaming
        )
        if TELEMETRY in name:
            of_kind = _Unnoticed
        return of_kind(self, kind, name, args, kwargs)

    # -- errors: the retry decorator asks here ---------------------------------------------

    def on_rpc_error(self, error: Exception) -> bool:
        """``handler._on_rpc_error``: waits for a recovery; True if the call should be retried."""
        if isinstance(error, Refused):
            raise error.reason from None
        try:
            return bool(self._drive(Retry(self).ask(error)))
        except LifecycleError as failure:
            raise self.pool.transport.translate(failure) from None

    # -- the rest of grpc.Channel ----------------------------------------------------------

    def subscribe(self, callback: Callable[[Any], None], try_to_connect: bool = False) -> None:
        """Watch the channel in use, if there is one; not those that come after it."""
        raw = self._raw()
        if raw is not None:
            raw.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[Any], None]) -> None:
        raw = self._raw()
        if raw is not None:
            raw.unsubscribe(callback)

    def _raw(self) -> Any:
        binding = self.connection.lifecycle.binding
        return binding.wire.channel if binding is not None else None

    def close(self) -> None:
        """The handler was closed: so is its connection."""
        self.closed_by_handler()

    def __enter__(self) -> LifecycleChannel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _response(
    method: Any, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
) -> Any:
    """A unary method called without asking for its call: the response alone."""
    return method.with_call(request, timeout, metadata, **options)[0]


class _UnaryUnary(Method[LifecycleChannel]):
    __slots__ = ()

    __call__ = _response

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> tuple[Any, grpc.Call]:
        face = self._face
        try:
            start = face.begin(timeout)
        except LifecycleError as error:
            raise Refused(error) from None
        try:
            target, remaining, sent = self.prepare(start, metadata)
            response, call = target.with_call(request, timeout=remaining, metadata=sent, **options)
        except (grpc.RpcError, ValueError) as error:
            raise face.failed(start, error) from None
        except BaseException:
            start.binding.wire.interrupted = True
            raise
        finally:
            try:
                face.left(start)
            except BaseException:  # a signal handler's, before anything was counted
                face.left(start)
                raise
        face.answered(start, self._method, request, metadata, response)
        return response, call

    def future(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> _Future:
        face = self._face
        start = face.begin(timeout)
        try:
            target, remaining, sent = self.prepare(start, metadata)
            call = target.future(request, timeout=remaining, metadata=sent, **options)
        except BaseException as error:
            face.left(start)
            if isinstance(error, (grpc.RpcError, ValueError)):
                raise face.failed(start, error) from None
            start.binding.wire.interrupted = True
            raise
        answered = partial(face.answered, start, self._method, request, metadata)
        return _Future(face, start, call, answered)


class _Unnoticed(Method[LifecycleChannel]):
    """Unary methods that leave no trace (see ``Face.unnoticed``)."""

    __slots__ = ()

    __call__ = _response

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> tuple[Any, grpc.Call]:
        target, remaining, sent = self.prepare(self._face.unnoticed(timeout), metadata)
        response, call = target.with_call(request, timeout=remaining, metadata=sent, **options)
        return response, call


class _Streaming(Method[LifecycleChannel]):
    """Streaming methods: let in and counted like the others; their calls are grpc's own."""

    __slots__ = ()

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> Any:
        face = self._face
        start = face.begin(timeout)
        try:
            target, remaining, sent = self.prepare(start, metadata)
            call = target(request, timeout=remaining, metadata=sent, **options)
        except BaseException as error:
            face.left(start)
            if isinstance(error, grpc.RpcError):
                raise face.failed(start, error) from None
            start.binding.wire.interrupted = True
            raise
        if isinstance(call, grpc.Call):
            if not call.add_callback(partial(face.left, start)):
                face.left(start)
        else:
            face.left(start)
        return call


def _handed_on(name: str) -> Callable[..., Any]:
    """A method of a _Future that grpc's own call answers."""
    return lambda future, *args, **kwargs: getattr(future._call, name)(*args, **kwargs)


class _Future(grpc.Call, GrpcFuture):
    """A grpc future that reports its own failure and never shows a cut as a cancellation."""

    def __init__(
        self, face: LifecycleChannel, start: Start, call: Any, answered: Callable[[Any], None]
    ) -> None:
        self._face = face
        self._start = start
        self._call = call
        self._answered = answered
        self._seen: Exception | None = None
        self._cancelled_by_user = False
        call.add_done_callback(self._finished)

    def _finished(self, call: Any) -> None:
        face, start = self._face, self._start
        try:
            if call.code() is grpc.StatusCode.OK:
                self._answered(call.result())
            elif not self._cancelled_by_user:
                self._seen = face.failed(start, call)
        finally:
            face.left(start)

    def _verdict(self, error: Exception) -> Exception:
        """What ``result`` raises: grpc may wake its caller before it runs done-callbacks."""
        if self._cancelled_by_user:
            return error
        if self._seen is None:
            self._seen = self._face.failed(self._start, error)
        return self._seen

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self._call.result(timeout)
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise self._verdict(error) from None

    def exception(self, timeout: float | None = None) -> Exception | None:
        try:
            error: Exception | None = self._call.exception(timeout)
        except grpc.FutureCancelledError as cancelled:
            error = self._verdict(cancelled)
            if error is cancelled:
                raise
            return error
        return None if error is None else self._verdict(error)

    def code(self) -> Any:
        code = self._call.code()
        if isinstance(self._seen, UnavailableError):
            return self._seen.code()
        return code

    def details(self) -> Any:
        details = self._call.details()
        if isinstance(self._seen, UnavailableError):
            return self._seen.details()
        return details

    def cancel(self) -> bool:
        self._cancelled_by_user = True
        return bool(self._call.cancel())

    def cancelled(self) -> bool:
        return self._cancelled_by_user and bool(self._call.cancelled())

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        self._call.add_done_callback(lambda call: fn(self))

    initial_metadata = _handed_on("initial_metadata")
    trailing_metadata = _handed_on("trailing_metadata")
    is_active = _handed_on("is_active")
    time_remaining = _handed_on("time_remaining")
    add_callback = _handed_on("add_callback")
    running = _handed_on("running")
    done = _handed_on("done")
    traceback = _handed_on("traceback")
