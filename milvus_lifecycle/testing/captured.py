"""The records of a manager, captured for a test."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from ..audit.records import TRANSITION, TransitionRecord
from ..table import Trigger
from .clock import LIMIT, until

if TYPE_CHECKING:
    from .clock import Manager


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
        wanted = (None, str(trigger)) if trigger is not None else None
        return [
            record
            for record in self.records.copy()
            if record.event == TRANSITION and (wanted is None or record.trigger in wanted)
        ]

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
