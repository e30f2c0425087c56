"""The machine of the stateful search: what users, servers and time may do to a manager."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from milvus_lifecycle import ConnectionConfig, ConnectionManager, LifecyclePolicy
from milvus_lifecycle.audit.records import Sink
from milvus_lifecycle.endpoints.choose import default_strategy
from milvus_lifecycle.errors import UnknownHandler, error_code
from milvus_lifecycle.testing import CapturedAudit, FakeClock, Script, until
from tests.conformance.adapters import ADAPTERS, WORKER
from tests.simulation.fleet import Fleet, Mode
from tests.simulation.reference import ANYBODY, Call, Place, Reference
from tests.simulation.trail import Trail

#: Limit (real seconds) of what is polled for at the end.
LIMIT = 20.0
ADDRESSES = ("a:19530", "b:19530")
#: URI, token, database; and what of it makes a connection of its own.
CONFIGS = (
    (("http://a:19530", "", ""), Place("a:19530")),
    (("tcp://a", "", "shop"), Place("a:19530")),
    (("http://a:19530/shop", "secret", ""), Place("a:19530", "secret")),
    (("http://secret@b:19530", "", ""), Place("b:19530", "secret")),
    (("http://b:19530", "secret", "shop"), Place("b:19530", "secret")),
)
POLICIES = (
    LifecyclePolicy(linger=100.0, drain_timeout=10.0),
    LifecyclePolicy(linger=100.0, max_age=200.0, drain_timeout=None, idle_threshold=None),
    LifecyclePolicy(linger=None, max_age=50.0, idle_threshold=0.0, recovery_budget=20.0),
)
TIMEOUTS = (None, None, 2.0, 20.0, 90.0)
PASSES = (0.1, 1.0, 5.0, 11.0, 31.0, 61.0, 101.0, 301.0)


class Client:
    """Whoever holds a lease; in a cycle only the collector finds that it is gone."""

    def __init__(self, cycle: bool) -> None:
        self.me = self if cycle else None


def _foreign_handler() -> Any:
    manager = ConnectionManager(transport=Script().threads())
    handler = manager.get_or_create(ConnectionConfig.from_uri("http://a:19530"))
    manager.close_all()
    return handler


class Pools(RuleBasedStateMachine):
    """One manager, its users, its servers, and what the reference model says about them.

    Rules have no preconditions: with real threads, which of two things that happen at the same
    time comes first may differ when Hypothesis runs an example again, but not what it draws.
    """

    flavour: ClassVar[str]
    examples: ClassVar[int] = 0
    steps: ClassVar[int] = 0

    # -- set up ------------------------------------------------------------------------------

    @initialize(policy=st.sampled_from(POLICIES))
    def start(self, policy: LifecyclePolicy) -> None:
        type(self).examples += 1
        self.clock = FakeClock()
        self.fleet = Fleet(self.clock)
        for address in ADDRESSES:
            self.fleet.add(address)
        self.foreign = _foreign_handler()
        self.threads = set(threading.enumerate())
        self.driver: Any = ADAPTERS[self.flavour](self.fleet, self.clock)
        sink = Sink()
        sink.wants = lambda level=0: False  # type: ignore[method-assign]
        self.driver.start(policy, default_strategy, sink)
        self.audit = CapturedAudit(self.driver.manager)
        self.trail = Trail(self.audit)
        self.model = Reference(policy, self.fleet)
        self.clients: dict[str, Client | None] = {ANYBODY: None}
        #: who was given which handler, released or not
        self.grips: list[tuple[str, Any]] = []
        self.handles: dict[Call, Any] = {}
        self.count = 0
        #: did everything hold so far?
        self.sound = True

    def _name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def _spawn(self, call: Call, work: Callable[[], Any]) -> None:
        self.handles[call] = self.driver.spawn(call.name, work)

    def _grip(self, number: int) -> tuple[str, Any]:
        return self.grips[number % len(self.grips)] if self.grips else (ANYBODY, None)

    def _busy(self, client: str, handler: Any) -> bool:
        """Is the client just checking out the connection of this handler?"""
        conn = self.model.leads[handler]
        return any(c.kind == "checkout" and c.client == client for c in conn.calls)

    # -- rules: users --------------------------------------------------------------------------

    @rule(cycle=st.booleans())
    def client_comes(self, cycle: bool) -> None:
        if len(self.clients) >= 6:
            return
        name = self._name("client")
        self.clients[name] = Client(cycle)
        self.model.clients.add(name)

    @rule(
        who=st.integers(0, 5),
        config=st.sampled_from(CONFIGS),
        dedicated=st.sampled_from((False, False, True)),
        timeout=st.sampled_from(TIMEOUTS),
    )
    def check_out(self, who: int, config: Any, dedicated: bool, timeout: float | None) -> None:
        (uri, token, database), place = config
        name = list(self.clients)[who % len(self.clients)]
        parsed = ConnectionConfig.from_uri(uri, token=token, db_name=database)
        call = self.model.check_out(self._name("call"), name, place, dedicated, timeout)
        ask = self.driver.manager.get_or_create
        self._spawn(call, partial(ask, parsed, dedicated, self.clients[name], timeout))

    @rule(
        number=st.integers(0, 20),
        kind=st.sampled_from(("rpc", "call", "call")),
        timeout=st.sampled_from(TIMEOUTS),
        slow=st.sampled_from((False, False, True)),
    )
    def call(self, number: int, kind: str, timeout: float | None, slow: bool) -> None:
        client, handler = self._grip(number)
        if handler is None or self.model.about_to_expire(handler):
            return  # who holds no lease may come too late
        name = self._name("call")
        call = self.model.call(name, kind, client, handler, timeout)
        if slow:
            call.slow = True
            self.fleet.slow.add(name)
        self._spawn(call, partial(getattr(handler, kind), name, timeout))

    @rule(number=st.integers(0, 2))
    def answer(self, number: int) -> None:
        slow = [call for call in self.model.calls if call.slow]
        for call in slow[number : number + 1]:
            call.answered, call.slow = True, False
            self.driver.run(partial(self.fleet.answer, call.name))

    @rule(number=st.integers(0, 20), anonymously=st.booleans())
    def release(self, number: int, anonymously: bool) -> None:
        client, handler = self._grip(number)
        client = ANYBODY if anonymously else client
        if handler is not None and not self._busy(client, handler):
            self.model.release(handler, client)
            holder, manager = self.clients[client], self.driver.manager
            self.driver.run(partial(manager.release, handler, holder))

    @rule(foreign=st.booleans())
    def release_unknown(self, foreign: bool) -> None:
        handler = self.foreign if foreign else object()
        with pytest.raises(UnknownHandler):
            self.driver.run(partial(self.driver.manager.release, handler))

    @rule(who=st.integers(0, 5))
    def vanish(self, who: int) -> None:
        # Those who were served first: of most others nobody would notice.
        served = {who for who, _ in self.grips}
        names = [name for name in self.clients if name in served - {ANYBODY}] or list(self.clients)
        name = names[who % len(names)]
        asking = any(c.client == name and c.kind == "checkout" for c in self.model.calls)
        if name == ANYBODY or asking:
            return  # its own call keeps it
        client = self.clients.pop(name)
        self.grips = [(who, handler) for who, handler in self.grips if who != name]
        cycle = client is not None and client.me is not None
        del client
        if cycle:
            gc.collect()
        self.model.vanish(name)

    @rule(sure=st.sampled_from((False, False, True)))
    def close_all(self, sure: bool) -> None:
        if not sure:
            return  # too often, and little else would ever happen
        self.driver.run(self.driver.manager.close_all)
        self.model.close_all()

    # -- rules: the world ----------------------------------------------------------------------

    @rule(address=st.sampled_from(ADDRESSES), mode=st.sampled_from(Mode))
    def turn(self, address: str, mode: Mode) -> None:
        if self.fleet.history[address][-1] is not mode:
            self.driver.run(partial(self.fleet.turn, address, mode))

    @rule(seconds=st.sampled_from(PASSES))
    def time_passes(self, seconds: float) -> None:
        self.driver.run(partial(self.clock.advance, seconds))

    @rule(
        config=st.sampled_from(CONFIGS),
        mode=st.sampled_from((Mode.REFUSES, Mode.SILENT, Mode.DENIES)),
        who=st.tuples(st.integers(0, 5), st.integers(0, 5)),
        timeout=st.sampled_from(TIMEOUTS),
        seconds=st.sampled_from(PASSES[:6]),
    )
    def outage(
        self, config: Any, mode: Mode, who: tuple[int, int], timeout: float | None, seconds: float
    ) -> None:
        """A server goes away under its users: one notices, another one comes, time passes."""
        place = config[1]
        for step in (
            partial(self.turn, place.address, Mode.UP),
            partial(self.check_out, who[0], config, False, None),
            partial(self.turn, place.address, mode),
            partial(self.call, len(self.grips), "call", 90.0, False),
            partial(self.check_out, who[1], config, False, timeout),
            partial(self.time_passes, seconds),
        ):
            step()
            self.as_the_model_says()

    # -- what holds after each step --------------------------------------------------------------

    @invariant()
    def as_the_model_says(self) -> None:
        type(self).steps += 1
        self.sound = False
        self.driver.settle()
        self.trail.read()
        rows = {row["id"]: row for row in self._rows()}
        busy = {i for i, row in rows.items() if row["state"] in ("PROBING", "RECOVERING")}
        self._name_new(rows)
        self.model.arrive()
        self.model.desert(busy)
        self._reap()
        unsure = self.model.expire(busy)
        for conn in list(self.model.live):
            if conn.id in unsure and conn.id not in rows:
                self.model.close(conn)
        self._compare(rows)
        self.sound = True

    def _rows(self) -> list[dict[str, Any]]:
        stats = self.driver.manager.get_stats()
        rows: list[dict[str, Any]] = stats["connections"]
        dedicated = sum(row["dedicated"] for row in rows)
        counted = [stats[f"{kind}_connections"] for kind in ("total", "shared", "dedicated")]
        assert counted == [len(rows), len(rows) - dedicated, dedicated]
        return rows

    def _name_new(self, rows: dict[str, Any]) -> None:
        """Connections that began in this step: tell which is which, and which are connected."""
        new = [conn for conn in self.model.all if not conn.id]
        ids = [i for i in self.trail.ids if i not in {conn.id for conn in self.model.all}]
        assert len(new) == len(ids), f"{len(ids)} connections were made, {len(new)} expected"
        for conn, identity in zip(new, ids, strict=True):
            conn.id = identity
        for conn in self.model.live:
            conn.connected = conn.connected or self.trail.generation(conn.id) > 0

    def _reap(self) -> None:
        """Calls that are over end as the model allows; those that go on are not overdue."""
        for call in [call for call in self.handles if self.handles[call].done]:
            handle = self.handles.pop(call)
            code = None if handle.error is None else error_code(handle.error)
            self.model.end(call, handle.result, code)
            if call.kind == "checkout" and code is None:
                self.grips.append((call.client, handle.result))
        running = {operation.request for operation in self.fleet.held("rpc")}
        late = self.model.overdue(running)
        assert not late, [call.story(self.clock()) for call in late]

    def _compare(self, rows: dict[str, Any]) -> None:
        """The pool is exactly as the model says, and no channel is open but for that."""
        model = self.model
        assert set(rows) == {conn.id for conn in model.live}
        assert sum(row["in_flight"] for row in rows.values()) == len(self.fleet.held("rpc"))
        for conn in model.live:
            row, sure = rows[conn.id], len(conn.holders)
            assert (row["address"], row["dedicated"]) == (conn.place.address, conn.dedicated)
            assert sure <= row["clients"] <= sure + conn.guests(), (row, conn.holders)
            self.trail.check(row, calm=model.calm(conn.place.address))
        for address in ADDRESSES:
            here = [row for row in rows.values() if row["address"] == address]
            self._compare_channels(address, here)

    def _compare_channels(self, address: str, rows: list[dict[str, Any]]) -> None:
        used = {operation.channel for operation in self.fleet.held("rpc")}
        channels = [c for c in self.fleet.channels if c.address == address and not c.closed]
        spare = len([channel for channel in channels if channel not in used])
        flying = [row for row in rows if row["state"] in ("PROBING", "RECOVERING")]
        assert spare <= len(rows) + len(flying), f"{spare} channels for {rows}"
        assert len(channels) >= len(rows) - len(flying), f"{channels} for {rows}"

    # -- the end -----------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        driver = self.driver
        try:
            if not self.sound:  # the verdict is in: only end what can be ended
                driver.run(driver.manager.close_all)
                driver.run(partial(self.clock.advance, 100_000.0))
                return
            while any(call.slow for call in self.model.calls):
                self.answer(0)
            if self.count % 2:
                self._everybody_leaves()
            driver.run(driver.manager.close_all)
            driver.settle()
            self.trail.read()
            left = [handle for handle in self.handles.values() if not handle.done]
            assert not left, f"{len(left)} calls did not end"
            assert driver.manager.get_stats()["total_connections"] == 0
            assert [c for c in self.fleet.channels if not c.closed] == []
            driver.run(partial(self.clock.advance, 100_000.0))
            driver.settle()
            assert driver.leftovers() == []
            assert getattr(driver, "complaints", []) == []
            until(lambda: not self._threads(), LIMIT, "threads of the engine are left")
        finally:
            driver.stop()

    def _threads(self) -> list[threading.Thread]:
        known = self.threads
        return [t for t in threading.enumerate() if t not in known and t.name.startswith(WORKER)]

    def _everybody_leaves(self) -> None:
        """Servers come back, everybody gives back what he has, and time does the rest."""
        for address in ADDRESSES:
            self.turn(address, Mode.UP)
            self.as_the_model_says()
        self.time_passes(max(PASSES[:4]))
        self.as_the_model_says()
        for client, handler in self.grips:
            self.model.release(handler, client)
            self.driver.run(partial(self.driver.manager.release, handler, self.clients[client]))
            self.as_the_model_says()
        linger = self.model.policy.linger
        if linger is not None:
            self.time_passes(linger)
            self.as_the_model_says()
            assert self._rows() == [], "released, yet pooled"
