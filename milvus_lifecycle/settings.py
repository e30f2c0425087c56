"""What ``install`` sets for the managers that ``get_instance`` makes."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

from .audit import Sink
from .forking import on_fork_in_child
from .logs import ApplicationLog
from .policy import LifecyclePolicy


@dataclass(frozen=True)
class Settings:
    """Policy and sinks of new managers."""

    policy: LifecyclePolicy | None = None
    sinks: tuple[Sink, ...] = (ApplicationLog(),)

    _current: ClassVar[Settings | None] = None
    #: Held while ``get_instance`` makes a manager with them, and while they change. Re-entrant:
    #: the collector may run a finalizer in there that looks for its manager.
    lock: ClassVar[threading.RLock] = threading.RLock()

    @classmethod
    def make(cls, policy: LifecyclePolicy | None, audit: str | None) -> Settings:
        """The application's own log, and JSON lines at the path ``audit`` if there is one."""
        sinks: tuple[Sink, ...] = (ApplicationLog(),)
        if audit is not None:
            from .jsonl import JsonLines

            sinks = (*sinks, JsonLines(audit))
        return cls(policy, sinks)

    @classmethod
    def current(cls) -> Settings:
        """What was installed last, or the defaults."""
        return cls._current or cls()

    @classmethod
    def use(cls, settings: Settings | None) -> None:
        """Set, or with None put back, the defaults of new managers."""
        with cls.lock:
            cls._current = settings

    @classmethod
    def fork_child(cls) -> None:
        """In the child: another thread of the parent may have held the lock."""
        cls.lock = threading.RLock()


on_fork_in_child(Settings)
