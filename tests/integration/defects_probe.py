"""Bodies of the defects of idle time and probes: D22, D27, D31."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import grpc._channel

from tests.stock import Env, defect, verdict


def _stay_idle(seconds: float) -> None:
    """Idle time is what these bodies are about: nothing can be polled for."""
    time.sleep(seconds)


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
    _stay_idle(1.0)
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
    _stay_idle(1.0)
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
        _stay_idle(0.8)
        env.client(server.uri)
    connects, probed = server.count("Connect"), server.count("GetVersion") - probes
    verdict(
        connects == 1 and probed == 3,
        f"{connects - 1} rebuilt and {probed} probes in three checkouts of a healthy connection",
    )
