"""Every scenario through both drivers: the same outcomes, and the same records but for flavour."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from milvus_lifecycle.audit.records import CREATED, REFUSED, TransitionRecord
from milvus_lifecycle.table import TRANSITIONS
from tests.conformance import (
    scenarios_ends,
    scenarios_leases,
    scenarios_moves,
    scenarios_news,
    scenarios_probe,
    scenarios_recovery,
    scenarios_waiting,
)
from tests.conformance.scenario import Scenario, lines
from tests.conformance.world import World

SCENARIOS: Mapping[str, Scenario] = {
    **scenarios_probe.SCENARIOS,
    **scenarios_recovery.SCENARIOS,
    **scenarios_waiting.SCENARIOS,
    **scenarios_leases.SCENARIOS,
    **scenarios_moves.SCENARIOS,
    **scenarios_news.SCENARIOS,
    **scenarios_ends.SCENARIOS,
}
FLAVOURS = ("threads", "asyncio")
#: IDLE, held and not suspect: only between the lease and the acquire of one checkout. The step
#: itself is tested in tests/unit/test_connection.py.
UNREACHED = {("recycle", "IDLE>RECOVERING")}
#: What differs between two runs of one scenario.
OWN = ("flavour", "connection_id", "pid", "thread_name", "ts")


class Run:
    """What one run of a scenario left behind."""

    def __init__(self, scenario: Scenario, flavour: str) -> None:
        world = World(flavour, dict(scenario.policy), scenario.strategy)
        done: list[str] = []
        try:
            for step in lines(scenario.steps):
                done.append(step)
                world.do(step)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(
                f"{flavour}, step {len(done)}, {done[-1]!r}: {error}\n"
                + "\n".join(shown(record) for record in world.log.records)
            ) from error
        finally:
            self.records = list(world.log.records)
            self.warnings = world.log.warnings
            self.left = world.finish()
        self.flavour = flavour

    def check(self, scenario: Scenario) -> None:
        """Records as expected, numbered without a gap, and nothing left behind."""
        ids = list(dict.fromkeys(record.connection_id for record in self.records))
        wanted = lines(scenario.records)
        found = [
            fitting(record, ids, line) for record, line in zip(self.records, wanted, strict=False)
        ]
        found += [fitting(record, ids, "") for record in self.records[len(wanted) :]]
        assert found == wanted, self.flavour
        for connection in ids:
            numbers = [r.seq for r in self.records if r.connection_id == connection]
            counted = [number for number in numbers if number is not None]
            assert counted == list(range(counted[0], counted[0] + len(counted))), self.flavour
        assert self.warnings == scenario.warnings, self.flavour
        assert self.left == [], self.flavour


def fitting(record: TransitionRecord, ids: list[str], line: str) -> str:
    """The record as a line, with just the fields that ``line`` asks for."""
    number = ids.index(record.connection_id) + 1
    prefix = f"{number}: " if number > 1 else ""
    asked = [word.split("=")[0] for word in line.split() if "=" in word]
    fields = "".join(f" {name}={getattr(record, name)}" for name in asked)
    return prefix + shown(record) + fields


def shown(record: TransitionRecord) -> str:
    """A record in the language of the scenarios."""
    if record.event == CREATED:
        return "created"
    if record.event == REFUSED:
        return f"refused {record.trigger} {record.source}"
    return f"{record.trigger} {record.source}>{record.dest} g{record.generation}"


def common(record: TransitionRecord) -> dict[str, Any]:
    fields = dataclasses.asdict(record)
    return {name: value for name, value in fields.items() if name not in OWN}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str) -> None:
    """What the scenario promises holds in both flavours, and their records are equal."""
    scenario = SCENARIOS[name]
    flavours = FLAVOURS if scenario.only is None else (scenario.only[0],)
    runs = [Run(scenario, flavour) for flavour in flavours]
    for run in runs:
        run.check(scenario)
    if len(runs) == 2:
        threads, aio = ([common(record) for record in run.records] for run in runs)
        assert threads == aio


def test_every_row_is_travelled() -> None:
    """There is no row of the table that no scenario takes, in the flavour-independent ones."""
    travelled = {
        tuple(line.removeprefix("2: ").split()[:2])
        for scenario in SCENARIOS.values()
        if scenario.only is None
        for line in lines(scenario.records)
    }
    rows = {(row.trigger.value, f"{row.source}>{row.dest}") for row in TRANSITIONS}
    assert rows - travelled == UNREACHED


def test_there_are_enough_scenarios() -> None:
    """At least forty scenarios run in both flavours; those that cannot say why."""
    both = [scenario for scenario in SCENARIOS.values() if scenario.only is None]
    assert len(both) >= 40
    assert all(scenario.only is None or scenario.only[1] for scenario in SCENARIOS.values())
    assert len({scenario.promise for scenario in SCENARIOS.values()}) == len(SCENARIOS)
