"""What scenarios are made of: actors, the script of the world, and what each step does."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from milvus_lifecycle import ConnectionConfig, LifecyclePolicy
from milvus_lifecycle.audit.records import OUTAGE, WARNING, Sink, TransitionRecord
from milvus_lifecycle.audit.stream import reader_of
from milvus_lifecycle.core.facts import Facts, Located
from milvus_lifecycle.core.pool import FACE
from milvus_lifecycle.core.strategies import ConnectionStrategy, Locator
from milvus_lifecycle.errors import error_code
from milvus_lifecycle.testing import FakeClock, Operation, Script, rpc_error
from tests.conformance.adapters import ADAPTERS, Handle, LeaderDied
from tests.observe import Client

HOME = "home:19530"


class Actor:
    """Somebody who makes calls, one at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: Client | None = Client()
        self.handler: Any = None
        self.handle: Handle | None = None


class Compass(ConnectionStrategy):
    """A strategy whose target the scenario moves; its locator is scripted if asked for."""

    name = "compass"
    target = HOME
    locates = False

    def __init__(self, config: ConnectionConfig, world: World) -> None:
        super().__init__(config)
        self.world = world

    def target_changed(self, connection: Any, facts: Facts) -> bool:
        return str(connection.address) != self.world.target

    def misdirected(self, address: str) -> bool:
        return address != self.world.target

    def awaits_news(self) -> bool:
        return self.world.awaits_news

    def locator(self, connection: Any) -> Locator:
        return Signpost(self.world)


class LoyalCompass(Compass):
    """Asks the channel that failed before it opens another one to the same place."""

    keeps_current = True


class Signpost:
    """The locator: says where the target is, or what the script says."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _ask(self, timeout: float) -> Any:
        return self.world.script.perform("locate", self.world.target, timeout).done

    def locate(self, connection: Any, last_error: Any, timeout: float) -> Located:
        located: Located = self._ask(timeout).result()
        return located

    async def alocate(self, connection: Any, last_error: Any, timeout: float) -> Located:
        import asyncio

        located: Located = await asyncio.wrap_future(self._ask(timeout))
        return located

    def release(self, connection: Any) -> None:
        """Nothing is held."""


class Log(Sink):
    """Takes every record with its level."""

    def __init__(self) -> None:
        self._lines: list[tuple[TransitionRecord, int]] = []

    @property
    def lines(self) -> list[tuple[TransitionRecord, int]]:
        reader_of(self).outlet.flush(20)
        return self._lines

    def write(self, record: TransitionRecord, level: int) -> None:
        self._lines.append((record, level))

    @property
    def records(self) -> list[TransitionRecord]:
        """Of steps: notices are counted by ``warnings``."""
        return [record for record, _ in self.lines if record.event != OUTAGE]

    @property
    def warnings(self) -> int:
        return sum(level >= WARNING for _, level in self.lines)


class World:
    """One run of one scenario in one flavour."""

    def __init__(self, flavour: str, policy: dict[str, Any], strategy: str) -> None:
        self.clock, self.script, self.log = FakeClock(), Script(), Log()
        self.target, self.awaits_news = HOME, False
        self.actors: dict[str, Actor] = {}
        #: channels of a parent process: never closed here
        self.inherited = 0
        self.driver: Any = ADAPTERS[flavour](self.script, self.clock)
        self.script.hold("register", "ping", "rpc")
        strategies: dict[str, Callable[[ConnectionConfig], ConnectionStrategy]] = {
            "regular": _regular,
            "compass": lambda config: Compass(config, self),
            "loyal compass": lambda config: LoyalCompass(config, self),
        }
        self.driver.start(LifecyclePolicy(**policy), strategies[strategy], self.log)

    # -- steps -----------------------------------------------------------------------------

    def do(self, step: str) -> None:
        """Perform one step; raises AssertionError for an expectation that does not hold."""
        head, *words = step.split()
        options = dict(word.split("=") for word in words if "=" in word)
        words = [word for word in words if "=" not in word]
        if head[0].isupper():
            for actor in self._actors(head):
                getattr(self, "actor_" + words[0])(actor, *words[1:], **options)
                self.driver.settle()
        else:
            getattr(self, "step_" + head)(*words, **options)
            self.driver.settle()

    def _actors(self, head: str) -> list[Actor]:
        """``A``; ``R*16``: R1 to R16 (made on first use); ``R*``: all of them."""
        if not head.count("*"):
            names = [head]
        elif head.endswith("*"):
            names = [name for name in self.actors if name.startswith(head[:-1])]
        else:
            stem, count = head.split("*")
            names = [f"{stem}{n}" for n in range(1, int(count) + 1)]
        return [self.actors.setdefault(name, Actor(name)) for name in names]

    def _begin(self, actor: Actor, call: Callable[[], Any]) -> None:
        assert actor.handle is None or actor.handle.done, f"{actor.name} is still busy"
        actor.handle = self.driver.spawn(actor.name, call)

    def actor_checkout(self, actor: Actor, *how: str, timeout: str = "", to: str = HOME) -> None:
        config = ConnectionConfig.from_uri(f"http://{to}")
        manager, client = self.driver.manager, actor.client
        limit = float(timeout) if timeout else None
        dedicated = "dedicated" in how
        self._begin(actor, lambda: manager.get_or_create(config, dedicated, client, limit))

    def actor_uses(self, actor: Actor, other: str) -> None:
        """The same client, in another thread or task."""
        actor.handler, actor.client = self.actors[other].handler, self.actors[other].client

    def actor_borrows(self, actor: Actor, other: str) -> None:
        """B's handler without a lease of its own."""
        actor.handler = self.actors[other].handler

    def actor_rpc(self, actor: Actor, timeout: str = "") -> None:
        handler, limit = actor.handler, float(timeout) if timeout else None
        self._begin(actor, lambda: handler.rpc(actor.name, limit))

    def actor_call(self, actor: Actor, timeout: str = "") -> None:
        handler, limit = actor.handler, float(timeout) if timeout else None
        self._begin(actor, lambda: handler.call(actor.name, limit))

    def actor_gets(self, actor: Actor, outcome: str, code: str = "") -> None:
        """The answer of the actor's running RPC: ``ok`` or ``fails CODE``."""
        running = [op for op in self.script.held("rpc") if op.request == actor.name]
        assert running, f"{actor.name} has no RPC running"
        self._decide(running[0], outcome, code)

    def actor_release(self, actor: Actor) -> None:
        manager, handler, client = self.driver.manager, actor.handler, actor.client
        self.driver.run(lambda: manager.release(handler, client))

    def actor_closes(self, actor: Actor) -> None:
        """The handler's own close()."""
        self.driver.run(getattr(actor.handler, FACE).close)

    def actor_vanishes(self, actor: Actor) -> None:
        actor.client = None
        gc.collect()

    def actor_cancel(self, actor: Actor) -> None:
        self.driver.cancel(actor.handle)

    def actor_waits(self, actor: Actor) -> None:
        assert actor.handle is not None
        assert not actor.handle.done, f"{actor.name} ended: {_shown(actor.handle)}"

    def actor_ok(self, actor: Actor) -> None:
        handle = self._ended(actor)
        assert handle.error is None, f"{actor.name} failed: {handle.error!r}"
        if hasattr(handle.result, FACE):
            actor.handler = handle.result

    def actor_raises(self, actor: Actor, code: str, last: str = "", attempts: str = "") -> None:
        error = self._ended(actor).error
        shown = f"{actor.name} raised {error!r}"
        assert error is not None, shown
        assert error_code(error) == code, shown
        if last:
            cause = getattr(error, "last_error", None)
            assert cause is not None, shown
            assert error_code(cause) == last, shown
        if attempts:
            assert getattr(error, "attempts", None) == int(attempts), shown

    def _ended(self, actor: Actor) -> Handle:
        handle = actor.handle
        assert handle is not None, f"{actor.name} has called nothing"
        assert handle.done, f"{actor.name} still waits"
        return handle

    # -- the world -------------------------------------------------------------------------

    def _decide(self, operation: Operation, outcome: str, code: str) -> None:
        if outcome == "ok":
            self.script.finish(operation)
        elif outcome == "dies":
            operation.fail(LeaderDied())
        else:
            operation.fail(rpc_error(code))

    def _oldest(self, kind: str) -> Operation:
        held = self.script.held(kind)
        assert held, f"no {kind} is under way"
        return held[0]

    def step_register(self, outcome: str, code: str = "") -> None:
        self._decide(self._oldest("register"), outcome, code)

    def step_ping(self, outcome: str, code: str = "") -> None:
        self._decide(self._oldest("ping"), outcome, code)

    def step_locate(self, outcome: str, code: str = "") -> None:
        self._decide(self._oldest("locate"), outcome, code)

    def step_open(self, outcome: str, code: str) -> None:
        """The next channel cannot be opened."""
        assert outcome == "fails"
        self.script.plan("open", rpc_error(code))

    def step_attempt(self, outcome: str, code: str) -> None:
        """A recovery's attempt fails: at once, and then while it waits for the channel."""
        self.step_register(outcome, code)
        self.driver.settle()
        self.step_register(outcome, "DEADLINE_EXCEEDED")

    def step_hold(self, kind: str) -> None:
        self.script.hold(kind)

    def step_advance(self, seconds: str) -> None:
        self.driver.run(lambda: self.clock.advance(float(seconds)))

    def step_target(self, address: str) -> None:
        self.target = address

    def step_news(self, address: str) -> None:
        """The strategy hears of its target; or (``soon``) that it is going to."""
        self.awaits_news = address == "soon"
        if not self.awaits_news:
            self.target = address
            self.driver.run(self.driver.manager._pool.maintenance.reroute_all)

    def step_close(self, what: str) -> None:
        assert what == "all"
        self.driver.run(self.driver.manager.close_all)

    def step_fork(self) -> None:
        """What a forked child does first; calls that were under way are the parent's."""
        self.inherited = len(self.script.channels)
        self.driver.before_fork()
        self.driver.run(self.driver.manager._driver.fork_child)
        for actor in self.actors.values():
            if actor.handle is not None and not actor.handle.done:
                actor.handle = None

    def step_workers(self, what: str) -> None:
        self.driver.refuse_workers(what == "refused")

    def step_flight(self, what: str) -> None:
        assert what == "cancelled"
        self.driver.cancel_flights()

    # -- expectations of the world -----------------------------------------------------------

    def step_idle(self) -> None:
        """No I/O is under way."""
        assert not self.script.held(), f"under way: {self.script.held()}"

    def step_running(self, kind: str, count: str = "1") -> None:
        assert len(self.script.held(kind)) == int(count), f"under way: {self.script.held()}"

    def step_timeout(self, seconds: str) -> None:
        """The timeout of the RPC that is under way."""
        assert self._oldest("rpc").timeout == float(seconds)

    def step_channel(self, number: str, what: str) -> None:
        channel = self.script.channels[int(number) - 1]
        assert channel.closed == (what == "closed"), f"channel {number} closed={channel.closed}"

    def step_channels(self, count: str) -> None:
        assert len(self.script.channels) == int(count), self.script.channels

    def step_pool(self, *nothing: str, **expected: str) -> None:
        """Rows of get_stats: ``pool empty``, or fields of its only connection."""
        rows = self.driver.manager.get_stats()["connections"]
        if nothing:
            assert not rows, rows
            return
        assert len(rows) == 1, rows
        for field, value in expected.items():
            assert str(rows[0][field]) == value, rows

    # -- the end -----------------------------------------------------------------------------

    def finish(self) -> list[str]:
        """Close everything. Returns what was left behind, which should be nothing."""
        driver, left = self.driver, []
        try:
            driver.run(driver.manager.close_all)
            left += self._wind_down()
            open_channels = [
                c.number for c in self.script.channels[self.inherited :] if not c.closed
            ]
            left += [f"channel {number}" for number in open_channels]
            left += getattr(driver, "complaints", [])
        finally:
            driver.stop()
        return left

    def _wind_down(self) -> list[str]:
        """Let whatever still runs come to its end. Returns the names of what does not."""
        left: list[str] = []
        for _ in range(20):
            self.driver.settle()
            left = self.driver.leftovers()
            if not left:
                break
            for operation in self.script.held():
                operation.fail(rpc_error("CANCELLED"))
            self.driver.run(lambda: self.clock.advance(100_000.0))
        return left


def _regular(config: ConnectionConfig) -> ConnectionStrategy:
    from milvus_lifecycle import RegularStrategy

    return RegularStrategy(config)


def _shown(handle: Handle) -> str:
    return repr(handle.error) if handle.error is not None else "ok"
