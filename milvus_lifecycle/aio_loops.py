"""What an event loop is asked to do, whether or not it still runs: four things and a hush."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

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
    """Run a coroutine that awaits nothing, loop or no loop."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()


def hush(task: asyncio.Future[Any] | None) -> None:
    """Have asyncio not complain of a task that its closed loop will never run again.

    What it waits for is hushed as well: an RPC of grpc is a task of its own.
    """
    for _ in range(_CHAIN):
        if not isinstance(task, asyncio.Task):
            return
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # no public way
        task = getattr(task, "_fut_waiter", None)
