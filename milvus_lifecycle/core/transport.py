"""What a pool needs of the world: of its flavour, and of the SDK and gRPC.

A driver is the flavour: threads or asyncio. A transport makes handlers and channels and performs
three raw RPCs: `drivers.pymilvus` implements it for both flavours, `testing` without any network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..errors import LifecycleError
from .connection import ManagedConnection
from .flight import Flight
from .readiness import Collection
from .requests import Open
from .wire import Wire


class Driver(Protocol):
    """What a flavour provides. Nothing here may wait."""

    def permanent_channel(self, connection: ManagedConnection) -> Any:
        """The channel that the connection's handler has for as long as it lives."""

    def launch(self, connection: ManagedConnection, flight: Flight) -> None:
        """Have a flight flown by a worker of its own. May raise if there can be none."""

    def refresh_in_background(self, connection: ManagedConnection) -> None:
        """Have ``Maintenance.refresh`` run by a worker. May raise if there can be none."""

    def post(self, job: Callable[[], object]) -> None:
        """Have ``job`` run soon by whoever keeps time. Called inside finalizers too."""

    def reschedule(self) -> None:
        """The schedule has a new next job: whoever keeps time must look again."""

    def dispose(self, wire: Wire) -> None:
        """Close a channel that nothing uses any more. Twice does no harm."""


class Transport(Protocol):
    """I/O and object construction. ``register``, ``ping`` and ``load_state`` wait; the rest must
    not. Closing a channel ends what waits on it, with any error."""

    #: gRPC's client interceptors, of its flavour, for every channel that it opens from now on
    interceptors: tuple[Any, ...]

    def make_handler(self, connection: ManagedConnection, channel: Any) -> Any:
        """The handler of a new connection, on its permanent channel. Raises ConfigError for what
        can be seen to be unusable before anything is opened."""

    def open(self, request: Open) -> Any:
        """A channel, not connected yet."""

    def outdated(self, connection: ManagedConnection, wire: Wire) -> bool:
        """Have the TLS files changed since the channel was opened? No while they are unusable."""

    def register(
        self, connection: ManagedConnection, wire: Wire, timeout: float, patient: bool
    ) -> Any:
        """Validate a channel with a Connect call: its identifier, or an awaitable of it."""

    def ping(self, connection: ManagedConnection, wire: Wire, timeout: float) -> Any:
        """Ask a channel whether it is alive; raises if not. None, or an awaitable of it."""

    def load_state(
        self, connection: ManagedConnection, collection: Collection, timeout: float
    ) -> Any:
        """Ask the server, through the permanent channel, how far ``collection`` is: a LoadState,
        or an awaitable of it. Raises what it answers instead."""

    def translate(self, error: LifecycleError) -> Exception:
        """The error as the SDK's users know errors."""
