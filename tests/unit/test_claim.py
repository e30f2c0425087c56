"""The short way to an IDLE connection: lease and step in one, and nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from milvus_lifecycle import RegularStrategy
from milvus_lifecycle.core.facts import Facts
from milvus_lifecycle.core.lifecycle import Lifecycle, StepResult
from milvus_lifecycle.errors import ConfigError
from milvus_lifecycle.table import State, Trigger
from tests.cores import CONFIG, Core
from tests.observe import Client
from tests.rigs import Rig


class Cautious(RegularStrategy):
    """Has a ``needs_probe`` of its own."""

    def needs_probe(self, connection: Any, facts: Facts) -> bool:
        return super().needs_probe(connection, facts)


def idle(core: Core) -> Core:
    """Validated, and nobody holds it."""
    core.to(State.ACTIVE).connection.unlease(None)
    core.step(Trigger.RELEASE)
    assert core.connection.state is State.IDLE
    return core


def claim(core: Core, client: object | None = None) -> bool:
    return core.life.claim(client, Facts(core.clock()), StepResult())


def test_an_idle_connection_is_taken_by_one_step() -> None:
    """It is ACTIVE and held, one record says so, and there is no flight."""
    core, client = idle(Core()), Client()
    before = len(core.records)
    core.clock.advance(1)
    assert claim(core, client)
    assert core.connection.state is State.ACTIVE
    assert core.connection.clients == frozenset({client})
    assert [(record.trigger, record.clients) for record in core.records[before:]] == [
        ("acquire", 1)
    ]
    assert core.connection.last_used_at == core.clock()


@pytest.mark.parametrize(
    "arrange",
    [
        lambda core: core.clock.advance(31),  # idle for too long: it has to be asked
        lambda core: core.connection.lease(None),  # an anonymous client would get no lease
        lambda core: core.step(Trigger.FORKED),  # never validated
        lambda core: core.step(Trigger.CLOSE),
    ],
    ids=["stale", "held", "forked", "closed"],
)
def test_what_may_have_to_wait_takes_the_long_way(arrange: Callable[[Core], object]) -> None:
    """Then nothing happens, and no lease is left."""
    core = idle(Core())
    arrange(core)
    before = (core.connection.state, len(core.connection.leases), len(core.records))
    assert not claim(core)
    assert (core.connection.state, len(core.connection.leases), len(core.records)) == before


def test_a_strategy_that_is_asked_each_time_is_asked_once() -> None:
    """Its ``needs_probe`` may cost something, or answer differently the second time."""
    assert not claim(idle(Core(strategy=Cautious(CONFIG))))


def test_inside_of_a_step_nothing_is_claimed() -> None:
    """A finalizer that asks for a connection inside a critical section is not let into another."""
    core, other = idle(Core()), Core()
    with other.life.lock, other.life.section:
        assert not claim(core)
    assert claim(core)


def test_it_is_closed_in_the_very_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was IDLE at the first look is looked at again under the mutex."""
    core = idle(Core())
    states = iter((State.IDLE, State.CLOSED))
    real = vars(Lifecycle)["state"]
    monkeypatch.setattr(Lifecycle, "state", property(lambda life: next(states)))
    taken = claim(core)
    monkeypatch.setattr(Lifecycle, "state", real)
    assert not taken
    assert not core.connection.leases


def test_a_client_that_cannot_be_weakly_referenced() -> None:
    """It is told what is wrong with it, as on every way."""
    with Rig() as rig:
        handler = rig.connected()
        rig.manager.release(handler)
        with pytest.raises(ConfigError, match="weakly"):
            rig.manager.get_or_create(CONFIG, client=42)


def interrupt(*args: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.mark.parametrize("error", [KeyboardInterrupt, TypeError])
def test_interrupted_after_the_step(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """The caller gets no handler: another thread does what is left, and gives the lease back."""
    with Rig() as rig:
        rig.manager.release(rig.connected())
        (connection,) = rig.manager._pool.registry.all()
        posted: list[Callable[[], object]] = []
        monkeypatch.setattr(rig.manager._pool, "leave_to_others", posted.append)
        tell = Lifecycle._tell

        def raising(life: Lifecycle, emission: Any) -> None:
            monkeypatch.setattr(Lifecycle, "_tell", tell)
            raise error

        monkeypatch.setattr(Lifecycle, "_tell", raising)
        with pytest.raises(error):
            rig.manager.get_or_create(CONFIG)
        assert (connection.state, len(connection.leases)) == (State.ACTIVE, 1)
        for job in posted:
            job()
        assert (connection.state, len(connection.leases)) == (State.IDLE, 0)


def test_interrupted_before_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has happened, and there is no lease."""
    with Rig() as rig:
        rig.manager.release(rig.connected())
        (connection,) = rig.manager._pool.registry.all()
        monkeypatch.setattr(Lifecycle, "_decide", interrupt)
        with pytest.raises(KeyboardInterrupt):
            rig.manager.get_or_create(CONFIG)
        monkeypatch.undo()
        assert (connection.state, len(connection.leases)) == (State.IDLE, 0)
