"""Managers of the threads flavour on a script and a fake clock, and strategies for them."""

from __future__ import annotations

import sys
from typing import Any

from typing_extensions import Self

from milvus_lifecycle import ConnectionManager, LifecyclePolicy, RegularStrategy
from milvus_lifecycle.core.facts import Facts, Located
from milvus_lifecycle.core.strategies import ConnectionStrategy, Locator
from milvus_lifecycle.testing import CapturedAudit, FakeClock, Script, rpc_error, until
from tests.cores import CONFIG
from tests.observe import Call

HOME = "home:19530"


class Rig:
    """One manager with all that a test moves and looks at; closes everything at its end."""

    def __init__(
        self,
        strategy: ConnectionStrategy | None = None,
        manager: type[ConnectionManager] = ConnectionManager,
        **policy: Any,
    ) -> None:
        self.clock, self.script = FakeClock(), Script()
        self.manager = manager(
            LifecyclePolicy(**policy),
            transport=self.script.threads(),
            seams=self.clock.seams(),
            strategy_for=lambda config: strategy or RegularStrategy(config),
        )
        self.clock.attach(self.manager)
        self.audit = CapturedAudit(self.manager)

    def connected(self, client: object | None = None, **how: Any) -> Any:
        """A handler on a validated connection."""
        return self.manager.get_or_create(CONFIG, client=client, **how)

    def count(self, kind: str) -> int:
        """How many operations of this kind the engine has asked for."""
        return sum(operation.kind == kind for operation in list(self.script.operations))

    def triggers(self) -> list[str]:
        """The triggers that moved something, in order."""
        return [str(record.trigger) for record in self.audit.transitions()]

    def failing(self, handler: Any, kind: str) -> Call:
        """A call whose RPC fails, and that waits for a flight, which is held in its ``kind``."""
        self.script.plan("rpc", rpc_error("UNAVAILABLE"))
        self.script.hold(kind)
        call = Call(handler.call)
        self.script.wait_held(kind)
        self.sees(lambda: self.clock.sleeping() == 1, "the call does not wait")
        return call

    def sees(self, what: Any, complaint: str) -> None:
        """Poll for a condition."""
        until(what, 20, complaint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.manager.close_all()
        self.script.let_go()


class Roamer(RegularStrategy):
    """Like a global cluster's: a locator says where to be. ``target`` is what was last heard."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.target = HOME
        #: the locator; None: the configured address
        self.where: Locator | None = None
        #: seconds between two refreshes
        self.every: float | None = None
        #: how often the engine wanted to know who locates
        self.asked = 0

    def target_changed(self, connection: Any, facts: Facts) -> bool:
        return bool(connection.address != self.target)

    def locator(self, connection: Any) -> Any:
        self.asked += 1
        return self.where

    def refresh_every(self, connection: Any) -> float | None:
        return self.every


class Faithful(Roamer):
    """A channel that failed may turn out to be good."""

    keeps_current = True


class Signpost:
    """A locator whose answers the script gives; by itself it says where it points."""

    def __init__(self, script: Script, target: str = HOME) -> None:
        self.script = script
        self.target = target

    def locate(self, connection: Any, last_error: Any, timeout: float) -> Located:
        found: Located = self.script.perform("locate", self.target, timeout).done.result()
        return found

    def release(self, connection: Any) -> None:
        """Nothing is held."""


class Unraisable:
    """Collects what Python can only print: errors in finalizers and in callbacks of references."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __enter__(self) -> Self:
        self._hook, sys.unraisablehook = sys.unraisablehook, self._note
        return self

    def __exit__(self, *exc: object) -> None:
        sys.unraisablehook = self._hook

    def _note(self, note: Any) -> None:
        self.seen.append(f"{note.err_msg}: {note.exc_value!r}")
