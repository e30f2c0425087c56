"""Whole processes in Python's development mode: the end of an event loop is quiet."""

from __future__ import annotations

import threading

import pytest

from tests.network import BlackHole, TcpProxy
from tests.observe import wait_until
from tests.processes import Child
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(90)

_END_DURING = """
import asyncio, sys, time
import milvus_lifecycle as ml
from tests.inside import flush_records
ml.install(policy=ml.LifecyclePolicy(idle_threshold=0.3))
from pymilvus import AsyncMilvusClient
case, ending, uri, loops = sys.argv[1:]
records = []

async def first_call(client):
    return await client.list_collections()

async def main():
    manager = ml.AsyncConnectionManager.get_instance()
    manager.subscribe(records.append)
    client = AsyncMilvusClient(uri)
    if case != "connect":
        await client.list_collections()
    if case in ("rpc", "recovery"):
        call = asyncio.ensure_future(client.has_partition("demo", "part"))
    if case != "connect":
        print("connected", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    if case == "idle":
        return
    if case in ("connect", "probe"):
        call = asyncio.ensure_future(client.list_collections())
    wanted = {"connect": "PROBING", "probe": "PROBING", "recovery": "RECOVERING"}.get(case)
    while wanted and [row["state"] for row in manager.get_stats()["connections"]] != [wanted]:
        await asyncio.sleep(0.01)
    # Of this program's own task asyncio would rightly complain if its loop were just closed.
    if ending == "close":
        call.cancel()
        await asyncio.wait([call])

if loops == "uvloop":
    import uvloop
    new_loop = uvloop.new_event_loop
else:
    new_loop = asyncio.new_event_loop
loop = new_loop()
loop.set_debug(True)
loop.slow_callback_duration = 30.0  # a test of its own looks at that
asyncio.set_event_loop(loop)
try:
    task = loop.create_task(main())
    loop.run_until_complete(task)
    if ending == "run":  # what asyncio.run does
        tasks = asyncio.all_tasks(loop)
        for each in tasks:
            each.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
finally:
    asyncio.set_event_loop(None)
    loop.close()
    del loop, task
flush_records(20)
last = {record.connection_id: record.dest for record in records}
print("ended", sorted(set(last.values())), len(last), flush=True)
"""


_CASES = ("idle", "connect", "probe", "recovery", "rpc")


@pytest.mark.parametrize(
    ("case", "ending", "loops"),
    [
        *((case, ending, "asyncio") for case in _CASES for ending in ("run", "close")),
        *((case, "run", "uvloop") for case in ("idle", "connect", "recovery")),
        ("idle", "close", "uvloop"),  # the others: see test_asyncio_loops.py
    ],
)
def test_the_loops_end_is_quiet(
    server: FakeMilvus, proxy: TcpProxy, case: str, ending: str, loops: str
) -> None:
    """A loop that ends during anything leaves its connection CLOSED and an empty stderr.

    "run" cancels all tasks first, as asyncio.run does; "close" is a plain loop.close().
    """
    if loops == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not to be had on this platform")

    hold = server.hold("GetVersion" if case == "probe" else "HasPartition")

    def lose() -> None:
        if case == "probe":
            assert not threading.Event().wait(0.6)  # idle time
        elif case != "idle":
            wait_until(lambda: hold.waiting == 1, 10)
        if case == "recovery":
            proxy.set_mode("hang", cut=True)

    strictly = ["-X", "dev", "-W", "error::ResourceWarning:milvus_lifecycle"]
    with BlackHole() as hole:
        uri = hole.uri if case == "connect" else proxy.uri
        with Child(_END_DURING, case, ending, uri, loops, options=strictly) as child:
            if case != "connect":
                child.says("connected")
                lose()
                child.tell()
            assert child.end() == ("ended ['CLOSED'] 1\n", "")
