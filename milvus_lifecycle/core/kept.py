"""What a connection keeps of an error: enough to tell of it, and nothing that it would keep alive.

An error's traceback holds the frames that it went through: with them the requests, and gRPC's call
object, which keeps the socket of a channel open that was closed.
"""

from __future__ import annotations

from typing import overload

import grpc

from ..errors import brief, error_code


class RpcSummary(grpc.RpcError):
    """Code and details of an RPC's error; the details as `brief` shows them."""

    def __init__(self, error: grpc.RpcError) -> None:
        name, line = error_code(error), brief(error)
        self._code = grpc.StatusCode.__members__.get(name, grpc.StatusCode.UNKNOWN)
        self._details = line.removeprefix(name).removeprefix(": ")
        super().__init__(line)

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@overload
def kept(error: BaseException) -> BaseException: ...


@overload
def kept(error: None) -> None: ...


@overload
def kept(error: BaseException | None) -> BaseException | None: ...


def kept(error: BaseException | None) -> BaseException | None:
    """Return what to keep of `error`: a copy without traceback, cause and context."""
    if error is None:
        return None
    if isinstance(error, grpc.RpcError):
        return RpcSummary(error)
    kind = type(error)
    try:
        # Not through __init__, which takes other arguments in each class.
        copy: BaseException = kind.__new__(kind, *error.args)
        copy.__dict__.update(error.__dict__)
    except Exception:  # better without its own traceback than not at all
        return error.with_traceback(None)
    return copy
