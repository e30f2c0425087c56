"""Storm: after an outage thousands of clients come back one after the other, not together."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from milvus_lifecycle import LifecyclePolicy
from tests.simulation.storm import (
    AWAY,
    CLIENTS,
    LIMIT,
    Storm,
    arrival,
    attempts_until,
    draw,
    simulate,
)

PICTURE = Path(__file__).parents[2] / "docs" / "storm.svg"
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def storm() -> Storm:
    """The storm of the picture: the default policy, 45 s."""
    return simulate(LifecyclePolicy())


def test_no_window_of_100_ms_holds_more_than_two_percent(
    storm: Storm, record_property: Record
) -> None:
    """Of 10,000 clients that lost a server for 45 s, at most 2 % come within any 100 ms."""
    assert len(storm.arrivals) == CLIENTS
    assert storm.away == AWAY
    figures = f"storm: peak {storm.peak():.2%} in 100 ms, mean {storm.mean():.1f} s after 45 s"
    print(figures)
    assert storm.peak() <= LIMIT, figures
    record_property("figures", figures)


@pytest.mark.parametrize("seed", range(5))
def test_the_limit_does_not_depend_on_luck(seed: int) -> None:
    """Other draws keep the limit, too."""
    assert simulate(LifecyclePolicy(), seed=seed).peak() <= LIMIT


@pytest.mark.parametrize("away", [30.0, 60.0, 90.0, 120.0])
def test_longer_and_shorter_outages_keep_the_limit(away: float) -> None:
    """45 s is not a lucky number: from half a minute on the limit holds."""
    assert simulate(LifecyclePolicy(), away=away).peak() <= LIMIT


def test_nobody_comes_later_than_the_longest_gap(storm: Storm) -> None:
    """Spread out is not forgotten: the last client comes within the ceiling and its jitter."""
    assert storm.arrivals[0] >= 0.0
    assert storm.arrivals[-1] <= LifecyclePolicy().backoff_ceiling * 1.2


@pytest.mark.parametrize("away", [0.5, 2.0, 8.0, 9.5])
def test_after_a_short_outage_everybody_is_back_within_half_a_second(away: float) -> None:
    """Within backoff_patience the fast channel finds the server within 0.5 s (design section 5)."""
    assert simulate(LifecyclePolicy(), away=away, clients=2000).arrivals[-1] <= 0.5


def test_a_slow_channel_without_its_random_start_would_be_a_storm() -> None:
    """The limit is the policy's doing: clients that all start at backoff_max come in waves."""
    in_step = tuple(
        sorted(attempts_until(10.0, (0.4, 10.0), AWAY, lambda: 0.5) - AWAY for _ in range(100))
    )
    assert Storm(AWAY, in_step).peak() > 0.5


def test_a_single_client_is_simulated_as_grpc_behaves() -> None:
    """Attempts at 0, 0.1, 0.26 and 0.516 s, without jitter: 1.6 times the gap before, from 0.1."""
    assert attempts_until(0.0, (0.05, 10.0), 0.3, lambda: 0.5) == pytest.approx(0.516)
    assert attempts_until(0.0, (0.05, 0.1), 0.25, lambda: 0.5) == pytest.approx(0.3)
    assert arrival(LifecyclePolicy(), 0.3, lambda: 0.5) == pytest.approx(0.21, abs=0.01)


def test_the_picture_is_the_simulation(storm: Storm) -> None:
    """docs/storm.svg shows this very storm: ``python -m tests.simulation.storm docs/storm.svg``."""
    drawn = draw(storm)
    ElementTree.fromstring(drawn)
    assert drawn == draw(simulate(LifecyclePolicy()))
    assert PICTURE.read_text(encoding="utf-8") == drawn, "drifted: draw docs/storm.svg again"
