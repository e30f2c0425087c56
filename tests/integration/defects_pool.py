"""Bodies of the defects of the pool and of closing: D14, D15, D20, D21, D25, D28."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any
from unittest import mock

from tests.flavours import Flavour, each_flavour
from tests.network import open_sockets_to
from tests.observe import Call, Client, all_done, held, wait_until
from tests.processes import ask_child
from tests.servers import make_tls_files
from tests.stock import FORK_POLLER, Env, defect, verdict


@defect()
def d14_a_tls_client_never_gets_a_plaintext_connection(env: Env) -> None:
    """Two clients share a connection only if all that travels on the wire is equal."""
    files = make_tls_files(env.folder())
    plain, secure = env.server(), env.server(tls=files)
    proxy = env.proxy(plain.port)
    env.client(proxy.uri, token="root:Milvus").list_collections()
    # From here on the same address leads to the server with TLS.
    proxy.target_port = secure.port
    wants_tls = env.client(
        proxy.uri,
        token="root:Milvus",
        secure=True,
        server_pem_path=files.ca,
        server_name="localhost",
    )
    wants_tls.list_collections()
    in_plaintext, encrypted = plain.count("ShowCollections"), secure.count("ShowCollections")
    verdict(
        (in_plaintext, encrypted) == (1, 1),
        f"{in_plaintext} of two calls went in plaintext, {encrypted} encrypted",
    )


@each_flavour(linger=0.3)
def d15_a_connection_without_clients_is_closed(env: Env, flavour: Flavour) -> None:
    """Fifty clients with fifty tokens, opened and closed: no socket is left after `linger`."""
    server = env.server()
    clients = [flavour.connected(server.uri, token=f"user{number}:pw") for number in range(50)]
    before = open_sockets_to(server.port)
    for client in clients:
        client.close()
    tidy = wait_until(lambda: open_sockets_to(server.port) == 0, 5)
    after = open_sockets_to(server.port)
    pooled = flavour.manager().get_stats()["total_connections"] if tidy else "some"
    verdict(
        before == 50 and pooled == 0,
        f"{before} sockets open, {after} left, and {pooled} connections in the pool",
    )


def _widen_the_gap_between_two_locks(env: Env, seconds: float) -> threading.Event:
    """Let a thread lose the CPU where stock holds no lock: deciding on a failure, before acting.

    On stock a close fits into that gap, which nothing but luck would hit from outside. The engine
    needs no help: its whole recovery runs without a lock. The event tells that stock is there.
    """
    deciding = threading.Event()
    if env.side == "stock":
        from pymilvus.client.connection_manager import RegularStrategy

        def decide(self: Any, managed: Any) -> bool:
            deciding.set()
            time.sleep(seconds)
            return True

        env.enter(mock.patch.object(RegularStrategy, "on_unavailable", decide))
    return deciding


@defect()
def d20_a_recovery_does_not_outlive_close(env: Env) -> None:
    """close_all during a recovery wins: no channel is alive after it, though the server is back."""
    server = env.server()
    proxy = env.proxy(server.port)
    client = env.client(proxy.uri)
    deciding = _widen_the_gap_between_two_locks(env, 1.0)
    accepted = len(proxy.accepted)
    hold, (call,) = held(server, "ShowCollections", lambda: client.list_collections(timeout=8))
    proxy.set_mode("hang", cut=True)
    manager = env.manager()
    wait_until(lambda: len(proxy.accepted) > accepted or deciding.is_set(), 5)
    closing = Call(manager.close_all)
    closed = wait_until(lambda: closing.done, 5)
    server.heal()
    hold.release()
    proxy.set_mode("pass", cut=True)
    connects = server.count("Connect")
    wait_until(lambda: call.done, 10)
    settled = wait_until(lambda: open_sockets_to(proxy.port) == 0, 3)
    revived = server.count("Connect") - connects
    verdict(
        closed and settled and revived == 0,
        f"{open_sockets_to(proxy.port)} sockets and {revived} connects after close_all, "
        f"{manager.get_stats()['total_connections']} connections in the pool",
    )


@each_flavour()
def d21_a_client_survives_close_all(env: Env, flavour: Flavour) -> None:
    """After close_all, a client that is still in use is given a connection again."""
    server = env.server()
    clients = [flavour.client(server.uri, dedicated=dedicated) for dedicated in (False, True)]
    flavour.manager().close_all()
    gone = wait_until(lambda: open_sockets_to(server.port) == 0, 5)
    calls = [Call(client.list_collections, timeout=5) for client in clients]
    all_done(calls, 20)
    verdict(
        gone and all(call.result == ["demo"] for call in calls),
        f"all sockets closed: {gone}, then {[call.error or call.result for call in calls]}",
    )


@defect(environment=FORK_POLLER)
def d25_a_forked_child_is_not_locked_out(env: Env) -> None:
    """A child forked while another thread connects can use clients of its own at once.

    This is about the manager's lock. That gRPC's default poller may crash such a child is
    gRPC's own (see FORK_POLLER), and no manager can mend it.
    """
    server, hole = env.server_process(), env.black_hole()
    env.client(server.uri).list_collections()
    Call(env.client, hole.uri, timeout=15)
    wait_until(lambda: hole.accepted, 10)
    said = ask_child(lambda: env.client(server.uri).list_collections(), 8)
    verdict(said == "['demo']", f"the child said {said}")


def _median_lookups(pairs: list[tuple[Any, Any]], rounds: int = 300) -> list[float]:
    """Medians (seconds) of a release that releases nothing, the pairs measured in turns."""
    nobody = Client()
    times: list[list[float]] = [[] for _ in pairs]
    for _ in range(rounds):
        for (manager, handler), series in zip(pairs, times, strict=True):
            start = time.perf_counter()
            manager.release(handler, client=nobody)
            series.append(time.perf_counter() - start)
    return [statistics.median(series) for series in times]


@defect(limit=120)
def d28_a_lookup_costs_the_same_in_a_large_pool(env: Env) -> None:
    """Finding a handler's connection among hundreds costs what it costs in a pool of one."""
    server = env.server_process()
    large, small = env.manager(), type(env.manager())()
    config = env.config(server.uri)
    alone = small.get_or_create(config)
    for number in range(600):
        last = large.get_or_create(env.config(server.uri, token=f"user{number}:pw"))
    in_one, in_many = _median_lookups([(small, alone), (large, last)])
    small.close_all()
    verdict(
        in_many < 3 * in_one,
        f"{in_one * 1e6:.1f} us in a pool of one, {in_many * 1e6:.1f} us in a pool of 600",
    )
