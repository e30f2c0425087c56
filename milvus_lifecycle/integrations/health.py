"""Readiness: what a service's probes ask about all connections, or about one endpoint."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ..config import ConnectionConfig
from ..core.checkout import hoping
from ..errors import ConfigError, Failure, RecoveryExhausted, classify
from ..managers import AsyncConnectionManager, ConnectionManager, Settings, all_managers
from ..policy import parse_timeout
from ..table import State

#: Gap (seconds) between two questions to a server that says that it is not ready.
PAUSE = 0.25
_UNUSABLE = (State.RECOVERING.value, State.PROBING.value)


def status() -> dict[str, Any]:
    """All managers of this process, JSON-ready and without a secret.

    ``ready`` is False while a connection recovers, connects or is asked whether it is alive, and
    after a give_up until something has answered. Each of ``managers`` is what its ``get_stats``
    says, with its ``flavour``.
    """
    managers = [{"flavour": manager._flavour, **manager.get_stats()} for manager in all_managers()]
    rows = [row for manager in managers for row in manager["connections"]]
    unusable = sum(map(_unusable, rows))
    return {
        "installed": Settings.installed(),
        "ready": not unusable,
        "connections": len(rows),
        "unusable": unusable,
        "waiting": sum(row["waiting"] for row in rows),
        "managers": managers,
    }


def _unusable(row: dict[str, Any]) -> bool:
    # In use it was validated, even if its outage lasts until a user's call has succeeded: whoever
    # sends none to a program that is not ready would wait for that for ever.
    gave_up = row["state"] == State.IDLE.value and row["outage"] is not None
    return row["state"] in _UNUSABLE or gave_up


def wait_ready(client_or_uri: Any, timeout: float | None = None) -> None:
    """Wait until a server answers: that of a MilvusClient, or at a URI (with its credentials).

    ``timeout`` in seconds; None: as long as it takes. Servers that refuse, are not ready or restart
    are waited for. Raises LifecycleError (and MilvusException), or what its GetVersion ended with
    (a grpc.RpcError, too): what is wrong when time is up, and at once what waiting does not mend,
    such as wrong credentials.
    """
    wait = _Wait(client_or_uri, timeout)
    while True:
        try:
            with hoping(wait.left):
                _ask(wait)
            return
        except Exception as error:
            time.sleep(wait.pause_after(error))


async def wait_ready_async(client_or_uri: Any, timeout: float | None = None) -> None:
    """The same for an AsyncMilvusClient, or a URI, in a running event loop."""
    wait = _Wait(client_or_uri, timeout)
    while True:
        try:
            with hoping(wait.left):
                await _ask_async(wait)
            return
        except Exception as error:
            await asyncio.sleep(wait.pause_after(error))


class _Wait:
    """Until when, and for whom."""

    def __init__(self, target: Any, timeout: float | None) -> None:
        limit = parse_timeout(timeout)
        self._until = None if limit is None else time.monotonic() + limit
        self.config = ConnectionConfig.from_uri(target) if isinstance(target, str) else None
        if self.config is None and not hasattr(target, "_get_connection"):
            raise ConfigError(
                "client_or_uri must be a URI or one of pymilvus's clients, not "
                f"{type(target).__name__}",
                field="client_or_uri",
            )
        self.client = target

    @property
    def left(self) -> float:
        return _LONG if self._until is None else max(0.0, self._until - time.monotonic())

    @property
    def timeout(self) -> float | None:
        return None if self._until is None else self.left

    def pause_after(self, error: Exception) -> float:
        """How long to wait before the next question. Raises ``error`` if there is none."""
        later = isinstance(error, RecoveryExhausted) or classify(error) is Failure.NOT_UP
        if not later or self.left <= PAUSE:
            raise error
        return PAUSE


#: seconds
_LONG = 86_400.0


class _Asker:
    """Holds a connection while it is asked."""


def _ask(wait: _Wait) -> None:
    if wait.config is None:
        wait.client._get_connection().get_server_version(timeout=wait.timeout)
        return
    manager, asker = ConnectionManager.get_instance(), _Asker()
    handler = manager.get_or_create(wait.config, client=asker, timeout=wait.timeout)
    try:
        handler.get_server_version(timeout=wait.timeout)
    finally:
        manager.release(handler, asker)


async def _ask_async(wait: _Wait) -> None:
    if wait.config is None:
        handler = await wait.client._get_connection()
        await handler.get_server_version(timeout=wait.timeout)
        return
    manager, asker = AsyncConnectionManager.get_instance(), _Asker()
    handler = await manager.get_or_create(wait.config, client=asker, timeout=wait.timeout)
    try:
        await handler.get_server_version(timeout=wait.timeout)
    finally:
        await manager.release(handler, asker)
