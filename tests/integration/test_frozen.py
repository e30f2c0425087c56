"""A process that is stopped (SIGSTOP, a cgroup freezer, a suspended machine) in an outage."""

from __future__ import annotations

import signal
import time

import pytest

from tests.inside import STOPPED
from tests.processes import Child, FakeMilvusProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

#: What calls, and first connects, wait for at most (seconds).
BUDGET = 8.0

_WAIT = """
import sys
import milvus_lifecycle as ml
budget, known, new = float(sys.argv[1]), *sys.argv[2:]
ml.install(policy=ml.LifecyclePolicy(recovery_budget=budget, connect_timeout=budget))
from tests.flavours import FLAVOURS, Program
from tests.observe import Call, all_done, wait_until

programs = [Program(flavour) for flavour in FLAVOURS]
clients = [program.client(known) for program in programs]
for client in clients:
    client.list_collections()
print("connected", flush=True)
sys.stdin.readline()
calls = [Call(client.list_collections) for client in clients]
wait_until(lambda: all("fail" in program.seen() for program in programs), 7)
calls += [Call(lambda p: p.client(new).list_collections(), program) for program in programs]
wait_until(lambda: all(program.seen().count("acquire") == 2 for program in programs), 7)
print("waiting", flush=True)
all_done(calls, 60)
print([call.error or call.result for call in calls], flush=True)
"""


def test_whoever_waited_is_served_when_the_process_goes_on() -> None:
    """The servers are back when it wakes, long after all budgets: one more attempt finds that out.

    Calls in an outage, and clients that were just being made; both flavours.
    """
    with (
        FakeMilvusProcess() as known,
        FakeMilvusProcess() as new,
        Child(_WAIT, str(BUDGET), known.uri, new.uri) as child,
    ):
        child.says("connected")
        known.kill()
        new.pause()  # it does not even refuse
        child.tell()
        child.says("waiting")
        child.process.send_signal(signal.SIGSTOP)
        time.sleep(BUDGET + STOPPED + 0.5)
        known.start()
        new.resume()
        child.process.send_signal(signal.SIGCONT)
        child.says(f"{[['demo']] * 4}")
        child.end()
