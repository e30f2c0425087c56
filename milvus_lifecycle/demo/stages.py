"""The stages that every run of the demo has: servers start, the program begins, it ends."""

from __future__ import annotations

import time

from milvus_lifecycle.demo.errors import WorkloadFailed
from milvus_lifecycle.demo.outages import STEADY_S
from milvus_lifecycle.demo.port import Knock
from milvus_lifecycle.demo.server import START_LIMIT, MilvusLite
from milvus_lifecycle.demo.session import Session
from milvus_lifecycle.demo.signals import Signals
from milvus_lifecycle.demo.view import View

#: Seconds that the program may take to start and to be answered for the first time.
_BEGIN_LIMIT = 30.0

#: Seconds that it may take to end its calls, and then its process.
_STOP_LIMIT = 10.0
_EXIT_LIMIT = 5.0


def start_server(server: MilvusLite, view: View, signals: Signals) -> None:
    """Start a server and wait until it listens. Raises ServerFailed or Interrupted."""
    server.start()
    deadline = time.monotonic() + START_LIMIT
    with Knock(server.port) as knock:
        while knock.listens_at is None:
            signals.check()
            server.check()
            if time.monotonic() > deadline:
                raise server.give_up()
            time.sleep(0.02)
    # A process that lost the port to another may die after something answered on it.
    server.check()
    view.say(f"Milvus Lite listens on {server.uri}")


def begin_work(session: Session) -> float:
    """Wait until every worker has been answered once, and some more; returns when work began."""
    if not session.wait_until_all_answered(0.0, _BEGIN_LIMIT, "the program starts"):
        raise WorkloadFailed(
            f"not every worker of the client program was answered within {_BEGIN_LIMIT:.0f} s"
        )
    began = time.monotonic()
    session.view.say(f"{session.workers} workers insert, search and list")
    session.wait(STEADY_S, "regular work")
    return began


def end_work(session: Session) -> bool:
    """Let the program end; says whether its process did so by itself."""
    workload = session.workload
    workload.ask_stop()
    if not session.wait_until(lambda: workload.heard.done, _STOP_LIMIT, "the program ends"):
        open_calls = workload.ask_in_flight(limit=1.0)
        workload.close()
        workload.heard.calls.extend(open_calls)
        return False
    session.wait_until(workload.ended, _EXIT_LIMIT, "the program's process ends")
    return workload.close()
