"""A process that is stopped (SIGSTOP, a cgroup freezer, a suspended machine) in an outage."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from milvus_lifecycle.core.flights import STOPPED
from tests.processes import REPOSITORY, FakeMilvusProcess

pytestmark = pytest.mark.timeout(120)

#: What calls, and first connects, wait for at most (seconds).
BUDGET = 8.0

_WAIT = """
import sys
import milvus_lifecycle as ml
budget, known, new = float(sys.argv[1]), *sys.argv[2:]
ml.install(policy=ml.LifecyclePolicy(recovery_budget=budget, connect_timeout=budget))
from tests.flavours import FLAVOURS, Program
from tests.observe import Call, wait_until

programs = [Program(flavour) for flavour in FLAVOURS]
clients = [program.client(known) for program in programs]
for client in clients:
    client.list_collections()
print("connected", flush=True)
sys.stdin.readline()
calls = [Call(client.list_collections) for client in clients]
assert wait_until(lambda: all("fail" in program.seen() for program in programs), 7)
calls += [Call(lambda p: p.client(new).list_collections(), program) for program in programs]
assert wait_until(lambda: all(program.seen().count("acquire") == 2 for program in programs), 7)
print("waiting", flush=True)
wait_until(lambda: all(call.done for call in calls), 60)
print([call.error or call.result for call in calls], flush=True)
"""


def test_whoever_waited_is_served_when_the_process_goes_on() -> None:
    """The servers are back when it wakes, long after all budgets: one more attempt finds that out.

    Calls in an outage, and clients that were just being made; both flavours.
    """
    with FakeMilvusProcess() as known, FakeMilvusProcess() as new:
        process = subprocess.Popen(
            [sys.executable, "-c", _WAIT, str(BUDGET), known.uri, new.uri],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "connected\n"
            known.kill()
            new.pause()  # it does not even refuse
            process.stdin.write("go on\n")
            process.stdin.flush()
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGSTOP)
            time.sleep(BUDGET + STOPPED + 0.5)
            known.start()
            new.resume()
            process.send_signal(signal.SIGCONT)
            assert process.stdout.readline() == f"{[['demo']] * 4}\n"
            process.communicate(timeout=30)
        finally:
            process.kill()
