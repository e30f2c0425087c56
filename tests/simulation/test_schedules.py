"""Schedules of the real drivers: the seed decides who runs next, and every one keeps the laws.

Every run of the tests plays the first few hundred of each driver, ``pytest -m search`` the others
of 10,000 (half of them for each driver), or of as many as ``MILVUS_LIFECYCLE_SCHEDULES=100000``
says, and 2,000 that are others every day. ``MILVUS_LIFECYCLE_SEED=1234`` runs that seed alone, and
prints its trace.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.simulation.aio_schedules import AioWorld
from tests.simulation.campaign import campaign, collected_by_hand, play, seed_of_the_day
from tests.simulation.driver_bugs import BUGS, DriverBug
from tests.simulation.laws import Broken
from tests.simulation.schedules import World
from tests.simulation.threads_schedules import ThreadsWorld

Record = Callable[[str, object], None]
_TOTAL = int(os.environ.get("MILVUS_LIFECYCLE_SCHEDULES", "10000"))
_SEED = os.environ.get("MILVUS_LIFECYCLE_SEED", "")
_FLAVOURS: dict[str, type[World]] = {"threads": ThreadsWorld, "asyncio": AioWorld}
#: seeds of each driver: in all, and in every run of the tests
_EACH = max(1, _TOTAL // 2)
_EVERYDAY = min(300, _EACH)
_FRESH = 1000
_FILE = "tests/simulation/test_schedules.py"


def _dealt() -> list[Any]:
    """The seeds, a range for each test."""
    if _SEED:
        return [range(int(_SEED), int(_SEED) + 1)]
    others = range(_EVERYDAY, _EACH)
    size = max(1, -(-len(others) // 10))
    chunks = [others[at : at + size] for at in range(0, len(others), size)]
    first = seed_of_the_day()
    today = pytest.param(range(first, first + _FRESH), marks=pytest.mark.search, id="today")
    more = [pytest.param(it, marks=pytest.mark.search) for it in chunks]
    return [range(_EVERYDAY), *more, today]


@pytest.mark.timeout(0 if _TOTAL > 20_000 else 180)
@pytest.mark.parametrize("seeds", _dealt(), ids=lambda it: f"{it.start}-{it.stop - 1}")
@pytest.mark.parametrize("flavour", _FLAVOURS)
def test_the_laws_hold_in_every_schedule(
    flavour: str, seeds: range, record_property: Record
) -> None:
    """No order in which the seeds let threads, callbacks and I/O run breaks a law."""
    done = campaign(_FLAVOURS[flavour], seeds)
    if _SEED:
        print("\n".join(done.last))
    assert done.finding is None, str(done.finding)
    record_property("schedules", done.schedules)
    record_property("reached", dict(done.reached))
    if seeds.start == seed_of_the_day():
        again = f"MILVUS_LIFECYCLE_SEED_BASE={seeds.start} pytest -m search {_FILE} -k today"
        record_property("figures", f"schedules of today, {flavour}: {again}")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.flavour}: {bug.name}")
def test_a_broken_driver_is_found(bug: DriverBug, record_property: Record) -> None:
    """The schedules of every day find a driver with this one line changed, by the right law."""
    with bug.patch.applied():
        done = campaign(_FLAVOURS[bug.flavour], range(5000))
    assert done.finding is not None, f"not found in {done.schedules} schedules"
    broken = done.finding.broken
    assert isinstance(broken, Broken), done.finding
    assert broken.law in bug.laws, done.finding
    said = f"{bug.flavour}: {bug.name}: seed {done.finding.seed}, {broken}"
    print(said)
    record_property("figures", said)
    record_property("bugs", 1)


@pytest.mark.parametrize("flavour", _FLAVOURS)
def test_a_seed_replays_exactly(flavour: str) -> None:
    """A seed is a run: the second time, everybody does the same, and the records are the same."""
    with collected_by_hand():
        for seed in range(100):
            (first, broken), (again, still) = (play(_FLAVOURS[flavour], seed) for _ in range(2))
            assert broken is None
            assert still is None
            assert first.trace == again.trace
            assert first.records == again.records
            assert first.moves == again.moves


@pytest.mark.parametrize("flavour", _FLAVOURS)
def test_a_failing_seed_replays_exactly(flavour: str) -> None:
    """What a campaign prints of a broken driver is what its seed alone shows again."""
    bug = next(bug for bug in BUGS if bug.flavour == flavour)
    with bug.patch.applied():
        finding = campaign(_FLAVOURS[flavour], range(5000)).finding
        assert finding is not None
        again = campaign(_FLAVOURS[flavour], [finding.seed]).finding
    assert again is not None
    assert str(again) == str(finding)
    assert f"MILVUS_LIFECYCLE_SEED={finding.seed} pytest" in str(finding)
