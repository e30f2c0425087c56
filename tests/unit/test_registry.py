"""The registry: one connection per key and per dedicated client, and who goes where."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

from milvus_lifecycle import ConnectionConfig, ConnectionManager
from milvus_lifecycle.core.registry import Registry
from milvus_lifecycle.testing import Script
from tests.cores import Core
from tests.observe import Call, Client
from tests.rigs import Rig


def connection(client: object | None = None, *, dedicated: bool = False) -> Any:
    made = Core(dedicated=dedicated).connection
    made.owner = weakref.ref(client) if client is not None else None
    return made


def test_the_first_wins() -> None:
    """Of two connections of one key, the one that came first is pooled."""
    registry, one, two = Registry(), connection(), connection()
    assert registry.add(one) is one
    assert registry.add(two) is one
    assert registry.all() == [one]


def test_a_forked_child_waits_for_no_lock_of_its_parent() -> None:
    """Another thread may have been registering when the process forked."""
    with Rig() as rig:
        pool, held, over = rig.manager._pool, threading.Event(), threading.Event()

        def hold() -> None:
            with pool.registry._lock:
                held.set()
                over.wait(60)

        holder = Call(hold)
        assert held.wait(20)
        try:
            Call(pool.fork_child).value(20)  # what os.fork calls in the child
            Call(rig.connected).value(20)
        finally:
            over.set()
            holder.value(20)


def _bytecodes(call: Callable[[], object]) -> int:
    """How many bytecodes a call runs: a measure that no busy machine changes."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_closing_one_does_not_look_at_the_others() -> None:
    """Taking a dedicated connection out is the same work among two and among a thousand."""

    def work(size: int) -> int:
        registry, clients = Registry(), [Client() for _ in range(size)]
        pooled = [registry.add(connection(client, dedicated=True)) for client in clients]
        bytecodes = _bytecodes(lambda: registry.remove(pooled[-1]))
        assert len(registry) == size - 1
        assert registry.find_dedicated(pooled[-1].config.key, clients[-1]) is None
        return bytecodes

    assert work(2) == work(1_000) > 0


def test_the_place_of_a_collected_client_may_be_taken() -> None:
    """Closing its connection leaves the connection of the client that has its address by now."""
    registry, ann = Registry(), Client()
    one, two = connection(ann, dedicated=True), connection(ann, dedicated=True)
    registry.add(one)
    one.owner = weakref.ref(Client())  # collected
    assert registry.add(two) is two
    registry.remove(one)
    assert registry.find_dedicated(two.config.key, ann) is two
    registry.add(one)
    registry.remove(two)
    registry.remove(one)
    assert registry.all() == []


def test_a_closed_connection_does_not_take_its_successor_along() -> None:
    """Removing a connection that is not pooled any more leaves its key alone."""
    registry, one, two = Registry(), connection(), connection()
    registry.add(one)
    registry.remove(one)
    registry.add(two)
    registry.remove(one)
    assert registry.find(two.config.key) is two
    assert len(registry) == 1


def test_dedicated_connections_belong_to_their_client() -> None:
    """One per client and key, found again by its client only, and by nobody's key."""
    registry, ann, bob = Registry(), Client(), Client()
    one, again, other = (connection(who, dedicated=True) for who in (ann, ann, bob))
    assert registry.add(one) is one
    assert registry.add(again) is one
    assert registry.add(other) is other
    key = one.config.key
    assert registry.find_dedicated(key, ann) is one
    assert registry.find_dedicated(key, bob) is other
    assert registry.find_dedicated(key, None) is None
    assert registry.find(key) is None
    registry.remove(one)
    assert registry.find_dedicated(key, ann) is None
    assert registry.all() == [other]


def test_a_client_that_is_gone_owns_nothing() -> None:
    """An object that has the address of a collected client does not get its connection."""
    registry, ann = Registry(), Client()
    one = connection(ann, dedicated=True)
    registry.add(one)
    one.owner = weakref.ref(Client())
    assert registry.find_dedicated(one.config.key, ann) is None


def test_dedicated_connections_of_nobody_are_many() -> None:
    """Without a client each dedicated checkout has a connection of its own."""
    registry = Registry()
    for _ in range(3):
        registry.add(connection(dedicated=True))
    assert len(registry) == 3


def test_only_a_pooled_connection_is_unshared() -> None:
    """A connection whose key somebody else has by now leaves that one in the pool."""
    registry, one, two = Registry(), connection(), connection()
    registry.add(one)
    registry.remove(one)
    registry.add(two)
    registry.unshare(one)
    assert registry.all() == [two]
    assert not one.dedicated
    registry.unshare(two)
    assert registry.find(two.config.key) is None
    assert two.dedicated


def test_an_unshared_connection_ends_with_its_holders() -> None:
    """New credentials take a connection out of the pool: nobody else may get it, ever.

    Neither now, nor when it lingers, nor when close_all closed it and its client revives it.
    """
    manager = ConnectionManager(transport=Script().threads())
    config, ann, bob = ConnectionConfig.from_uri("http://home:19530"), Client(), Client()
    handler = manager.get_or_create(config, client=ann)
    manager._pool.registry.unshare(handler.face.connection)
    other = manager.get_or_create(config, client=bob)
    assert other is not handler
    manager.close_all()
    handler.rpc()
    assert manager.get_or_create(config, client=bob) is not handler
    assert manager.get_stats()["dedicated_connections"] == 1
    manager.release(handler, ann)
    assert manager.get_stats()["dedicated_connections"] == 0
    manager.close_all()


def test_a_retired_manager_pools_nothing() -> None:
    """After ``retire`` who comes late is served, and each connection ends with its holder."""
    manager, ann, bob = ConnectionManager(transport=Script().threads()), Client(), Client()
    config = ConnectionConfig.from_uri("http://home:19530")
    early = manager.get_or_create(config, client=ann)
    manager._pool.retire()
    assert manager.get_stats()["total_connections"] == 0
    late = manager.get_or_create(config, client=bob)
    assert late is not early
    early.rpc()
    assert manager.get_stats()["dedicated_connections"] == 2
    manager.release(late, bob)
    manager.release(early, ann)
    assert manager.get_stats()["total_connections"] == 0
