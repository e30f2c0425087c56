"""Programs of greenlets: gevent, with gRPC's own patch and without, in processes of their own."""

from __future__ import annotations

import pytest

from tests.pages import program
from tests.processes import Child

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

_PATCHED = """
from gevent import monkey
monkey.patch_all()
"""
_PROGRAM = """
import gevent
import milvus_lifecycle as ml
from pymilvus import MilvusClient
from tests.processes import FakeMilvusProcess

ml.install()
with FakeMilvusProcess({"HasPartition": 2.0}) as server:
    client = MilvusClient(server.uri)
    slow = gevent.spawn(client.has_partition, "demo", "part")
    gevent.sleep(0.01)
    print("side by side" if not slow.ready() else "one after the other", flush=True)
    slow.get(timeout=30)
    server.kill()
    calls = [gevent.spawn(client.list_collections) for _ in range(5)]
    manager = client._manager
    while manager.get_stats()["connections"][0]["state"] != "RECOVERING":
        gevent.sleep(0.01)
    gevent.sleep(0.5)
    assert not any(call.ready() for call in calls)
    server.start()
    print([call.get(timeout=30) for call in calls], flush=True)
    client.close()
"""


def test_greenlets_ride_out_a_restart() -> None:
    """Calls wait beside one another, and the server is started by a greenlet while they do."""
    with Child(program("integration.md", "gevent") + _PROGRAM) as child:
        child.says("side by side")
        child.says(str([["demo"]] * 5))
        said, errors = child.end()
    assert (said, errors) == ("", "")


def test_without_grpcs_patch_install_says_so() -> None:
    """And so it is: a call stops every other greenlet."""
    with Child(_PATCHED + _PROGRAM) as child:
        child.says("one after the other")
        child.process.kill()
        _, errors = child.process.communicate()
    assert "RuntimeWarning: gevent has patched this process" in errors
    assert "    gevent.init_gevent()\n" in errors
