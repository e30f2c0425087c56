"""Model check: every run of the real core, and a search that is known to find what is broken.

``MILVUS_LIFECYCLE_SEARCH=deep pytest -m search`` adds larger set-ups (hours); ``=1800`` gives each
of those so many seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import groupby
from operator import itemgetter
from types import SimpleNamespace

import pytest

from milvus_lifecycle.core.lifecycle import Lifecycle
from milvus_lifecycle.core.pool import look
from tests.simulation.broken import MUTANTS, Line, Mutant
from tests.simulation.canonical import Canon
from tests.simulation.explore import Merged, Outcome, futures, replay, search
from tests.simulation.setup import Setup
from tests.simulation.setups import BETWEEN_LOCKS, CORNERS, DEEP, SETUPS
from tests.simulation.world import simulated

Record = Callable[[str, object], None]
_OPTION = os.environ.get("MILVUS_LIFECYCLE_SEARCH", "")
_SETUPS = (*SETUPS, *CORNERS, *BETWEEN_LOCKS)
#: what every run of the tests searches
_DAILY = {setup.name: setup.everyday() for setup in _SETUPS}
_DEEP_SECONDS = float(_OPTION) if _OPTION.replace(".", "", 1).isdigit() else 86_400.0


def _report(outcome: Outcome, record: Record) -> None:
    print(outcome.line())
    record("figures", outcome.line())
    record("states", outcome.states)
    record("moves", outcome.moves)


@pytest.mark.parametrize("setup", _DAILY.values(), ids=lambda s: s.name)
def test_the_laws_hold_in_every_run(setup: Setup, record_property: Record) -> None:
    """No order of steps and no outcome of I/O within the bound breaks a law."""
    _search_whole(setup, record_property)


@pytest.mark.search
@pytest.mark.timeout(600)
@pytest.mark.parametrize("setup", [s for s in _SETUPS if s.daily], ids=lambda s: s.name)
def test_the_laws_hold_in_every_run_of_the_whole(setup: Setup, record_property: Record) -> None:
    """The same for the set-ups of which every run of the tests searches a part."""
    _search_whole(setup, record_property)


def _search_whole(setup: Setup, record_property: Record) -> None:
    outcome = search(setup)
    assert outcome.broken is None, outcome.trace
    assert outcome.whole, f"not searched to the end: {outcome.line()}"
    _report(outcome, record_property)


def test_two_states_whose_hashes_are_equal_are_two() -> None:
    """What tells two states apart is the states: in CPython -1.0 and -2.0 have the same hash."""
    setup = SETUPS[0]
    with simulated(setup):
        world, states = replay(setup, ()), set()
        for due in (-1.0, -2.0):
            world.pool.maintenance.schedule._heap[:] = [(due, 0, look)]
            states.add(Canon(world).state())
    assert len(states) == 2


def test_a_state_has_nothing_in_it_that_nobody_knows() -> None:
    """An object of a class that has no form is an error: its name would say too little of it."""
    setup = SETUPS[0]
    with simulated(setup):
        world = replay(setup, ())
        world.driver.mailbox.append(partial(print, SimpleNamespace(count=1)))
        with pytest.raises(TypeError, match="of what there is in a SimpleNamespace"):
            Canon(world).state()


@pytest.mark.search
@pytest.mark.timeout(600)
@pytest.mark.parametrize("setup", _DAILY.values(), ids=lambda s: s.name)
def test_equal_states_have_equal_futures(setup: Setup, record_property: Record) -> None:
    """Runs that are not gone on from would have come to the same states as the one that is."""
    merged: Merged = []
    search(setup, merged=merged)
    merged.sort(key=lambda pair: id(pair[0]))
    for first, pairs in groupby(merged, itemgetter(0)):
        known = futures(setup, first)
        for _, other in pairs:
            assert futures(setup, other) == known, (first, other)
    record_property("futures", len(merged))


@pytest.mark.search
@pytest.mark.skipif(not _OPTION, reason="MILVUS_LIFECYCLE_SEARCH is not set")
@pytest.mark.timeout(0)
@pytest.mark.parametrize("setup", DEEP, ids=lambda s: s.name)
def test_the_laws_hold_in_deeper_runs(setup: Setup, record_property: Record) -> None:
    """By option: no run within a larger bound, or within the time given, breaks a law."""
    outcome = search(setup, seconds=_DEEP_SECONDS)
    assert outcome.broken is None, outcome.trace
    _report(outcome, record_property)


# A finalizer that works at once is one of the broken cores: it raises where nobody can catch it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_broken_core_is_rejected(mutant: Mutant, record_property: Record) -> None:
    """A search of every day rejects the core with one line changed, by the law that it is for."""
    with mutant.patch.applied():
        outcome = search(_DAILY[mutant.setup])
    assert outcome.broken is not None, f"not rejected: {outcome.line()}"
    assert outcome.broken.law in mutant.laws, outcome.trace
    print(f"{mutant.name}\n{outcome.trace}")
    record_property("mutants", 1)


def test_a_crash_before_the_search_is_a_finding() -> None:
    """What goes wrong while everybody checks out is told as a run, too, with what was raised."""
    crashes = Line(Lifecycle, "action_bind", "self.generation += 1", "self.generation += None")
    with crashes.applied():
        outcome = search(_DAILY["standby"])
    assert outcome.broken is not None
    assert outcome.broken.law == 0
    for part in (
        "a crash: leader of flight 1 raised TypeError",
        "register on channel 1: good",
        "action_bind",
    ):
        assert part in outcome.trace


def test_every_law_that_can_be_searched_has_a_broken_core() -> None:
    """Laws 10 (secrets) and 11 (which clock) are not about steps; every other law has a patch."""
    covered = {law for mutant in MUTANTS for law in mutant.laws}
    assert covered == set(range(1, 13)) - {10, 11}


def test_the_bound_reaches_what_is_promised() -> None:
    """Three generations and two flights are within the bound of the searches of every day."""
    outcome = search(_DAILY["two outages"])
    assert outcome.generations >= 3
    assert outcome.flights >= 2
    assert outcome.bounded == 0


def test_a_counterexample_is_shortest_and_replays() -> None:
    """The printed run is the shortest there is, and running it again breaks the same law."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "a waiter is lost")
    with mutant.patch.applied():
        first, again = search(_DAILY[mutant.setup]), search(_DAILY[mutant.setup])
    assert first.path == again.path
    assert first.trace == again.trace
    assert f"after {len(first.path)} moves" in first.trace
