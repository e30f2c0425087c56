"""What asyncio and grpc.aio need to be told at the end of a loop, a call or a channel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, cast

import grpc.aio

#: A task waits for a task that waits for a task ... of grpc: no chain is longer than this.
_CHAIN = 8


def call_in(loop: asyncio.AbstractEventLoop, job: Callable[..., object], *args: object) -> None:
    """``call_soon_threadsafe``, or nothing if the loop is closed: nobody waits there any more."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(job, *args)


def settle(future: asyncio.Future[Any], result: object = None) -> None:
    """Set the result of a future whose waiter may have left."""
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """Set the exception of a future whose waiter may have left."""
    if not future.done():
        future.set_exception(error)


def run_at_once(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that awaits nothing, loop or no loop.

    grpc.aio up to 1.83 closes no channel without a running loop, whose tasks it goes through: here
    that is something that no task belongs to.
    """
    running = asyncio._get_running_loop()
    try:
        asyncio._set_running_loop(running or cast(Any, work))
        work.send(None)
    except StopIteration:
        return
    finally:
        asyncio._set_running_loop(running)
    work.close()


class _Gone:
    """Stands where a closed channel was. grpc.aio's own threads end only when no channel object
    is left, and in a process that forks before that the child can never use gRPC."""

    def __getattr__(self, name: str) -> Any:
        raise grpc.aio.UsageError("Channel is closed.")


#: what a wire has for its channel once that is closed
GONE = _Gone()


def hush(task: asyncio.Future[Any] | None) -> None:
    """Have asyncio not complain of a task that its closed loop will never run again.

    What it waits for is hushed as well: an RPC of grpc is a task of its own.
    """
    for _ in range(_CHAIN):
        if not isinstance(task, asyncio.Task):
            return
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # no public way
        task = getattr(task, "_fut_waiter", None)
