"""What asyncio is told at the end of a loop, a call or a channel."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import grpc.aio
import pytest

from milvus_lifecycle.drivers.aio_loops import GONE, call_in, fail, hush, run_at_once, settle
from tests.looping import in_loop


@in_loop
async def test_an_outcome_that_comes_too_late_is_dropped() -> None:
    """A waiter that has left, or was answered, is not disturbed by a second outcome."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Any] = loop.create_future()
    settle(answered, "first")
    settle(answered, "second")
    fail(answered, ValueError("third"))
    assert await answered == "first"
    left: asyncio.Future[Any] = loop.create_future()
    left.cancel()
    settle(left)
    fail(left, ValueError("late"))
    assert left.cancelled()


@in_loop
async def test_a_failure_is_raised_where_it_is_waited_for() -> None:
    """The waiter gets the error itself."""
    waited: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    error = ValueError("of the work")
    fail(waited, error)
    with pytest.raises(ValueError, match="of the work") as caught:
        await waited
    assert caught.value is error


def test_a_closed_loop_is_called_for_nothing() -> None:
    """Nobody waits there any more: no error, and the job is not run."""
    loop = asyncio.new_event_loop()
    done: list[int] = []
    loop.close()
    call_in(loop, done.append, 1)
    assert done == []


def test_work_that_does_not_wait_is_done_without_a_loop() -> None:
    """And work that would wait is ended where it wanted to, its cleanup included."""
    done: list[str] = []

    async def work(wait: bool) -> None:
        try:
            if wait:
                await asyncio.sleep(1000)
            done.append("done")
        finally:
            done.append("cleaned up")

    run_at_once(work(False))
    assert done == ["done", "cleaned up"]
    loop = asyncio.new_event_loop()

    async def inside() -> None:
        run_at_once(work(True))

    loop.run_until_complete(inside())
    loop.close()
    assert done == ["done", "cleaned up", "cleaned up"]


def test_a_channel_that_is_gone_says_so() -> None:
    """Whatever is asked of it, it answers as grpc does for a closed channel."""
    with pytest.raises(grpc.aio.UsageError, match="closed"):
        GONE.unary_unary("/method")


@pytest.mark.parametrize("length", [1, 3, 12])
def test_tasks_of_a_dead_loop_are_hushed(length: int) -> None:
    """A task and what it waits for go without a word when their loop is closed under them.

    A chain longer than any of grpc's is followed so far and no further: it may be endless.
    """
    loop, complaints = asyncio.new_event_loop(), []
    loop.set_exception_handler(lambda _, context: complaints.append(context["message"]))
    tasks: list[asyncio.Task[None]] = []

    async def link(deep: int) -> None:
        if deep == 1:
            await loop.create_future()
        tasks.append(loop.create_task(link(deep - 1)))
        await tasks[-1]

    tasks.append(loop.create_task(link(length)))
    for _ in range(length + 2):
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert len(tasks) == length
    loop.close()
    hush(tasks[0])
    hush(None)
    tasks.clear()
    gc.collect()
    assert len(complaints) == max(0, length - 8)
