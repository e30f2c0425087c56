"""Asyncio and whole processes: clients inherited through fork, slow callbacks, interruptions."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.integration import aio_process_bodies
from tests.network import TcpProxy
from tests.processes import REPOSITORY
from tests.stock import Body, Kind, run

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    "body",
    [
        aio_process_bodies.inherited_clients_work_in_a_childs_loop,
        aio_process_bodies.inherited_clients_work_after_an_outage,
        aio_process_bodies.a_childs_end_spares_the_parent,
    ],
    ids=lambda body: body.__name__,
)
def test_fork(body: Body) -> None:
    """Each body's promise about forked children holds on the engine."""
    outcome = run("engine", body)
    assert outcome.kind is Kind.PASSED, str(outcome)


_RIDE = """
import asyncio, sys, threading
import milvus_lifecycle as ml
ml.install()
# Importing is not what this is about.
from pymilvus import AsyncMilvusClient
from pymilvus.client import async_grpc_handler, prepare
from pymilvus.grpc_gen import milvus_pb2
import gc, grpc.aio, milvus_lifecycle.drivers.aio_channel
# One look of the collector at all that was imported takes 0.1 s: not what this is about either.
gc.collect()
gc.freeze()

async def main():
    asyncio.get_running_loop().slow_callback_duration = 0.05
    client = AsyncMilvusClient(sys.argv[1])
    await client.list_collections()
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    calls = [asyncio.ensure_future(client.list_collections()) for _ in range(16)]
    manager = ml.AsyncConnectionManager.get_instance()
    while manager.get_stats()["connections"][0]["state"] != "RECOVERING":
        await asyncio.sleep(0.01)
    print("recovering", flush=True)
    print("served", [await call for call in calls] == [["demo"]] * 16, flush=True)
    await client.close()

asyncio.run(main(), debug=True)
"""


def _ride(proxy: TcpProxy) -> str:
    """What the program says to stderr that connects, loses its server and recovers."""
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", _RIDE, proxy.uri],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "connected\n", process.communicate(timeout=30)
        proxy.set_mode("refuse", cut=True)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "recovering\n"
        proxy.set_mode("pass")
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert said == "served True\n"
    return errors


def test_no_callback_is_slow_in_debug_mode(proxy: TcpProxy) -> None:
    """Connect, outage and recovery in asyncio's debug mode: no callback takes over 50 ms.

    A busy machine stops any callback for longer than that now and then; one that blocks does so
    every time. One quiet ride of five is therefore enough.
    """
    said = []
    for _ in range(5):
        said.append(_ride(proxy))
        if not said[-1]:
            break
    assert said[-1] == "", said
    assert all("Executing" in errors for errors in said[:-1]), said


_INTERRUPTED = """
import asyncio, sys
import milvus_lifecycle as ml
ml.install()
from pymilvus import AsyncMilvusClient

async def main():
    client = AsyncMilvusClient(sys.argv[1])
    await client.list_collections()
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    call = asyncio.ensure_future(client.list_collections())
    manager = ml.AsyncConnectionManager.get_instance()
    while manager.get_stats()["connections"][0]["state"] != "RECOVERING":
        await asyncio.sleep(0.01)
    print("recovering", flush=True)
    await call

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_during_an_outage_is_quiet(proxy: TcpProxy) -> None:
    """Ctrl-C in the middle of a recovery: KeyboardInterrupt for the program, nothing else said."""
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", _INTERRUPTED, proxy.uri],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "connected\n"
        proxy.set_mode("refuse", cut=True)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "recovering\n"
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert said == "interrupted\n"
    assert errors == ""
