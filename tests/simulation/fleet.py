"""Scripted servers by address: up, refusing, denying or silent, for both flavours alike."""

from __future__ import annotations

from enum import Enum
from functools import partial

from milvus_lifecycle.testing import FakeClock, Operation, Script, rpc_error


class Mode(Enum):
    """What a server does with whatever arrives."""

    UP = "up"
    #: nobody listens: UNAVAILABLE at once
    REFUSES = "refuses"
    #: it listens, and takes no credentials: UNAUTHENTICATED
    DENIES = "denies"
    #: a black hole: nothing is answered before the deadline
    SILENT = "silent"


class Fleet(Script):
    """A script whose operations end as the server at their address is just now."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        #: every mode that each server was in, the latest last
        self.history: dict[str, list[Mode]] = {}
        #: since when it is in that mode (seconds of the clock)
        self.since: dict[str, float] = {}
        #: requests that are answered only when somebody says so, whatever their server does
        self.slow: set[str] = set()
        #: requests that have reached a channel
        self.admitted: set[str] = set()
        self._parked: list[Operation] = []

    def add(self, address: str) -> None:
        """A server that was always up."""
        self.history[address], self.since[address] = [Mode.UP], float("-inf")

    def held(self, kind: str | None = None) -> list[Operation]:
        """What waits for its server. Not what has yet to hear whether it has to wait: whoever
        lets time pass while a thread is about to set its alarm would make it ring too late."""
        return [op for op in list(self._parked) if kind in (None, op.kind) and not op.done.done()]

    def turn(self, address: str, mode: Mode) -> None:
        """The server changes; what waits for it ends accordingly."""
        self.history[address].append(mode)
        self.since[address] = self.clock()
        for operation in self.held():
            if operation.address == address:
                self.finish(operation)

    def answer(self, request: str) -> None:
        """The server comes to the end of a slow request."""
        self.slow.discard(request)
        for operation in self.held("rpc"):
            if operation.request == request:
                super().finish(operation)

    def finish(self, operation: Operation) -> None:
        """End an operation as its server does, if it does."""
        mode = self.history[operation.address][-1]
        if operation.kind == "rpc":
            self.admitted.add(operation.request)
        if operation.kind == "open":
            super().finish(operation)
        elif operation.request in self.slow or mode is Mode.SILENT:
            if operation.timeout is not None:
                overdue = partial(operation.fail, rpc_error("DEADLINE_EXCEEDED"))
                self.clock.at(self.clock() + operation.timeout, overdue)
            if operation not in self._parked:
                self._parked.append(operation)
            if operation.channel is not None and operation.channel.closed:
                operation.fail(rpc_error("CANCELLED", "Channel closed!"))
        elif mode is Mode.UP:
            super().finish(operation)
        else:
            code = "UNAVAILABLE" if mode is Mode.REFUSES else "UNAUTHENTICATED"
            operation.fail(rpc_error(code))

    def calm(self, address: str, seconds: float) -> bool:
        """Is the server up, for so long that nobody is still waiting to try it again?"""
        steady = self.clock() - self.since[address] >= seconds
        return self.history[address][-1] is Mode.UP and steady
