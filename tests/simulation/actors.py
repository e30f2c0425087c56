"""Whoever uses the engine in a run: they check out, call, release and vanish."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc

from milvus_lifecycle import ConnectionConfig
from milvus_lifecycle.core.checkout import Checkout
from milvus_lifecycle.errors import LifecycleError
from milvus_lifecycle.testing import FakeHandler
from tests.simulation import laws
from tests.simulation.kernel import LONG_AGO, Choice
from tests.simulation.setup import Plan

if TYPE_CHECKING:
    from tests.simulation.world import World

HOME, AWAY = "home:19530", "away:19530"
CONFIG = ConnectionConfig.from_uri(f"http://{HOME}")


class Died(BaseException):
    """What ends a worker thread or task from outside."""


class Client:
    """Whoever holds a lease."""

    __slots__ = ("__weakref__", "number", "on_end")

    def __init__(self, number: int) -> None:
        self.number = number
        self.on_end: Callable[[Client], None] | None = None

    def __hash__(self) -> int:
        return self.number  # sets of clients have the same order in every run

    def __eq__(self, other: object) -> bool:
        return self is other

    def __del__(self) -> None:
        if self.on_end is not None:
            self.on_end(self)


class Actor:
    """A user's thread. Notes what it expects to hold, for the laws."""

    def __init__(self, world: World, name: str, plan: Plan) -> None:
        self.world, self.name, self.plan = world, name, plan
        #: actors of one kind are interchangeable
        self.kind = world.setup.actors.index(plan)
        self.client: Client | None = None
        self.handler: FakeHandler | None = None
        self.face: Any = None
        self.holds = False
        self.busy = False
        self.left = plan.moves
        self.process = world.kernel.spawn(name, self.live, self, start=True)

    def options(self) -> list[str]:
        if not self.left:
            return []
        held = self.holds
        return [move for move in self.plan.menu if (move == "checkout") is not held]

    def live(self) -> None:
        kernel = self.world.kernel
        if self.plan.ready:
            self.busy = True
            self.do_checkout()
            self.busy = False
        while self.options():
            move = kernel.pause(Choice(*self.options()))
            self.left -= 1
            self.busy = True
            getattr(self, "do_" + move)()
            self.busy = False

    @property
    def lease(self) -> int:
        """Under which key a connection knows it."""
        return 0 if self.plan.anonymous else id(self.client)

    def attempt(self, call: Callable[[], Any], limit: float | None, what: str) -> Any:
        """Run a call; its errors and its duration are the laws' business."""
        began = self.world.kernel.now
        error: BaseException | None = None
        try:
            return call()
        except Died:
            return None
        except (grpc.RpcError, LifecycleError) as failure:
            error = failure
            return None
        finally:
            assert self.world.kernel.now - began < LONG_AGO, "states older than that are one"
            laws.check_call(self.world, self, what, began, limit, error)
            laws.check_silence(self.world, began, limit, error)
            error = None  # it holds this frame, which would hold it, and with it a client

    def do_checkout(self) -> None:
        self.client = Client(ord(self.name))
        if self.plan.finalizer:
            self.client.on_end = self.world.finalize
        drive, plan = self.world.driver.drive, self.plan
        holder = None if plan.anonymous else self.client
        checkout = Checkout.within(self.world.pool, plan.timeout)
        obtained = checkout.obtain(CONFIG, plan.dedicated, holder)
        handler = self.attempt(lambda: drive(obtained), plan.timeout, "checkout")
        if handler is None:
            if self.client is not None:
                self.client.on_end = None
            self.client = None
            return
        laws.check_identity(self.world, self, handler)
        self.handler, self.face, self.holds = handler, handler.face, True

    def do_rpc(self) -> None:
        handler, limit = self.handler, self.plan.limit
        assert handler is not None
        self.attempt(lambda: handler.rpc(timeout=limit), limit, "rpc")

    def do_call(self) -> None:
        handler, limit = self.handler, self.plan.limit
        assert handler is not None
        self.attempt(lambda: handler.call(timeout=limit), limit, "call")

    def do_release(self) -> None:
        client, self.holds, face = self.client, False, self.face
        if client is not None:
            client.on_end = None
        self.world.pool.release(face.connection, None if self.plan.anonymous else client)
        self.client = self.handler = self.face = None

    def do_vanish(self) -> None:
        self.holds = False
        self.handler = self.face = None
        self.client = None

    def do_vanish_in_step(self) -> None:
        self.world.traps.append(self)

    def do_close(self) -> None:
        self.face.close()
