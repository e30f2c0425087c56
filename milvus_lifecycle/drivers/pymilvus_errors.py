"""The engine's errors as pymilvus's users know errors: each is a MilvusException too.

They print under the names by which ``milvus_lifecycle`` exports what they derive from, so that
``except milvus_lifecycle.RecoveryExhausted`` catches what a log calls so. ``code`` is one of
pymilvus's, an int: CONNECT_FAILED (2) for all that is about a connection.
"""

from __future__ import annotations

from pymilvus.client.types import Status
from pymilvus.exceptions import ConnectionConfigException, ErrorCode, MilvusException

from .. import errors


class LifecycleError(errors.LifecycleError, MilvusException):
    """Any other error of the engine."""


class ConfigError(errors.ConfigError, ConnectionConfigException):
    """A bad URI, token, TLS file or option."""

    # Raised with and without pymilvus in the program: it reads the same.
    __str__ = errors.ConfigError.__str__


class ConnectFailed(errors.ConnectFailed, MilvusException):
    """The first connect failed."""


class RecoveryExhausted(errors.RecoveryExhausted, MilvusException):
    """No working channel within ``recovery_budget``."""


class PermanentFailure(errors.PermanentFailure, MilvusException):
    """The server refuses this client."""


class DeadlineExceeded(errors.DeadlineExceeded, MilvusException):
    """The call's own timeout ended first."""


class ConnectionClosed(errors.ConnectionClosed, MilvusException):
    """The connection was closed under the call."""


class UnknownHandler(errors.UnknownHandler, MilvusException):
    """Not a handler of this manager."""


class LoopMismatch(errors.LoopMismatch, MilvusException):
    """An asyncio connection outside its event loop."""


class TopologyError(errors.TopologyError, MilvusException):
    """A global cluster's topology is unusable."""


_CLASSES: dict[type[errors.LifecycleError], tuple[type[errors.LifecycleError], int]] = {
    errors.ConfigError: (ConfigError, ErrorCode.UNEXPECTED_ERROR),
    errors.ConnectFailed: (ConnectFailed, Status.CONNECT_FAILED),
    errors.RecoveryExhausted: (RecoveryExhausted, Status.CONNECT_FAILED),
    errors.PermanentFailure: (PermanentFailure, Status.CONNECT_FAILED),
    errors.DeadlineExceeded: (DeadlineExceeded, Status.CONNECT_FAILED),
    errors.ConnectionClosed: (ConnectionClosed, Status.CONNECT_FAILED),
    errors.TopologyError: (TopologyError, Status.CONNECT_FAILED),
    errors.UnknownHandler: (UnknownHandler, Status.ILLEGAL_ARGUMENT),
    errors.LoopMismatch: (LoopMismatch, Status.ILLEGAL_ARGUMENT),
}


def translate(error: errors.LifecycleError) -> Exception:
    """The same error, as a MilvusException with pymilvus's ``code`` and ``message``."""
    if isinstance(error, MilvusException):
        return error
    cls, code = _CLASSES.get(type(error), (LifecycleError, ErrorCode.UNEXPECTED_ERROR))
    translated = cls.__new__(cls, *error.args)
    translated.args = error.args
    vars(translated).update(vars(error))
    # What MilvusException.__init__ sets; its signature differs from LifecycleError's.
    vars(translated).update(vars(MilvusException(code, str(error.args[0]))))
    return translated
