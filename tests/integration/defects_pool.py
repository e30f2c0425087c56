"""Bodies of the defects of the pool, of closing, of idle time, of URIs: D14, D15, D20 to D31."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import grpc._channel

from tests.flavours import Flavour, each_flavour
from tests.network import open_sockets_to
from tests.observe import Call, Client, all_done, came_true, held, wait_until
from tests.processes import ask_child
from tests.servers import credentials, make_tls_files
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
    tidy = came_true(lambda: open_sockets_to(server.port) == 0, 5)
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
    closed = came_true(lambda: closing.done, 5)
    server.heal()
    hold.release()
    proxy.set_mode("pass", cut=True)
    connects = server.count("Connect")
    all_done([call], 10)
    settled = came_true(lambda: open_sockets_to(proxy.port) == 0, 3)
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
    gone = came_true(lambda: open_sockets_to(server.port) == 0, 5)
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
    """Finding a handler's connection among hundreds costs less than three times one alone."""
    server = env.server_process()
    large, small = env.manager(), type(env.manager())()
    config = env.config(server.uri)
    alone = small.get_or_create(config)
    for number in range(300):
        last = large.get_or_create(env.config(server.uri, token=f"user{number}:pw"))
    in_one, in_many = _median_lookups([(small, alone), (large, last)])
    small.close_all()
    verdict(
        in_many < 3 * in_one,
        f"{in_one * 1e6:.1f} us in a pool of one, {in_many * 1e6:.1f} us in a pool of 300",
    )


# -- idle time: nothing but sleeping makes it ------------------------------------------------


@defect(idle_threshold=0.5)
def d22_idle_time_is_time_without_rpcs(env: Env) -> None:
    """A busy connection is not probed at checkout; an RPC after a long idle time is."""
    server = env.server()
    client = env.client(server.uri)
    probes = server.count("GetVersion")
    busy_until = time.monotonic() + 1.2
    while time.monotonic() < busy_until:
        client.list_collections()
        time.sleep(0.02)
    env.client(server.uri)
    while_busy = server.count("GetVersion") - probes
    connects = server.count("Connect")
    time.sleep(1.0)
    client.list_collections()
    after_idle = server.count("GetVersion") - probes - while_busy
    verdict(
        while_busy == 0 and connects == 1 and after_idle == 1,
        f"busy: {while_busy} probes, {connects - 1} reconnects; idle: {after_idle} probes",
    )


def _an_hour_ago(clock: Callable[[], float]) -> Callable[[], float]:
    return lambda: clock() - 3600


@defect(idle_threshold=0.5)
def d27_a_clock_set_back_hides_no_idle_time(env: Env) -> None:
    """After the wall clock was set back by an hour, an idle connection is probed all the same."""
    server = env.server()
    env.client(server.uri)
    probes, connects = server.count("GetVersion"), server.count("Connect")
    # Nothing but a patch sets the clock back for this process alone. grpc keeps the true clock: it
    # makes deadlines of it that its C core compares with the system's clock, which is not patched.
    env.enter(mock.patch.object(grpc._channel, "time", SimpleNamespace(**vars(time))))
    env.enter(mock.patch.object(time, "time", mock.Mock(side_effect=_an_hour_ago(time.time))))
    time.sleep(1.0)
    env.client(server.uri)
    after = server.count("GetVersion") - probes
    rebuilt = server.count("Connect") - connects
    verdict(after + rebuilt > 0, f"{after} probes and {rebuilt} reconnects after 1 s of idle time")


@defect(idle_threshold=0.5)
def d31_a_healthy_idle_connection_is_kept(env: Env) -> None:
    """A checkout after a long idle time probes the connection and keeps it."""
    server = env.server()
    env.client(server.uri)
    probes = server.count("GetVersion")
    for _ in range(3):
        time.sleep(0.8)
        env.client(server.uri)
    connects, probed = server.count("Connect"), server.count("GetVersion") - probes
    verdict(
        connects == 1 and probed == 3,
        f"{connects - 1} rebuilt and {probed} probes in three checkouts of a healthy connection",
    )


# -- URIs and secrets ------------------------------------------------------------------------


@defect()
def d26_a_secret_is_shown_nowhere(env: Env) -> None:
    """Passwords and tokens appear in no stat, repr or stored URI."""
    server = env.server()
    by_uri = env.client(f"http://root:pa55word@{server.address}")
    by_token = env.client(server.uri, token="t0psecret")
    dedicated = env.client(server.uri, token="t0psecret", dedicated=True)
    shown = {
        "stats": repr(env.manager().get_stats()),
        "manager": repr(env.manager()),
        "config": repr([client._config for client in (by_uri, by_token, dedicated)]),
        "config str": " ".join(str(client._config) for client in (by_uri, by_token)),
        "uri": by_uri._config.uri,
        "key": repr([by_uri._config.key, by_token._config.key]),
        "handler": repr([by_uri._handler, dedicated._handler]),
    }
    leaks = [where for where, text in shown.items() if "pa55word" in text or "t0psecret" in text]
    verdict(not leaks, f"secrets are shown by: {', '.join(leaks) or 'nothing'}")


@defect()
def d30_uris_mean_what_they_say(env: Env) -> None:
    """IPv6 hosts, percent-encoded passwords and a path called global-cluster are understood."""
    server = env.server(host="::1")
    call = Call(
        lambda: env.client(f"http://root:p%40ss@[::1]:{server.port}", timeout=3).list_collections()
    )
    all_done([call], 20)
    plain = env.server()
    decoded = env.client(f"http://root:p%40ss@{plain.address}")
    decoded.list_collections()
    is_global = env.config(f"http://127.0.0.1:{plain.port}/global-cluster").is_global
    sent = credentials(plain.seen("ShowCollections")[-1])
    verdict(
        call.result == ["demo"] and sent == "root:p@ss" and not is_global,
        f"IPv6: {call.error or call.result}; sent {sent!r}; "
        f"a database named global-cluster makes the endpoint global: {is_global}",
    )
