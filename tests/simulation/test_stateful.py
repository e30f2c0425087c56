"""Stateful search: any use of a manager, by its public names, against a simple reference model.

``MILVUS_LIFECYCLE_EXAMPLES=N`` runs N random examples of each flavour instead of the same few;
``pytest -m search`` runs more of the same ones, and 200 that are others every day.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import pytest
from hypothesis import Phase, seed, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from milvus_lifecycle.core.checkout import Checkout
from milvus_lifecycle.core.maintenance import Maintenance
from milvus_lifecycle.core.pool import Pool
from tests.simulation.broken import Line
from tests.simulation.campaign import seed_of_the_day
from tests.simulation.pools import Pools

#: Examples of each flavour, unless the option says otherwise: in all, and in every run.
EXAMPLES = 50
EVERYDAY = 10
#: ... and those of the day
FRESH = 100
Record = Callable[[str, object], None]
_FILE = "tests/simulation/test_stateful.py"
_OPTION = os.environ.get("MILVUS_LIFECYCLE_EXAMPLES", "")
FLAVOURS = ("threads", "asyncio")
SEARCH = pytest.mark.search


@pytest.fixture(autouse=True)
def time_passes_in_leaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leap of this clock is no process that was stopped: the model knows nothing of those.

    Each example waits until its threads have ended: those of the records end soon.
    """
    for module in ("flight", "checkout"):
        monkeypatch.setattr(f"milvus_lifecycle.core.{module}.STOPPED", float("inf"))
    monkeypatch.setattr("milvus_lifecycle.audit.stream.IDLE", 0.02)


def search(
    flavour: str, examples: int, *, random: bool = False, first: int | None = None
) -> type[Pools]:
    """Run ``examples``: the same ones each time, unless they are ``random`` or of a seed.

    No database: nothing is left behind. A failing example is made shorter only in a random run,
    which has the time.
    """
    random = random or first is not None
    pools = type(f"Pools_{flavour}", (Pools,), {"flavour": flavour, "examples": 0, "steps": 0})
    how = settings(
        max_examples=examples,
        stateful_step_count=40,
        derandomize=not random,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if random else (Phase.generate,),
    )
    if first is not None:
        seed(first)(pools)
    # Clients in cycles are collected by hand: only what this run has made is looked at.
    gc.collect()
    gc.freeze()
    try:
        run_state_machine_as_test(pools, settings=how)
    finally:
        gc.unfreeze()
    return pools


@pytest.mark.timeout(0 if _OPTION else 180)
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "examples",
    [int(_OPTION or EVERYDAY), *([] if _OPTION else [pytest.param(EXAMPLES, marks=SEARCH)])],
)
def test_the_pool_is_as_its_users_expect(
    flavour: str, examples: int, record_property: Record
) -> None:
    """Whatever users, servers and time do, the pool is what the reference model says."""
    pools = search(flavour, examples, random=bool(_OPTION))
    figures = f"stateful, {flavour}: {pools.examples:,} examples, {pools.steps:,} steps"
    print(figures)
    record_property("figures", figures)


@SEARCH
@pytest.mark.timeout(600)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_pool_is_as_its_users_expect_today(flavour: str, record_property: Record) -> None:
    """... in examples that nobody has seen before, too. What is printed runs them again."""
    first = seed_of_the_day()
    again = f"MILVUS_LIFECYCLE_SEED_BASE={first} pytest -m search {_FILE} -k 'today and {flavour}'"
    print(f"replay: {again}")
    pools = search(flavour, FRESH, first=first)
    record_property("figures", f"examples of today, {flavour}: {again}")
    record_property("examples", pools.examples)


BUGS = {
    "a release does not give the lease back": Line(
        Pool, "give_back", "connection.unlease(client)", "False"
    ),
    "what nobody uses is kept for ever": Line(
        Maintenance, "plan_expiry", "due is not None and life.state is State.IDLE", "False"
    ),
    "a collected client keeps its lease": Line(
        Pool, "_lost", 'self.settle(connection, "its last client was collected")', "pass"
    ),
    "a failed checkout keeps its lease": Line(
        Checkout,
        "check_out",
        "if not connection.lease(caller):",
        "if not (connection.lease(client) and connection.lease(caller)):",
    ),
    "close_all forgets one": Line(
        Pool, "close_all", "self.registry.all()", "self.registry.all()[1:]"
    ),
    "a retired channel is left open": Line(
        Pool, "finish", "if wire.close_if_drained():", "if False:"
    ),
    "a caller's own deadline is not looked at": Line(
        Checkout,
        "_ride_out",
        "limit = end if until is None else min(until, end)",
        "limit = end",
    ),
}

#: found only after many examples
RARE = ("a collected client keeps its lease",)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[SEARCH] if bug in RARE else []) for bug in BUGS]
)
def test_a_seeded_bug_is_found(bug: str, flavour: str, record_property: Record) -> None:
    """The same search rejects a manager with this one line changed."""
    # Threads may end otherwise when Hypothesis runs the example again: found all the same.
    with BUGS[bug].applied(), pytest.raises((AssertionError, Flaky)) as found:
        search(flavour, 3 * EXAMPLES)
    print(f"{bug}: {found.value}")
    record_property("stateful bugs", 1)
