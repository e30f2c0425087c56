"""Whole processes: forks, exits that never hang, interruptions, callbacks that take too long."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import grpc
import pytest

from tests.integration import process_bodies
from tests.network import BlackHole, TcpProxy
from tests.processes import Child, FakeMilvusProcess
from tests.servers import FakeMilvus
from tests.stock import Kind, run

pytestmark = pytest.mark.timeout(120)

BODIES = [
    body
    for body in vars(process_bodies).values()
    if "limit" in getattr(body, "__dict__", {})  # what `defect` leaves on a body
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_fork(body: Any) -> None:
    """Each body's promise about forked children holds on the engine."""
    old = tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 84)
    if old and body.__name__ in (
        "a_child_of_a_busy_parent_works",
        "a_child_and_its_parent_share_a_file",
    ):
        pytest.skip("grpcio before 1.84 hangs or aborts in the child of a process that is in RPCs")
    outcome = run("engine", body)
    assert outcome.kind is Kind.PASSED, str(outcome)


_LEAVE_DURING = """
import logging, sys, threading, time
import milvus_lifecycle as ml
ml.install(policy=ml.LifecyclePolicy(connect_timeout=2.0))
from pymilvus import MilvusClient
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs tracebacks of its own
case, uri = sys.argv[1:]
def quietly(work, *args):
    # The exit closes the connection under this call; its error is this thread's own business.
    try:
        work(*args)
    except Exception:
        pass
if case == "connect":
    threading.Thread(target=quietly, args=(MilvusClient, uri), daemon=True).start()
else:
    client = MilvusClient(uri)
    client.list_collections()
    print("connected", flush=True)
    sys.stdin.readline()
    threading.Thread(target=quietly, args=(client.list_collections,), daemon=True).start()
manager = ml.ConnectionManager.get_instance()
wanted = "PROBING" if case == "connect" else "RECOVERING"
if case != "idle":
    while wanted not in [entry["state"] for entry in manager.get_stats()["connections"]]:
        time.sleep(0.01)
print("leaving", flush=True)
"""


@pytest.mark.parametrize("case", ["idle", "connect", "recovery"])
def test_the_interpreter_exits(server: FakeMilvus, proxy: TcpProxy, case: str) -> None:
    """It exits though nobody closed anything, a first connect hangs, or a recovery is under way.

    The promise is 2 s; a test allows ten times that.
    """
    with BlackHole() as hole:
        uri = hole.uri if case == "connect" else proxy.uri
        with Child(_LEAVE_DURING, case, uri) as child:
            if case != "connect":
                child.says("connected")
                if case == "recovery":
                    proxy.set_mode("hang", cut=True)
                child.tell()
            child.says("leaving")
            start = time.monotonic()
            _, errors = child.end()
            assert time.monotonic() - start < 20.0
    assert "Traceback" not in errors


_FLUSH = """
import asyncio, atexit, sys, threading
name, uri = sys.argv[1:]
def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")
def flush():
    if name == "threads":
        threading.Thread.start = refuse
        print("flushed", client.list_collections(), flush=True)
    else:
        print("flushed", asyncio.run(lists()), flush=True)
async def lists():
    client = AsyncMilvusClient(uri)
    return await client.list_collections()
atexit.register(flush)
import milvus_lifecycle as ml
ml.install()
from pymilvus import AsyncMilvusClient, MilvusClient
if name == "threads":
    client = MilvusClient(uri)
    client.list_collections()
else:
    asyncio.run(lists())
print("connected", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("restart", [False, True], ids=["up", "restarted"])
@pytest.mark.parametrize("name", ["threads", "asyncio"])
def test_a_flush_at_exit(name: str, restart: bool) -> None:
    """It was registered before the engine was imported, so the engine has closed all before it.

    Python 3.12 starts no thread any more by then: imitated on others, but for asyncio.
    """
    if name == "asyncio" and sys.version_info[:2] == (3, 12):
        pytest.skip("grpc.aio can start no thread at the exit of Python 3.12")
    with FakeMilvusProcess() as server, Child(_FLUSH, name, server.uri) as child:
        child.says("connected")
        if restart:
            server.kill()
            server.start()
        child.tell()
        child.says("flushed ['demo']")
        _, errors = child.end()
    assert "Traceback" not in errors


#: So many calls lose their server; it says so, and waits for their answers.
_RIDE = """
import asyncio, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell ignores it
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
    calls = [asyncio.ensure_future(client.list_collections()) for _ in range(int(sys.argv[2]))]
    manager = ml.AsyncConnectionManager.get_instance()
    while manager.get_stats()["connections"][0]["state"] != "RECOVERING":
        await asyncio.sleep(0.01)
    print("recovering", flush=True)
    print("served", *{str(await call) for call in calls}, flush=True)
    await client.close()

try:
    asyncio.run(main(), debug="debug" in sys.argv)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def _recovering(proxy: TcpProxy, *how: str) -> Child:
    """The program in the middle of its recovery."""
    child = Child(_RIDE, proxy.uri, *how, options=["-X", "dev"])
    child.says("connected")
    proxy.set_mode("refuse", cut=True)
    child.tell()
    child.says("recovering")
    return child


@pytest.mark.timeout(300)  # five programs, which import for 15 s each on a busy machine
def test_no_callback_is_slow_in_debug_mode(proxy: TcpProxy) -> None:
    """Connect, outage and recovery in asyncio's debug mode: no callback takes over 50 ms.

    A busy machine stops any callback for longer than that now and then; one that blocks does so
    every time. One quiet ride of five is therefore enough.
    """
    said: list[str] = []
    while not said or (said[-1] and len(said) < 5):
        with _recovering(proxy, "16", "debug") as child:
            proxy.set_mode("pass")
            child.says("served ['demo']")
            said.append(child.end()[1])
    assert said[-1] == "", said
    assert all("Executing" in errors for errors in said[:-1]), said


def test_an_interrupt_during_an_outage_is_quiet(proxy: TcpProxy) -> None:
    """Ctrl-C in the middle of a recovery: KeyboardInterrupt for the program, nothing else said."""
    with _recovering(proxy, "1") as child:
        child.process.send_signal(signal.SIGINT)
        assert child.end() == ("interrupted\n", "")
