"""Testing without a network: a clock moved by hand, scripted I/O, captured audit records.

::

    clock, script = FakeClock(), Script()
    manager = ConnectionManager(transport=script.threads(), seams=clock.seams())
    audit = CapturedAudit(manager)
    script.hold("register")                        # the next Connect calls wait for you
    worker = threading.Thread(target=manager.get_or_create, args=(config,))
    worker.start()
    script.wait_held("register").fail(rpc_error("UNAVAILABLE"))
    audit.wait_for("probe_failed")

The asyncio manager takes ``script.asyncio()`` and runs in ``clock.new_event_loop()``. Everything
else is the engine itself: nothing of it is replaced, and pymilvus is not needed. Handlers are
plain objects with ``rpc`` (one RPC) and ``call`` (an RPC that is retried as pymilvus does).
"""

from .captured import CapturedAudit
from .clock import FakeClock, until
from .script import (
    AsyncFakeHandler,
    AsyncScriptedTransport,
    FakeChannel,
    FakeHandler,
    Operation,
    Script,
    ScriptedRpcError,
    ScriptedTransport,
    rpc_error,
)

__all__ = [
    "AsyncFakeHandler",
    "AsyncScriptedTransport",
    "CapturedAudit",
    "FakeChannel",
    "FakeClock",
    "FakeHandler",
    "Operation",
    "Script",
    "ScriptedRpcError",
    "ScriptedTransport",
    "rpc_error",
    "until",
]
