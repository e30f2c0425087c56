"""A user's program: `python -m tests.release` has mypy and pyright check it against the wheel.

What it says wrongly is marked: both complain of a mark where there is nothing wrong.
"""

from __future__ import annotations

from typing import Any

from typing_extensions import assert_type

import milvus_lifecycle as ml
from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.core.strategies import View
from milvus_lifecycle.errors import ConfigError, LifecycleError, RecoveryExhausted


class Calm(ml.RegularStrategy):
    """A strategy of the user's own."""

    name = "calm"

    def aged(self, connection: View, facts: Facts) -> bool:
        """Never while calls wait."""
        return super().aged(connection, facts)


def strategy_for(config: ml.ConnectionConfig) -> ml.ConnectionStrategy | None:
    """For one of the clusters."""
    return Calm(config) if config.address.startswith("calm") else None


def note(record: ml.TransitionRecord) -> None:
    """A listener."""
    assert_type(record.address, str)
    if record.dest == ml.State.RECOVERING:
        print(record.as_dict())


def start() -> ml.ConnectionManager:
    """What a service does at its start."""
    policy = ml.LifecyclePolicy(recovery_budget=30, linger=None)
    ml.install(policy, "audit.jsonl", listeners=[note], strategy_for=strategy_for)
    ml.wait_ready("http://localhost:19530", timeout=5)
    assert_type(ml.status(), dict[str, Any])
    return ml.ConnectionManager.get_instance()


def call(manager: ml.ConnectionManager) -> float:
    """Errors say what they know."""
    config = ml.ConnectionConfig.from_uri("http://localhost:19530")
    try:
        with ml.budget(0.2):
            manager.get_or_create(config, client=manager)
    except RecoveryExhausted as error:
        assert_type(error.attempts, int)
        return error.elapsed
    except ConfigError as error:
        assert_type(error.field, str)
    except LifecycleError as error:
        assert_type(error.last_error, BaseException | None)
    return 0.0


async def start_async() -> ml.AsyncConnectionManager:
    """The other flavour."""
    await ml.wait_ready_async("http://localhost:19530")
    return ml.AsyncConnectionManager.get_instance()


def mistakes(manager: ml.ConnectionManager) -> None:
    """Each of these lines is refused."""
    ml.LifecyclePolicy(recovery_budget="30")  # type: ignore[arg-type]
    ml.LifecyclePolicy(budget=30)  # type: ignore[call-arg]
    ml.install(listeners=[strategy_for])  # type: ignore[list-item]
    manager.subscribe(note)()
    manager.close()  # type: ignore[attr-defined]
