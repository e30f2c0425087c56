"""Real signals whose handlers raise, at random moments of real calls, and in readers of records.

`tests/unit/test_interrupts.py` tries each place in the engine's code, one by one; here gRPC, the
event loop and pymilvus are interrupted, too.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from random import Random
from types import FrameType
from typing import Any

import grpc.aio
import pytest
from pymilvus import AsyncMilvusClient

import milvus_lifecycle as ml
from tests.flavours import Flavour, each_flavour
from tests.observe import came_true
from tests.processes import FakeMilvusProcess
from tests.stock import Body, Env, Kind, run, verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ROUNDS = 200
#: In its first 5 ms a call fails and the connection recovers; then it sleeps before its retry.
MOMENTS = 0.005
#: A call that nothing wedges takes some milliseconds; one that waits for nobody, this (seconds).
BUDGET = 5.0


class Interrupt(BaseException):
    """What the signal handler raises, as a soft time limit of a task queue does."""


class _Alarm:
    """SIGALRM, raised once; with ``engine_only`` as soon as the engine's own code is reached.

    An event loop whose own code is interrupted loses wake-ups, with any library on it.
    """

    def __init__(self, engine_only: bool) -> None:
        self._engine_only = engine_only
        self._sprung = False
        signal.signal(signal.SIGALRM, self._arrive)

    def _arrive(self, number: int, frame: FrameType | None) -> None:
        assert frame is not None
        if self._engine_only and "/milvus_lifecycle/" not in frame.f_code.co_filename:
            signal.setitimer(signal.ITIMER_REAL, 0.00002)
            return
        self._sprung = True
        raise Interrupt

    def interrupt(self, work: Callable[[], Any], after: float) -> bool:
        """Do ``work``, and interrupt it after so many seconds. False if it ended before."""
        self._sprung = False
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, after)
                work()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupt:
            pass
        except Exception:  # what `threading` makes of it, where it is interrupted itself
            if not self._sprung:
                raise
        return self._sprung


class _Scene:
    """A client in the main thread, where signals arrive, and a server whose calls fail first."""

    def __init__(self, env: Env, flavour: str) -> None:
        self._env, self._flavour = env, flavour
        self._server = env.enter(FakeMilvusProcess(flaky=["ShowCollections"]))
        self._loop = asyncio.new_event_loop()
        self.wedges: list[str] = []
        self._client: Any = None
        if flavour == "threads":
            self._client = env.client(self._server.uri)
        else:
            self._loop.set_exception_handler(lambda loop, context: None)
            # With its last channel grpc.aio shuts down, and does not survive an interrupt of that.
            self._other = grpc.aio.insecure_channel("127.0.0.1:1")
            self._loop.run_until_complete(self._connect())
        self.alarm = _Alarm(engine_only=flavour == "asyncio")

    async def _connect(self) -> None:
        self._client = AsyncMilvusClient(self._server.uri)
        await self._client.list_collections()

    def call(self) -> Any:
        called = self._client.list_collections()
        return called if self._flavour == "threads" else self._loop.run_until_complete(called)

    def served(self) -> bool:
        """Is a call served, well within the budget? If not, all is thrown away."""
        began = time.monotonic()
        try:
            self.call()
            error = None
        except Exception as raised:
            error = raised
        took = time.monotonic() - began
        if error is None and took < BUDGET / 2:
            return True
        self.wedges.append(f"{took:.1f} s, {error!r}")
        closing = self.manager.close_all()
        if self._flavour == "asyncio":
            self._loop.run_until_complete(closing)
        return False

    @property
    def manager(self) -> Any:
        if self._flavour == "threads":
            return ml.ConnectionManager.get_instance()
        return self._loop.run_until_complete(self._manager())

    async def _manager(self) -> Any:
        return ml.AsyncConnectionManager.get_instance()

    def quiet(self) -> bool:
        """Is there no RPC that counts as running?"""
        if self._flavour == "asyncio":
            self._loop.run_until_complete(asyncio.sleep(0.01))
        rows = self.manager.get_stats()["connections"]
        return all(row["in_flight"] == 0 for row in rows)


@each_flavour(recovery_budget=BUDGET)
def at_random(env: Env, flavour: Flavour) -> None:
    """However often calls are interrupted, the next one is served, and nothing counts on."""
    scene, random = _Scene(env, flavour.name), Random(9)
    hit = 0
    for _ in range(ROUNDS):
        hit += scene.alarm.interrupt(scene.call, random.uniform(0.0001, MOMENTS))
        scene.served()
    quiet = came_true(scene.quiet, 20)
    verdict(
        not scene.wedges and hit > ROUNDS / 4 and quiet,
        f"{hit} of {ROUNDS} calls interrupted, wedges: {scene.wedges},"
        f" {'nothing' if quiet else 'something'} counts as running",
    )


class _Slow(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        time.sleep(0.2)


@each_flavour(recovery_budget=BUDGET)
def in_a_log_handler(env: Env, flavour: Flavour) -> None:
    """A log handler takes 0.2 s for a record, and a signal comes after 0.1 s."""
    scene = _Scene(env, flavour.name)
    logger = logging.getLogger("milvus_lifecycle")
    logger.addHandler(_Slow())
    logger.setLevel(logging.DEBUG)
    scene.alarm.interrupt(scene.call, 0.1)
    served = scene.served()
    verdict(served and came_true(scene.quiet, 20), f"the next call is served: {served}")


@pytest.mark.parametrize("body", [*at_random, *in_a_log_handler], ids=lambda body: body.__name__)
def test_interrupted(body: Body) -> None:
    """Each body's promise about interrupted calls holds on the engine."""
    outcome = run("engine", body)
    assert outcome.kind is Kind.PASSED, str(outcome)
