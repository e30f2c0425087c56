"""The engine's errors as pymilvus's users know errors: each is a MilvusException too."""

from __future__ import annotations

import grpc
from pymilvus.client.types import Status
from pymilvus.exceptions import ConnectionConfigException, ErrorCode, MilvusException

from .. import errors


class MilvusLifecycleError(errors.LifecycleError, MilvusException):
    """Any other error of the engine."""


class MilvusConfigError(errors.ConfigError, ConnectionConfigException):
    """A bad URI, token, TLS file or option."""

    # Raised with and without pymilvus in the program: it reads the same.
    __str__ = errors.ConfigError.__str__


class MilvusConnectFailed(errors.ConnectFailed, MilvusException):
    """The first connect failed."""


class MilvusRecoveryExhausted(errors.RecoveryExhausted, MilvusException):
    """No working channel within ``recovery_budget``."""


class MilvusPermanentFailure(errors.PermanentFailure, MilvusException):
    """The server refuses this client."""


class MilvusDeadlineExceeded(errors.DeadlineExceeded, MilvusException):
    """The call's own timeout ended first."""


class MilvusConnectionClosed(errors.ConnectionClosed, MilvusException):
    """The connection was closed under the call."""


class MilvusUnknownHandler(errors.UnknownHandler, MilvusException):
    """Not a handler of this manager."""


class MilvusLoopMismatch(errors.LoopMismatch, MilvusException):
    """An asyncio connection outside its event loop."""


_CLASSES: dict[type[errors.LifecycleError], tuple[type[errors.LifecycleError], object]] = {
    errors.ConfigError: (MilvusConfigError, ErrorCode.UNEXPECTED_ERROR),
    errors.ConnectFailed: (MilvusConnectFailed, Status.CONNECT_FAILED),
    errors.RecoveryExhausted: (MilvusRecoveryExhausted, grpc.StatusCode.UNAVAILABLE),
    errors.PermanentFailure: (MilvusPermanentFailure, Status.CONNECT_FAILED),
    errors.DeadlineExceeded: (MilvusDeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    errors.ConnectionClosed: (MilvusConnectionClosed, Status.CONNECT_FAILED),
    errors.UnknownHandler: (MilvusUnknownHandler, Status.ILLEGAL_ARGUMENT),
    errors.LoopMismatch: (MilvusLoopMismatch, Status.ILLEGAL_ARGUMENT),
}


def translate(error: errors.LifecycleError) -> Exception:
    """The same error, as a MilvusException with pymilvus's ``code`` and ``message``."""
    if isinstance(error, MilvusException):
        return error
    cls, code = _CLASSES.get(type(error), (MilvusLifecycleError, ErrorCode.UNEXPECTED_ERROR))
    translated = cls.__new__(cls, *error.args)
    translated.args = error.args
    vars(translated).update(vars(error))
    # What MilvusException.__init__ sets; its signature differs from LifecycleError's.
    vars(translated).update(vars(MilvusException(code, str(error.args[0]))))
    return translated
