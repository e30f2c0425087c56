"""The measured defects of pymilvus's asyncio flavour: impossible on the engine, real on stock.

Each body runs twice, in a process of its own each time: on the engine its verdict must hold, on
stock pymilvus the same body must fail at that verdict. A deadlock is found by the body's own
watchdog and becomes its verdict. See tests/stock.py for the rules.
"""

from __future__ import annotations

import pytest

from tests.integration import defects_aio_outage, defects_aio_pool
from tests.stock import Body, Kind, run

BODIES: tuple[Body, ...] = (
    defects_aio_outage.d2_a_probe_that_fails_locks_nobody_out,
    defects_aio_outage.d6_one_failure_of_many_coroutines_is_one_recovery,
    defects_aio_outage.d7_a_recovery_cuts_no_running_rpc,
    defects_aio_pool.d16_forty_loops_leave_nothing,
    defects_aio_pool.d17_a_failed_create_leaves_no_channel,
    defects_aio_pool.d18_first_calls_of_one_client_share_one_connect,
    defects_aio_pool.d19_one_client_works_in_two_loops,
    defects_aio_pool.d29_both_flavours_have_stats,
)

each_body = pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)


@each_body
@pytest.mark.timeout(180)
def test_the_engine_keeps_the_promise(body: Body) -> None:
    """On the engine the body's verdict holds."""
    outcome = run("engine", body)
    assert outcome.kind is Kind.PASSED, str(outcome)


@pytest.mark.stock
@each_body
@pytest.mark.timeout(180)
def test_pymilvus_breaks_the_promise(body: Body) -> None:
    """On stock pymilvus the same body gets as far as its verdict, and fails there."""
    outcome = run("stock", body)
    assert outcome.kind is Kind.VERDICT_FAILED, str(outcome)
