"""A crowd: many connections to one server lose it together, and come back one after the other."""

from __future__ import annotations

import threading

import pytest

import milvus_lifecycle as ml
from milvus_lifecycle.core.admission import AT_ONCE
from tests.flavours import Program
from tests.network import TcpProxy
from tests.observe import Call, all_done, wait_until
from tests.servers import FakeMilvus, ServedCall, credentials

pytestmark = pytest.mark.timeout(120)

CLIENTS = 40


class _Together:
    """How many calls a server has under way at the same time, at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = self.most = 0

    def __call__(self, call: ServedCall) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(0.02)
        with self._lock:
            self.now -= 1


def _lose(program: Program, proxy: TcpProxy) -> list[Call]:
    """Clients with a connection each, and a call of each that waits for the server."""
    clients = [program.connected(proxy.uri, token=f"user{n}:secret") for n in range(CLIENTS)]
    proxy.set_mode("refuse", cut=True)
    calls = [Call(client.list_collections) for client in clients]
    wait_until(lambda: len(program.transitions("fail")) == CLIENTS, 30)
    return calls


def test_one_knocks_and_the_others_follow_a_few_at_a_time(
    program: Program, proxy: TcpProxy, server: FakeMilvus
) -> None:
    """In an outage the engine has a worker for a few of 40 connections; each is validated."""
    calls = _lose(program, proxy)
    # One keeps time; who tells listeners may be somebody else's.
    assert len([name for name in program.workers() if "records" not in name]) <= AT_ONCE + 1
    together, before = _Together(), server.count("Connect")
    server.on("Connect", together)

    proxy.set_mode("pass")
    assert all_done(calls, 60)

    assert [call.error for call in calls] == [None] * CLIENTS
    assert server.count("Connect") - before == CLIENTS
    assert together.most <= AT_ONCE
    assert len(program.transitions("recovered")) == CLIENTS


@pytest.mark.slow
def test_who_waits_for_a_turn_gives_up_in_time(program: Program, proxy: TcpProxy) -> None:
    """Each caller sees the end of its own timeout, whoever knocks."""
    calls = _lose(program, proxy)
    late = [Call(client.list_collections, timeout=0.5) for client in program.clients]
    assert all_done(late, 20)
    assert all(isinstance(call.error, ml.DeadlineExceeded) for call in late)
    assert not any(call.done for call in calls)
    proxy.set_mode("pass")
    assert all_done(calls, 60)


@pytest.mark.slow
def test_a_connection_that_cannot_recover_holds_up_no_other(
    program: Program, proxy: TcpProxy, server: FakeMilvus
) -> None:
    """The one that knocks first is never answered: the others are, a second later."""
    calls = _lose(program, proxy)
    first = program.transitions("fail")[0].connection_id

    def hang(call: ServedCall) -> None:
        asked.append(credentials(call))
        if asked[-1] == asked[0]:
            released.wait(60)

    asked: list[str] = []
    released = threading.Event()
    server.on("Connect", hang)
    proxy.set_mode("pass")
    wait_until(lambda: sum(call.done for call in calls) == CLIENTS - 1, 60)
    assert first not in {record.connection_id for record in program.transitions("recovered")}
    released.set()
    assert all_done(calls, 60)
