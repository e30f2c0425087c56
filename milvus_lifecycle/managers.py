"""The public managers, and what ``install`` sets for those that ``get_instance`` makes."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .audit.jsonl import ENVIRONMENT as AUDIT
from .audit.jsonl import JsonLines
from .audit.logs import ApplicationLog
from .audit.records import Sink
from .audit.stream import Listener, Listening
from .config import ConnectionConfig, ForeignConfig
from .core.checkout import Checkout
from .core.facts import Seams
from .core.pool import Pool, StrategyFor
from .core.strategies import ConnectionStrategy
from .core.transport import Transport
from .drivers.aio import AsyncDriver, running_loop
from .drivers.rpc import INTERCEPTORS
from .drivers.threads import ThreadsDriver
from .endpoints.choose import default_strategy
from .errors import ConfigError, LifecycleError, LoopMismatch, brief, for_callers, translate_by
from .fork import renew_in_child
from .policy import LifecyclePolicy, parse_timeout

#: The default of ``install(policy=...)``: fields of LifecyclePolicy, as a JSON object.
POLICY = "MILVUS_LIFECYCLE_POLICY"
#: The same, one field each: what is set here holds over that.
VARIABLES = {
    field.name: f"MILVUS_LIFECYCLE_{field.name.upper()}"
    for field in dataclasses.fields(LifecyclePolicy)
}
#: Set by `milvus-lifecycle run`: the environment (sys.prefix) whose programs run on the engine.
RUN = "MILVUS_LIFECYCLE_RUN"


def choose_policy(policy: object, given: Mapping[str, str] | None = None) -> LifecyclePolicy | None:
    """What ``install(policy=...)`` and the environment ask for. Raises ConfigError.

    ``given``: fields of the command line as they were written, which hold over the environment.
    """
    if policy is None:
        return _read_policy(given or {})
    if isinstance(policy, LifecyclePolicy):
        return policy
    raise ConfigError(
        f"policy must be a LifecyclePolicy or None, not {type(policy).__name__}", field="policy"
    )


def _read_policy(given: Mapping[str, str]) -> LifecyclePolicy | None:
    text = os.environ.get(POLICY, "")
    own = {field: name for field, name in VARIABLES.items() if os.environ.get(name)}
    words = {**{field: os.environ[name] for field, name in own.items()}, **given}
    own.update(dict.fromkeys(given, "--policy"))
    try:
        fields = {**json.loads(text)} if text else {}
        own = {**dict.fromkeys(fields, POLICY), **own}
        fields.update({field: _read_value(word) for field, word in words.items()})
        return LifecyclePolicy(**fields) if fields or text else None
    except ConfigError as error:
        # Two that do not fit may be of two places, or one a default.
        name = own.get(error.field) or " and ".join(dict.fromkeys(own.values()))
        raise ConfigError(f"{name}: {error}", field=error.field) from None
    except (ValueError, TypeError) as error:
        accepted = "a JSON object of LifecyclePolicy's fields"
        raise ConfigError(f"{POLICY} is not {accepted}: {error}", field="policy") from None


def _read_value(word: str) -> object:
    """A number or None; another word as it is, for LifecyclePolicy to refuse with its own words."""
    try:
        return json.loads("null" if word.lower() == "none" else word)
    except ValueError:
        return word


def hand_on(policy: LifecyclePolicy | None, audit: str | None) -> None:
    """Under `milvus-lifecycle run`, Python children begin with what was installed here."""
    if RUN not in os.environ:
        return
    if policy is not None:
        os.environ[POLICY] = json.dumps(dataclasses.asdict(policy))
        for name in VARIABLES.values():
            os.environ.pop(name, None)
    if audit is not None:
        os.environ[AUDIT] = audit


@dataclass(frozen=True)
class Hooks:
    """What ``install`` hooks into the managers that ``get_instance`` makes. Raises ConfigError."""

    listeners: Iterable[Listener] = ()
    strategy_for: Callable[[ConnectionConfig], ConnectionStrategy | None] | None = None
    interceptors: Iterable[Any] = ()

    def __post_init__(self) -> None:
        for name in ("listeners", "interceptors"):
            given = getattr(self, name)
            if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
                raise _unusable(name, "a list or tuple", given)
            object.__setattr__(self, name, tuple(given))
        for listener in self.listeners:
            if not callable(listener):
                raise _unusable("listeners", "callables that take a TransitionRecord", listener)
        if self.strategy_for is not None and not callable(self.strategy_for):
            raise _unusable("strategy_for", "a callable or None", self.strategy_for)
        for interceptor in self.interceptors:
            if not isinstance(interceptor, sum(INTERCEPTORS.values(), ())):
                raise _unusable("interceptors", "gRPC's client interceptors", interceptor)

    def strategy(self, config: ConnectionConfig) -> ConnectionStrategy:
        """The strategy for a configuration: the hook's, or the engine's own choice."""
        chosen = None
        if self.strategy_for is not None:
            try:
                chosen = self.strategy_for(config)
            except LifecycleError:
                raise
            except Exception as error:
                raise ConfigError(
                    f"strategy_for raised {brief(error)}",
                    field="strategy_for",
                    address=config.address,
                ) from error
        if chosen is None:
            return default_strategy(config)
        if not isinstance(chosen, ConnectionStrategy):
            raise _unusable("strategy_for's result", "a ConnectionStrategy or None", chosen)
        return chosen


NO_HOOKS = Hooks()


def _fitting(flavour: str, interceptors: Iterable[Any]) -> tuple[Any, ...]:
    """Those of the flavour's kind: threads and asyncio have classes of their own in gRPC."""
    return tuple(one for one in interceptors if isinstance(one, INTERCEPTORS[flavour]))


def _unusable(name: str, accepted: str, given: object) -> ConfigError:
    message = f"{name} must be {accepted}, not {type(given).__name__}"
    return ConfigError(message, field=name)


@dataclass(frozen=True)
class Settings:
    """Policy, sinks and hooks of new managers."""

    policy: LifecyclePolicy | None = None
    sinks: tuple[Sink, ...] = (ApplicationLog(),)
    hooks: Hooks = NO_HOOKS

    _current: ClassVar[Settings | None] = None
    #: Held while ``get_instance`` makes a manager with them, and while they change. Re-entrant:
    #: the collector may run a finalizer in there that looks for its manager.
    lock: ClassVar[threading.RLock] = threading.RLock()

    @classmethod
    def make(
        cls, policy: LifecyclePolicy | None, audit: str | None, hooks: Hooks = NO_HOOKS
    ) -> Settings:
        """The application's own log, JSON lines at the path ``audit`` if there is one, and the
        listeners."""
        sinks: tuple[Sink, ...] = (ApplicationLog(), *map(Listening, hooks.listeners))
        if audit is not None:
            sinks = (*sinks, JsonLines(audit))
        return cls(policy, sinks, hooks)

    def extend(self) -> None:
        """Give the listeners, and what else is hooked in, to the process's managers that exist
        already. One that the application made has what it was made with."""
        with self.lock:
            instances = [ConnectionManager._instance, *AsyncConnectionManager._instances.values()]
        for manager in filter(None, instances):
            for sink in self.sinks:
                if not isinstance(sink, ApplicationLog):
                    manager._pool.audit.add(sink)
            manager._pool.strategy_for = self.hooks.strategy
            fitting = _fitting(manager._flavour, self.hooks.interceptors)
            manager._pool.transport.interceptors = fitting

    @classmethod
    def current(cls) -> Settings:
        """What was installed last, or the defaults."""
        return cls._current or cls()

    @classmethod
    def installed(cls) -> bool:
        """Is pymilvus on the engine?"""
        return cls._current is not None

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

#: every manager of the process
_managers: weakref.WeakSet[_Manager] = weakref.WeakSet()


def all_managers() -> list[_Manager]:
    """Every manager that there is."""
    with Settings.lock:
        return list(_managers)


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
        interceptors: Iterable[Any] = (),
        seams: Seams | None = None,
    ) -> None:
        if transport is None:
            from .drivers.pymilvus import TRANSPORTS

            transport = TRANSPORTS[self._flavour]()
        if interceptors:
            transport.interceptors = _fitting(self._flavour, interceptors)
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
        with Settings.lock:
            _managers.add(self)

    @classmethod
    def _of_process(cls) -> Any:
        """One as ``install`` wants them."""
        now = Settings.current()
        hooks = now.hooks
        return cls(
            now.policy,
            sinks=now.sinks,
            strategy_for=hooks.strategy,
            interceptors=hooks.interceptors,
        )

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
                    made = cls._of_process()
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
            raise self._pool.transport.translate(error) from None

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
                instance = cls._instances[id(loop)] = cls._of_process()
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
            raise self._pool.transport.translate(error) from None

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
