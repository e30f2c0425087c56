"""Schedules of the asyncio driver: the real manager on a simulated event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, ClassVar

from grpc import RpcError

from milvus_lifecycle.core.facts import Located
from milvus_lifecycle.core.wire import Rpc
from milvus_lifecycle.drivers import aio as aio_module
from milvus_lifecycle.drivers import aio_channel as channel_module
from milvus_lifecycle.errors import LifecycleError
from milvus_lifecycle.managers import AsyncConnectionManager
from milvus_lifecycle.testing import AsyncFakeHandler, rpc_error
from tests.simulation import laws
from tests.simulation.actors import Died
from tests.simulation.aio_loop import ScheduledLoop
from tests.simulation.campaign import replaced
from tests.simulation.kernel import EPOCH, LONGEST
from tests.simulation.schedules import World, watch, watched_lead
from tests.simulation.users import Call, Life
from tests.simulation.weather import Channel, Operation


class AioChannel(Channel):
    """Its calls are futures."""

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._call

    def _call(self, request: Any, timeout: float | None, **about: Any) -> asyncio.Future[Any]:
        call: asyncio.Future[Any] = self.world.kernel.start(self.begin("rpc", timeout))
        self.rpcs += 1
        call.add_done_callback(self._ended)
        return call

    def _ended(self, _: object) -> None:
        self.rpcs -= 1

    async def close(self, grace: float | None = None) -> None:
        self.shut()


def watched(world: AioWorld) -> None:
    """Give a world its manager, as shipped."""
    watch(world, AsyncConnectionManager(world.policy, **world.seams()))
    driver = world.manager._driver
    wait, fly = driver._wait, driver._fly

    async def wait_and_note(request: Any) -> None:
        with world.waits(request):
            await wait(request)

    async def fly_and_note(recovery: Any) -> None:
        try:
            with world.leads(recovery.connection, recovery.flight):
                await fly(recovery)
        except laws.Broken as error:
            world.found(error)

    driver._wait, driver._fly = wait_and_note, fly_and_note


class BlockingLocator:
    """Finds the place by I/O that blocks: the driver asks it on another thread."""

    def __init__(self, world: AioWorld) -> None:
        self.world = world

    def locate(self, connection: Any, last_error: Any, timeout: float) -> Located:
        _, outcome = self.world.server.fate("locate", False)
        if outcome == "ok":
            return Located(self.world.target)
        raise rpc_error("UNAVAILABLE")

    def release(self, connection: Any) -> None:
        """Nothing is held."""


class AwaitedLocator(BlockingLocator):
    """Finds it by I/O that is awaited."""

    async def alocate(self, connection: Any, last_error: Any, timeout: float) -> Any:
        return await self.world.kernel.start(Operation(self.world, "locate", None, timeout, False))


class AioWorld(World):
    """One schedule of the asyncio driver."""

    flavour: ClassVar[str] = "asyncio"
    channel_class = AioChannel
    kernel: ScheduledLoop

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.locator_class = self.rng.choice((BlockingLocator, AwaitedLocator))
        #: orderly; the loop is closed with connections in it; cut: as asyncio.run does
        self.ending = self.rng.choice(("orderly", "orderly", "closed", "cut"))
        #: whoever is inside a call -> its task; and whom the seed cancelled there
        self.calling: dict[str, asyncio.Task[Any]] = {}
        self.cancelled: set[str] = set()
        self.finding: BaseException | None = None
        #: at the clock, since the loop went round
        self.looks = 0
        self.kernel = ScheduledLoop(self)

    @property
    def now(self) -> float:  # type: ignore[override]
        return self.kernel.now if self.kernel is not None else EPOCH

    def clock(self) -> float:
        self.looks += 1
        if self.looks > LONGEST:
            raise laws.Broken(4, "somebody spins, and the loop stands")
        return self.kernel.now

    def wall(self) -> Any:
        if self.garbage and self.rng.random() < 0.1:
            self.collect(finalizers=False)  # in the middle of a step
        return super().wall()

    def locator(self) -> Any:
        return self.locator_class(self)

    def who(self) -> Any:
        return asyncio.current_task()

    def found(self, broken: BaseException) -> None:
        """Keep a finding that a task or a callback would swallow."""
        self.finding = self.finding or broken

    def raise_found(self) -> None:
        if self.finding is not None:
            raise self.finding

    # -- the transport ------------------------------------------------------------------------

    def make_handler(self, connection: Any, channel: Any) -> AsyncFakeHandler:
        return AsyncFakeHandler(channel)

    async def register(self, connection: Any, wire: Any, timeout: float, patient: bool) -> Any:
        return await self.kernel.start(wire.channel.begin("register", timeout, patient))

    async def ping(self, connection: Any, wire: Any, timeout: float) -> Any:
        return await self.kernel.start(wire.channel.begin("ping", timeout))

    # -- who runs -------------------------------------------------------------------------------

    async def follow(self, user: Any, life: Life) -> None:
        """A task that does what ``life`` says."""
        answer: Any = None
        order: float | Call | None = None
        try:
            while True:
                order = None  # it may hold the client that the next act drops
                try:
                    order = life.send(answer)
                except StopIteration:
                    return
                answer = None
                if isinstance(order, Call):
                    answer = await self.attempt(user, order)
                elif order > 0:
                    await asyncio.sleep(order)
        except (Exception, laws.Broken) as error:
            self.found(error)

    async def attempt(self, user: Any, call: Call) -> Any:
        """Make a call; its errors and its duration are the laws' business."""
        began, name = self.now, user.name
        error: BaseException | None = None
        task = asyncio.current_task()
        assert task is not None
        self.calling[name] = task
        try:
            made = call.make()
            return await made if asyncio.iscoroutine(made) else made
        except asyncio.CancelledError:
            if name not in self.cancelled:
                raise
            return None
        except Died:
            return None
        except (RpcError, LifecycleError) as failure:
            error = failure.with_traceback(None)
            return None
        finally:
            del self.calling[name]
            if name in self.cancelled:
                self.cancelled.discard(name)
                getattr(task, "uncancel", int)()
            elif not self.kernel.dead:
                self.checked(user, call, began, error)
            error = None  # it holds this frame, which would hold it, and with it a client

    async def main(self) -> None:
        """What the program does in its loop."""
        loop = self.kernel
        watched(self)
        self._hire_threads()
        lives = [(user, user.live()) for user in self.actors]
        tasks = [loop.create_task(self.follow(user, life), name=user.name) for user, life in lives]
        tasks.append(loop.create_task(self.follow(self, self.forecast()), name="the weather"))
        if self.ending == "cut":
            await asyncio.wait(tasks, timeout=self.rng.choice((0.0, 0.25, 0.5, 1.0, 2.0)))
            return
        await asyncio.wait(tasks)
        self.raise_found()
        await loop.create_task(self.follow(self, self.epilogue()), name="the epilogue")

    def _hire_threads(self) -> None:
        """Other threads: the collector runs there, and somebody uninstalls the engine."""
        jobs: dict[str, Callable[[], object]] = {
            "collects": self.collect,
            "shuts all": self._shut_all,
            "asks for stats": self.manager.get_stats,
        }
        for _ in range(self.rng.choice((0, 0, 1, 2))):
            what = self.rng.choice(("collects", "collects", "shuts all", "asks for stats"))
            at = self.now + self.rng.choice((0.0, 0.25, 0.5, 1.0, 1.5, 2.5))
            self.kernel.outside.append((at, what, jobs[what]))

    def _shut_all(self) -> None:
        pooled = self.pool.registry.all()
        self.pool.close_all("uninstalled")
        laws.check_closed(pooled)

    def epilogue(self) -> Life:
        life = super().epilogue()
        if self.ending != "closed":
            yield from life
            return
        for order in life:
            if isinstance(order, Call) and order.what == "close_all":
                return
            yield order

    def run(self) -> None:
        loop = self.kernel
        with simulated(self):
            loop.run_until_complete(self.main())
            self.raise_found()
            self.collect()
            if self.ending == "cut":
                loop.dead = True  # what a call that is cut says is nobody's business
                left = [task for task in loop.tasks if not task.done()]
                for task in left:
                    task.cancel()
                if left:
                    loop.run_until_complete(asyncio.wait(left))
                self.unfinished = True
            loop.close()
            self.raise_found()

    def end(self) -> None:
        self.kernel.dead = True
        for task in self.kernel.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        if not self.kernel.is_closed():
            self.kernel.close()


class _Thread:
    """A thread of the driver's own: does its work at some later time, all at once."""

    def __init__(self, world: AioWorld, *, target: Callable[[], None], name: str, daemon: bool):
        self.world, self.target = world, target

    def start(self) -> None:
        loop = self.world.kernel
        at = loop.now + self.world.rng.choice((0.0, 0.01, 0.25))
        loop.outside.append((at, "locates", self.target))


@contextmanager
def simulated(world: AioWorld) -> Iterator[None]:
    """The driver's threads are the schedule's; RPCs under way have an order of their own."""
    numbers = count()

    class Numbered(Rpc):
        __slots__ = ("number",)

        def __init__(self) -> None:
            super().__init__()
            self.number = next(numbers)

        def __hash__(self) -> int:
            return self.number

    class Threading:
        Thread = partial(_Thread, world)

    rpcs = (channel_module, "Rpc", Numbered)
    with replaced((aio_module, "threading", Threading), rpcs, watched_lead()):
        yield
