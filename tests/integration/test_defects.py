"""The measured defects of pymilvus's own managers: impossible on the engine, real on stock.

Each body runs twice, in a process of its own each time: on the engine its verdict must hold, on
stock pymilvus the same body must fail at that verdict. A deadlock is found by the body's own
watchdog and becomes its verdict. See tests/stock.py for the rules.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration import defects_global, defects_loops, defects_outage, defects_pool
from tests.stock import Kind, run

MODULES = (defects_outage, defects_pool, defects_loops, defects_global)
#: Those of global clusters wait for fetches of a topology, each for some seconds; so do these.
LONG = (
    *("d1_restart_under_load_in_a", "d5_a_deadline_is_kept_during_an_outage_in_a"),
    *("d7_", "d22_", "d28_", "d31_"),
)
BODIES = [
    pytest.param(
        body,
        marks=pytest.mark.slow if module is defects_global or name.startswith(LONG) else (),
        id=name,
    )
    for module in MODULES
    for name, body in vars(module).items()
    if "limit" in getattr(body, "__dict__", {})  # what `defect` leaves on a body
]

each_body = pytest.mark.parametrize("body", BODIES)


@each_body
@pytest.mark.timeout(180)
def test_the_engine_keeps_the_promise(body: Any) -> None:
    """On the engine the body's verdict holds."""
    outcome = run("engine", body)
    assert outcome.kind is Kind.PASSED, str(outcome)


@pytest.mark.stock
@each_body
@pytest.mark.timeout(180)
def test_pymilvus_breaks_the_promise(body: Any) -> None:
    """On stock pymilvus the same body gets as far as its verdict, and fails there."""
    outcome = run("stock", body)
    assert outcome.kind is Kind.VERDICT_FAILED, str(outcome)
