"""ConnectionManager: the threads driver. It blocks where a procedure asks it to, and no more.

Callers never do the engine's I/O: a flight runs on a daemon thread of its own, so that every
caller can leave at its own deadline. One more daemon thread keeps time for all connections of
a manager; it ends when there are none.
"""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from ..audit.stream import Listener
from ..config import ConnectionConfig, ForeignConfig
from ..core.connection import ManagedConnection
from ..core.engine import look
from ..core.facts import Located
from ..core.kept import kept
from ..core.mutex import Reentered
from ..core.procedures import Procedures
from ..core.requests import (
    AskLoadState,
    Locate,
    Open,
    Pause,
    Ping,
    Procedure,
    Register,
    Request,
    Wait,
)
from ..core.timers import attempt
from ..errors import Interrupted, LifecycleError
from ..fork import ForkGate, around_fork, on_fork_in_child
from ..policy import LifecyclePolicy, parse_timeout
from ..settings import Settings

if TYPE_CHECKING:
    from ..core.flight import Flight
    from ..core.strategies import Locator
    from ..core.wire import Wire

T = TypeVar("T")


class ConnectionManager(Procedures):
    """Pools connections for ``MilvusClient``; a drop-in for pymilvus's class of the same name.

    Thread-safe. Errors are LifecycleError (and MilvusException, where pymilvus is installed).
    """

    flavour: ClassVar[str] = "threads"
    _instance: ClassVar[ConnectionManager | None] = None

    def __init__(self, policy: LifecyclePolicy | None = None, **seams: Any) -> None:
        if "transport" not in seams:
            from ..integrations.pymilvus import ThreadsTransport

            seams["transport"] = ThreadsTransport()
        super().__init__(policy, **seams)
        self._mailbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._keeper: threading.Thread | None = None
        self._keeper_lock = threading.RLock()
        self._gate = ForkGate()
        _MANAGERS.add(self)
        on_fork_in_child(self)
        around_fork(self)

    # -- public ----------------------------------------------------------------------------

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
            instance.retire()

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
                pooled = self.registry.find(config.key)
                if pooled is not None and pooled.try_fast(client, self.seams.clock()):
                    return pooled.handler
            return self.drive(self.obtain(config, dedicated, client, timeout))
        except LifecycleError as error:
            raise self.transport.translate(error) from error.last_error

    def release(self, handler: Any, client: object | None = None) -> None:
        """Give a lease back. Closing is not waited for. Raises UnknownHandler."""
        self.let_go(self.face_of(handler).connection, client)

    def close_all(self) -> None:
        """Close every connection at once; whoever waits for one wakes with the closed error."""
        self.shut_all("close_all")

    def handle_error(self, handler: Any, error: Exception) -> bool:
        """What pymilvus's decorator asks after a failed call: True if it should retry.

        False for a handler that this manager did not hand out.
        """
        face = self.find_face(handler)
        return face is not None and face.on_rpc_error(error)

    def get_stats(self) -> dict[str, Any]:
        """Counts and one row per connection; ages and idle times in seconds."""
        return self.stats()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener(record)`` for every transition. Returns the unsubscriber."""
        return self.listen(listener)

    # -- driving procedures ----------------------------------------------------------------

    def drive(self, procedure: Procedure[T]) -> T:
        """Run a procedure to its end on this thread."""
        try:
            request = next(procedure)
            while True:
                try:
                    result = self._perform(request)
                except BaseException as error:
                    request = procedure.throw(error)
                else:
                    request = procedure.send(result)
        except StopIteration as stop:
            return cast(T, stop.value)

    def _perform(self, request: Request) -> Any:
        if isinstance(request, Wait):
            return self._wait(request)
        if isinstance(request, Register):
            return self._ask(request, self.transport.register, request.timeout, request.patient)
        if isinstance(request, Ping):
            return self._ask(request, self.transport.ping, request.timeout)
        if isinstance(request, Open):
            with self._gate.inside():
                return self.transport.open(
                    request.connection, request.address, request.secure, request.window
                )
        if isinstance(request, Locate):
            located: Located = request.locator.locate(
                request.connection, request.last_error, request.timeout
            )
            return located
        if isinstance(request, AskLoadState):
            return self.transport.load_state(
                request.connection, request.collection, request.timeout
            )
        assert isinstance(request, Pause)
        return self.seams.wait(threading.Event(), self.seams.clock() + request.seconds)

    def _ask(self, request: Register | Ping, ask: Callable[..., Any], *how: Any) -> Any:
        connection, wire = request.connection, request.wire
        answered = False
        try:
            with self._gate.inside():
                answer = ask(connection, wire, *how)
                # Whoever forks closes the gate, then looks at this: either he sees it, or this
                # thread stays in here until the fork is over, and sees that it was recalled.
                answered = connection.vouch(wire)
        except Exception:
            if not wire.recalled:
                raise
        if not answered:
            raise Interrupted(address=wire.address)
        return answer

    def _wait(self, request: Wait) -> None:
        flight, landed = request.flight, threading.Event()
        wake = landed.set
        try:
            if request.connection.join(flight, wake, request.until, leads=request.leads):
                self.seams.wait(landed, request.until + request.grace)
        finally:
            self.parted(request.connection, flight, wake)

    # -- what the engine asks of its driver ------------------------------------------------

    def launch(self, connection: ManagedConnection, flight: Flight) -> None:
        worker = threading.Thread(
            target=self._fly,
            args=(connection, flight),
            name=f"milvus-lifecycle-{flight.kind.value}-{connection.id}",
            daemon=True,
        )
        try:
            worker.start()
        except RuntimeError:
            if not _exiting:
                raise
            # From Python 3.12 on no thread can be started any more: the caller flies.
            self._fly(connection, flight)

    def _fly(self, connection: ManagedConnection, flight: Flight) -> None:
        try:
            self.drive(self.fly(connection, flight, threading.current_thread()))
        except Exception as error:
            # The flight is settled as abandoned and on record; a traceback helps nobody.
            connection.last_error = kept(error)
        finally:
            self.abandon(connection, flight, threading.current_thread())  # it may not have begun

    def aside(self, connection: ManagedConnection) -> None:
        threading.Thread(
            target=self.drive,
            args=(self.refresh(connection),),
            name=f"milvus-lifecycle-refresh-{connection.id}",
            daemon=True,
        ).start()

    def dispose(self, wire: Wire) -> None:
        wire.methods.clear()
        wire.channel.close()

    def discharge(self, connection: ManagedConnection, locator: Locator) -> None:
        locator.release(connection)

    # -- time ------------------------------------------------------------------------------

    def post(self, job: Callable[[], object]) -> None:
        # SimpleQueue.put is re-entrant: finalizers may call this anywhere.
        self._mailbox.put(job)

    def wind(self) -> None:
        keeper = self._keeper
        if keeper is not None and keeper.is_alive():
            if keeper is not threading.current_thread():
                self._mailbox.put(look)
            return
        if self._keeper_lock._is_owned():  # type: ignore[attr-defined]
            self._mailbox.put(look)  # a finalizer sets a timer while this thread starts the keeper
            return
        with self._keeper_lock:
            if self._keeper is not None and self._keeper.is_alive():
                self._mailbox.put(look)
                return
            keeper = threading.Thread(
                target=_keep_time,
                args=(weakref.ref(self), self._mailbox),
                name="milvus-lifecycle-timekeeper",
                daemon=True,
            )
            # Noted first: whoever is interrupted here may have started it.
            self._keeper = keeper
            with suppress(RuntimeError):  # no thread to be had: the next timer tries again
                keeper.start()

    def keeper_may_end(self) -> bool:
        """Called by the timekeeper: it has nothing to do without a connection.

        What is on the agenda then is about connections that are closed.
        """
        with self._keeper_lock:
            if self._busy():
                return False
            keeper, self._keeper = self._keeper, None
            # Whoever registers a connection looks for a keeper after that, without the lock: he
            # has seen that there is none, or the connection is seen here.
            if self._busy():
                self._keeper = keeper
                return False
            return True

    def _busy(self) -> bool:
        return len(self.registry) > 0 or not self._mailbox.empty()

    def fork_begins(self) -> bool:
        """Let no flight be inside gRPC while the process forks: channels that connect are closed.

        Their flights open others afterwards. RPCs of callers are left alone.
        """
        self._gate.close()
        try:
            recalled = [connection.recall() for connection in self.registry.all()]
        except Reentered:  # a finalizer forks, of all things
            return False
        closed = [wire for result in recalled for wire in result.retired if wire.close_if_drained()]
        for wire in closed:
            self.close_channel(wire)
        return bool(closed)

    def fork_waits(self, until: float) -> None:
        """A flight may be on its way out of gRPC; a ping ends by itself."""
        self._gate.wait(until)

    def fork_is_over(self) -> None:
        """In the parent: flights go on."""
        self._gate.open()

    def fork_child(self) -> None:
        self._gate = ForkGate()
        self._mailbox = queue.SimpleQueue()
        self._keeper = None
        self._keeper_lock = threading.RLock()
        super().fork_child()
        if len(self.registry):
            self.wind()

    def __del__(self) -> None:
        mailbox = getattr(self, "_mailbox", None)  # absent if __init__ raised
        if mailbox is not None:
            mailbox.put(_stop)


def _stop() -> None:
    """The last letter that a timekeeper gets."""


def _keep_time(
    manager_ref: weakref.ref[ConnectionManager],
    mailbox: queue.SimpleQueue[Callable[[], object]],
) -> None:
    """The timekeeper: runs what is due and what finalizers put off. Holds the manager weakly."""
    while True:
        manager = manager_ref()
        if manager is None:
            return
        due = manager.run_due()
        if manager.keeper_may_end():
            return
        wait = None
        if due is not None:
            wait = min(max(0.0, due - manager.seams.clock()), threading.TIMEOUT_MAX)
        del manager
        try:
            job = mailbox.get(timeout=wait)
        except queue.Empty:
            continue
        if job is _stop:
            return
        attempt(job)


_MANAGERS: weakref.WeakSet[ConnectionManager] = weakref.WeakSet()


_exiting = False


def _at_exit() -> None:
    # What was registered with atexit before us runs after this, and may go on calling.
    global _exiting
    _exiting = True
    for manager in list(_MANAGERS):
        manager.close_all()


atexit.register(_at_exit)
