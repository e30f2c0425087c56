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

from __future__ import annotations

from ..audit.records import TRANSITION, TransitionRecord
from ..table import Trigger
from .clock import LIMIT, FakeClock, Manager, until
from .script import (
    AsyncFakeHandler,
    FakeChannel,
    FakeHandler,
    Operation,
    Script,
    ScriptedRpcError,
    ScriptedTransport,
    rpc_error,
)

#: its name when each flavour had one of its own
AsyncScriptedTransport = ScriptedTransport

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


class CapturedAudit:
    """The records of a manager, from now on; a context manager that stops listening."""

    def __init__(self, manager: Manager) -> None:
        self._audit = manager._pool.audit
        self._records: list[TransitionRecord] = []
        self._unsubscribe = manager.subscribe(self._records.append)

    @property
    def records(self) -> list[TransitionRecord]:
        """All records so far, refused triggers and created connections included."""
        self._audit.flush(LIMIT)
        return self._records

    def transitions(self, trigger: Trigger | str | None = None) -> list[TransitionRecord]:
        """The records of state changes: all, or those of one trigger."""
        steps = [record for record in self.records.copy() if record.event == TRANSITION]
        return [step for step in steps if trigger is None or step.trigger == str(trigger)]

    def wait_for(self, trigger: Trigger | str, limit: float = LIMIT) -> TransitionRecord:
        """The latest record of ``trigger``, waited for in real time."""
        until(lambda: self.transitions(trigger), limit, f"no record of {trigger}")
        return self.transitions(trigger)[-1]

    def stop(self) -> None:
        """Listen no more; what happened before is still captured."""
        self._audit.flush(LIMIT)
        self._unsubscribe()

    def __enter__(self) -> CapturedAudit:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
