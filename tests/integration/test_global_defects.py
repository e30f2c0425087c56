"""The measured defects of pymilvus's global clusters: impossible on the engine, real on stock.

Each body runs twice, in a process of its own each time: on the engine its verdict must hold, on
stock pymilvus the same body must fail at that verdict. See tests/stock.py for the rules.
"""

from __future__ import annotations

import pytest

from tests.integration import defects_global, defects_global_aio
from tests.stock import Body, Kind, run

BODIES: tuple[Body, ...] = (
    defects_global.d8_a_refresh_that_sees_the_new_primary_first_helps,
    defects_global.d8_over_https_with_the_clients_own_ca,
    defects_global.d9_failover_reads_addresses_as_a_first_connect_does,
    defects_global.d10_a_failed_connect_leaves_no_refresher,
    defects_global.d11_closing_during_a_fetch_waits_for_nothing,
    defects_global.d12_one_failure_of_many_calls_is_one_fetch,
    defects_global_aio.d8_a_refresh_that_sees_the_new_primary_first_helps,
    defects_global_aio.d9_failover_reads_addresses_as_a_first_connect_does,
    defects_global_aio.d10_a_failed_connect_leaves_no_refresher,
    defects_global_aio.d11_closing_during_a_fetch_waits_for_nothing,
    defects_global_aio.d12_one_failure_of_many_calls_is_one_fetch,
    defects_global_aio.d13_a_slow_topology_service_stalls_no_loop,
)


def _name(body: Body) -> str:
    flavour = "asyncio" if body.__module__.endswith("_aio") else "threads"
    return f"{flavour}-{body.__name__}"


each_body = pytest.mark.parametrize("body", BODIES, ids=_name)


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
