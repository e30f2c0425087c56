"""What ``install`` sets for the managers that ``get_instance`` makes, and hands to children."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from dataclasses import dataclass
from typing import ClassVar

from .audit.jsonl import ENVIRONMENT as AUDIT
from .audit.jsonl import JsonLines
from .audit.logs import ApplicationLog
from .audit.records import Sink
from .errors import ConfigError
from .fork import renew_in_child
from .policy import LifecyclePolicy

#: The default of ``install(policy=...)``: fields of LifecyclePolicy, as a JSON object.
POLICY = "MILVUS_LIFECYCLE_POLICY"
#: Set by `milvus-lifecycle run`: the environment (sys.prefix) whose programs run on the engine.
RUN = "MILVUS_LIFECYCLE_RUN"


def choose_policy(policy: object) -> LifecyclePolicy | None:
    """What ``install(policy=...)`` and the environment ask for. Raises ConfigError."""
    if policy is None:
        return _read_policy(os.environ.get(POLICY, ""))
    if isinstance(policy, LifecyclePolicy):
        return policy
    raise ConfigError(
        f"policy must be a LifecyclePolicy or None, not {type(policy).__name__}", field="policy"
    )


def _read_policy(text: str) -> LifecyclePolicy | None:
    if not text:
        return None
    try:
        return LifecyclePolicy(**json.loads(text))
    except ConfigError as error:
        raise ConfigError(f"{POLICY}: {error}", field=error.field) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{POLICY} is not a JSON object of LifecyclePolicy's fields: {error}", field="policy"
        ) from None


def hand_on(policy: LifecyclePolicy | None, audit: str | None) -> None:
    """Under `milvus-lifecycle run`, Python children begin with what was installed here."""
    if RUN not in os.environ:
        return
    if policy is not None:
        os.environ[POLICY] = json.dumps(dataclasses.asdict(policy))
    if audit is not None:
        os.environ[AUDIT] = audit


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
    def renew_lock(cls) -> None:
        """In a forked child: another thread of the parent may have held it."""
        cls.lock = threading.RLock()


renew_in_child(Settings.renew_lock)
