"""The public managers, and what ``install`` sets for those that ``get_instance`` makes."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .audit.jsonl import ENVIRONMENT as AUDIT
from .audit.jsonl import JsonLines
from .audit.logs import ApplicationLog
from .audit.records import Sink
from .audit.stream import Listener
from .config import ConnectionConfig, ForeignConfig
from .core.checkout import Checkout
from .core.facts import Seams
from .core.pool import Pool, StrategyFor
from .core.transport import Transport
from .drivers.aio import AsyncDriver, running_loop
from .drivers.threads import ThreadsDriver
from .endpoints.choose import default_strategy
from .errors import ConfigError, LifecycleError, LoopMismatch, for_callers, translate_by
from .fork import renew_in_child
from .policy import LifecyclePolicy, parse_timeout

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


class _Manager:
    """A pool, and what both flavours do with it."""

    _flavour: ClassVar[str]

    def __init__(
        self,
        policy: LifecyclePolicy | None = None,
        *,
        transport: Transport | None = None,
        strategy_for: StrategyFor = default_strategy,
        sinks: tuple[Sink, ...] = (),
        seams: Seams | None = None,
    ) -> None:
        if transport is None:
            from .drivers.pymilvus import TRANSPORTS

            transport = TRANSPORTS[self._flavour]()
        self._pool = Pool(
            self._flavour,
            policy,
            transport=transport,
            strategy_for=strategy_for,
            sinks=sinks,
            seams=seams,
        )
        self._find, self._clock = self._pool.registry.find, self._pool.seams.clock
        self._begin()

    def _begin(self) -> None:
        """Make the driver."""
        raise NotImplementedError

    def get_stats(self) -> dict[str, Any]:
        """Counts and one row per connection; ages and idle times in seconds."""
        return self._pool.stats()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener(record)`` for every transition. Returns the unsubscriber."""
        return self._pool.audit.subscribe(listener)


class ConnectionManager(_Manager):
    """Pools connections for ``MilvusClient``; a drop-in for pymilvus's class of the same name.

    Thread-safe. Errors are LifecycleError (and MilvusException, where pymilvus is installed).
    """

    _instance: ClassVar[ConnectionManager | None] = None

    _flavour = "threads"

    def _begin(self) -> None:
        self._driver = ThreadsDriver(self._pool)

    @classmethod
    def get_instance(cls) -> ConnectionManager:
        """The process's manager (a forked child works on its own copy)."""
        instance = cls._instance
        if instance is None:
            with Settings.lock:
                if cls._instance is None:
                    settings = Settings.current()
                    made = cls(settings.policy, sinks=settings.sinks)
                    cls._instance = cls._instance or made
                instance = cls._instance
        return instance

    @classmethod
    def drop_instance(cls) -> None:
        """Close the process's manager; the next ``get_instance`` makes a new one."""
        with Settings.lock:
            instance, cls._instance = cls._instance, None
        if instance is not None:
            instance._pool.retire()

    def get_or_create(
        self,
        config: ConnectionConfig | ForeignConfig,
        dedicated: bool = False,
        client: object | None = None,
        timeout: float | None = None,
    ) -> Any:
        """A handler on a usable connection.

        ``client`` holds the connection until it is released or collected; None is an anonymous
        lease, until ``release(handler)``. ``timeout`` (seconds) limits the wait; by default
        ``connect_timeout`` for a first connect and ``recovery_budget`` for a recovery.
        """
        try:
            if timeout is not None:
                timeout = parse_timeout(timeout)
            if not dedicated and type(config) is ConnectionConfig:
                pooled = self._find(config.key)
                if pooled is not None and (
                    pooled.try_fast(client, self._clock()) or self._pool.claim(pooled, client)
                ):
                    return pooled.handler
            return self._driver.drive(
                Checkout.within(self._pool, timeout).obtain(config, dedicated, client)
            )
        except LifecycleError as error:
            raise self._pool.transport.translate(error) from error.last_error

    def release(self, handler: Any, client: object | None = None) -> None:
        """Give a lease back. Closing is not waited for. Raises UnknownHandler."""
        self._pool.release(self._pool.face_of(handler).connection, client)

    def close_all(self) -> None:
        """Close every connection at once; whoever waits for one wakes with the closed error."""
        self._pool.close_all("close_all")

    def handle_error(self, handler: Any, error: Exception) -> bool:
        """What pymilvus's decorator asks after a failed call: True if it should retry.

        False for a handler that this manager did not hand out.
        """
        face = self._pool.find_face(handler)
        return face is not None and face.on_rpc_error(error)


class AsyncConnectionManager(_Manager):
    """Pools connections for ``AsyncMilvusClient``; a drop-in for pymilvus's class of that name.

    Use it inside its event loop, with which its connections end. Errors are those of
    ``ConnectionManager``.
    """

    # By id of the loop. Weak: a manager lives as long as its loop or somebody who uses it.
    _instances: ClassVar[weakref.WeakValueDictionary[int, AsyncConnectionManager]] = (
        weakref.WeakValueDictionary()
    )

    _flavour = "asyncio"

    def _begin(self) -> None:
        self._driver = AsyncDriver(self._pool, type(self).get_instance)
        self._anchored = self._driver.anchor(self)

    @classmethod
    def get_instance(cls) -> AsyncConnectionManager:
        """The running loop's manager. Raises LoopMismatch outside of a loop."""
        loop = running_loop()
        if loop is None:
            raise for_callers(LoopMismatch("no event loop is running here"))
        with Settings.lock:
            over = [known for known in cls._instances.values() if known._driver.loop_is_over()]
            instance = cls._instances.get(id(loop))
            if instance is None or instance._driver.loop is not loop:
                settings = Settings.current()
                instance = cls(settings.policy, sinks=settings.sinks)
                cls._instances[id(loop)] = instance
        for known in over:
            known._driver.loop_gone()  # outside the lock: closing calls listeners
        return instance

    @classmethod
    def drop_instances(cls) -> None:
        """Close the managers of every loop; ``get_instance`` makes new ones."""
        with Settings.lock:
            instances = list(cls._instances.values())
            cls._instances.clear()
        for instance in instances:
            instance._pool.retire()

    async def get_or_create(
        self,
        config: ConnectionConfig | ForeignConfig,
        dedicated: bool = False,
        client: object | None = None,
        timeout: float | None = None,
    ) -> Any:
        """A handler on a usable connection; see ``ConnectionManager.get_or_create``."""
        try:
            if timeout is not None:
                timeout = parse_timeout(timeout)
            if not dedicated and type(config) is ConnectionConfig:
                pooled = self._find(config.key)
                if pooled is not None and (
                    pooled.try_fast(client, self._clock()) or self._pool.claim(pooled, client)
                ):
                    return pooled.handler
            return await self._driver.drive(
                Checkout.within(self._pool, timeout).obtain(config, dedicated, client)
            )
        except LifecycleError as error:
            raise self._pool.transport.translate(error) from error.last_error

    async def release(self, handler: Any, client: object | None = None) -> None:
        """Give a lease back. Raises UnknownHandler."""
        face = self._pool.face_of(handler)
        self._pool.release(face.connection, client)
        self._driver.reschedule()  # its expiry may be planned on a timer that was interrupted
        face.let_go_elsewhere(client)

    async def close_all(self) -> None:
        """Close every connection at once; whoever waits for one wakes with the closed error."""
        self._pool.close_all("close_all")

    async def handle_error(self, handler: Any, error: Exception) -> bool:
        """What pymilvus's decorator asks after a failed call: True if it should retry.

        False for a handler that this manager did not hand out.
        """
        face = self._pool.find_face(handler)
        return face is not None and await face.on_rpc_error(error)

    async def __aenter__(self) -> AsyncConnectionManager:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close_all()
        anchored = self._anchored()
        if anchored is not None and self not in list(self._instances.values()):
            anchored.cancel()  # a manager of one's own need not wait for the loop's end


def _translate(error: LifecycleError) -> Exception:
    """As pymilvus's users know errors, where it is installed."""
    try:
        from .drivers.pymilvus_errors import translate
    except ImportError:
        return error
    return translate(error)


translate_by(_translate)
