"""The journey of a failed RPC, counted: calls of the engine's functions, and moves between files.

    python -m tests.journey            the counts
    python -m tests.journey --print    every call, indented

One RPC fails, its caller asks whether to retry, is told yes at once because the connection has
recovered meanwhile, and the retry is answered: all in the caller's thread. A move is a call or a
return that leads from a file of the package to another one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import grpc

import milvus_lifecycle
from milvus_lifecycle import ConnectionConfig, ConnectionManager
from milvus_lifecycle.testing import Script, rpc_error, until

_PACKAGE = f"{Path(milvus_lifecycle.__file__).parent}/"
#: (is it a call, file, function)
Event = tuple[bool, str, str]


class Client:
    """Whoever holds the connection."""


def traced(work: Callable[[], object]) -> list[Event]:
    """The calls and returns of functions of the package, its `testing` aside."""
    events: list[Event] = []

    def note(frame: FrameType, event: str, arg: object) -> None:
        code = frame.f_code
        file = code.co_filename.removeprefix(_PACKAGE)
        ours = file != code.co_filename and not file.startswith("testing")
        if ours and event in ("call", "return"):
            events.append((event == "call", file, code.co_name))

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return events


def failed_rpc() -> list[Event]:
    """The journey, the second time that it is travelled: the first one imports."""
    script = Script()
    manager = ConnectionManager(transport=script.threads())
    client = Client()
    handler = manager.get_or_create(ConnectionConfig.from_uri("http://home:19530"), client=client)
    handler.rpc()

    life = handler.face.connection.lifecycle

    def fail() -> None:
        generation = life.generation
        script.plan("rpc", rpc_error("UNAVAILABLE"))
        try:
            handler.rpc()
        except grpc.RpcError as error:
            until(lambda: life.generation > generation, 10, "it did not recover")
            if handler.face.on_rpc_error(error):
                handler.rpc()

    fail()
    return traced(fail)


def moves(events: list[Event]) -> int:
    """How often the file changes."""
    return sum(here != there for here, there in _files(events))


def _files(events: list[Event]) -> Iterator[tuple[str, str]]:
    stack: list[str] = []
    here = events[0][1]
    for called, file, _ in events:
        if called:
            stack.append(file)
        else:
            stack.pop()
        there = stack[-1] if stack else here
        yield here, there
        here = there


def main() -> None:
    events = failed_rpc()
    depth = 0
    for called, file, function in events if "--print" in sys.argv else ():
        depth -= not called
        if called:
            print(f"{'  ' * depth}{function}  {file}")
        depth += called
    print(f"{sum(called for called, _, _ in events)} calls, {moves(events)} moves between files")


if __name__ == "__main__":
    main()
