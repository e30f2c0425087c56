"""Whole processes: clients inherited through fork, and exits that never hang."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.integration import process_bodies
from tests.network import BlackHole, TcpProxy
from tests.processes import REPOSITORY
from tests.servers import FakeMilvus
from tests.stock import Body, Kind, run

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize(
    "body",
    [
        process_bodies.an_inherited_client_works_in_a_child,
        process_bodies.a_child_of_a_busy_parent_works,
        process_bodies.a_childs_end_spares_the_parent,
        process_bodies.a_child_of_a_recovering_parent_works,
        process_bodies.a_child_and_its_parent_share_a_file,
    ],
    ids=lambda body: body.__name__,
)
def test_fork(body: Body) -> None:
    """Each body's promise about forked children holds on the engine."""
    outcome = run("engine", body)
    assert outcome.kind is Kind.PASSED, str(outcome)


_LEAVE_DURING = """
import logging, sys, threading, time
import milvus_lifecycle as ml
ml.install()
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


def _leave(case: str, uri: str, lose: TcpProxy | None) -> tuple[float, int, str]:
    """Seconds that the interpreter took to exit, its exit code and what it wrote to stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", _LEAVE_DURING, case, uri],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if line == "connected\n":
            if lose is not None:
                lose.set_mode("hang", cut=True)
            process.stdin.write("go on\n")
            process.stdin.flush()
            line = process.stdout.readline()
        assert line == "leaving\n", process.communicate(timeout=30)
        start = time.monotonic()
        _, errors = process.communicate(timeout=60)
        return time.monotonic() - start, process.returncode, errors
    finally:
        process.kill()


@pytest.mark.parametrize("case", ["idle", "connect", "recovery"])
def test_the_interpreter_exits(case: str) -> None:
    """It exits though nobody closed anything, a first connect hangs, or a recovery is under way.

    The promise is 2 s; a test allows ten times that.
    """
    with FakeMilvus() as server, TcpProxy(server.port) as proxy, BlackHole() as hole:
        uri = hole.uri if case == "connect" else proxy.uri
        took, code, errors = _leave(case, uri, proxy if case == "recovery" else None)
    assert took < 20.0
    assert code == 0
    assert "Traceback" not in errors
