"""The measured defects of pymilvus's threads flavour: impossible on the engine, real on stock.

Each body runs twice, in a process of its own each time: on the engine its verdict must hold, on
stock pymilvus the same body must fail at that verdict. See tests/stock.py for the rules.
"""

from __future__ import annotations

import pytest

from tests.integration import defects_outage, defects_pool, defects_probe, defects_uri
from tests.stock import Body, Kind, run

BODIES: tuple[Body, ...] = (
    defects_outage.d1_restart_under_load,
    defects_outage.d3_dedicated_means_a_connection_of_its_own,
    defects_outage.d4_one_endpoint_never_delays_another,
    defects_outage.d5_a_deadline_is_kept_during_an_outage,
    defects_outage.d6_a_late_failure_recovers_nothing,
    defects_outage.d7_retiring_spares_a_running_rpc_and_no_more,
    defects_pool.d14_a_tls_client_never_gets_a_plaintext_connection,
    defects_pool.d15_a_connection_without_clients_is_closed,
    defects_pool.d20_a_recovery_does_not_outlive_close,
    defects_pool.d21_a_client_survives_close_all,
    defects_probe.d22_idle_time_is_time_without_rpcs,
    defects_outage.d23_a_replicate_violation_is_no_reason_to_reconnect,
    defects_outage.d24_a_retired_channel_is_closed,
    defects_pool.d25_a_forked_child_is_not_locked_out,
    defects_uri.d26_a_secret_is_shown_nowhere,
    defects_probe.d27_a_clock_set_back_hides_no_idle_time,
    defects_pool.d28_a_lookup_costs_the_same_in_a_large_pool,
    defects_uri.d30_uris_mean_what_they_say,
    defects_probe.d31_a_healthy_idle_connection_is_kept,
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
