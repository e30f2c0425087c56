"""LifecyclePolicy: what is refused, and how gaps, windows and ages come out."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_lifecycle.errors import ConfigError
from milvus_lifecycle.managers import POLICY, choose_policy
from milvus_lifecycle.policy import LifecyclePolicy, parse_timeout

FIELDS = [field.name for field in dataclasses.fields(LifecyclePolicy)]
OPTIONAL = {
    "idle_threshold",
    "linger",
    "max_age",
    "max_waiting",
    "drain_timeout",
    "topology_refresh",
}
ZERO_ALLOWED = {
    *("idle_threshold", "linger", "drain_timeout", "backoff_patience", "backoff_jitter"),
    *("first_connect_patience", "give_up_share", "max_waiting"),
}


def middle() -> float:
    return 0.5


def test_defaults_are_those_of_the_design() -> None:
    """The numbers of the README are the numbers of the code."""
    assert dataclasses.asdict(LifecyclePolicy()) == {
        "idle_threshold": 30.0,
        "probe_timeout": 5.0,
        "connect_timeout": 10.0,
        "first_connect_patience": 0.0,
        "recovery_budget": 60.0,
        "give_up_share": 0.1,
        "max_waiting": None,
        "backoff_initial": 0.05,
        "backoff_multiplier": 1.6,
        "backoff_max": 0.4,
        "backoff_patience": 10.0,
        "backoff_ceiling": 10.0,
        "backoff_jitter": 0.2,
        "linger": 300.0,
        "max_age": None,
        "drain_timeout": 30.0,
        "channels": 1,
        "topology_refresh": 300.0,
    }


def test_policy_is_frozen_and_comparable() -> None:
    """Nobody changes a policy under a running engine; equal settings are equal policies."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(LifecyclePolicy(), FIELDS[0], 1.0)
    assert LifecyclePolicy(linger=5) == LifecyclePolicy(linger=5.0)
    assert hash(LifecyclePolicy()) == hash(LifecyclePolicy())


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "value",
    [
        True,
        "3",
        math.nan,
        math.inf,
        -math.inf,
        -1,
        pytest.param(10**400, id="huge"),
        1e300,
        [],
        b"1",
        1j,
    ],
)
def test_bad_values_name_the_field(name: str, value: Any) -> None:
    """A bad value is a ValueError that names the field and what is accepted."""
    with pytest.raises(ValueError, match=f"{name}=.* is not a (whole )?number") as caught:
        LifecyclePolicy(**{name: value})
    assert isinstance(caught.value, ConfigError)
    assert caught.value.field == name
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", FIELDS)
def test_none_means_never_where_that_makes_sense(name: str) -> None:
    """None switches off what can be switched off, and is refused where a limit must be."""
    settings: dict[str, Any] = {name: None}
    if name in OPTIONAL:
        assert getattr(LifecyclePolicy(**settings), name) is None
    else:
        with pytest.raises(ConfigError, match=name):
            LifecyclePolicy(**settings)


@pytest.mark.parametrize("name", FIELDS)
def test_zero_means_at_once_where_that_makes_sense(name: str) -> None:
    """Zero is accepted for what may happen at once, and refused for timeouts."""
    if name in ZERO_ALLOWED:
        assert getattr(LifecyclePolicy(**{name: 0}), name) == 0
    else:
        with pytest.raises(ConfigError, match=name):
            LifecyclePolicy(**{name: 0})


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"backoff_initial": 0.5}, "backoff_initial"),
        ({"backoff_max": 11.0}, "backoff_max"),
        ({"backoff_ceiling": 0.3}, "backoff_max"),
        ({"backoff_multiplier": 0.99}, "backoff_multiplier"),
        ({"backoff_jitter": 1.0}, "backoff_jitter"),
    ],
)
def test_fields_must_fit_each_other(settings: dict[str, Any], field: str) -> None:
    """Backoffs that contradict each other are refused, not silently reordered."""
    with pytest.raises(ConfigError, match=field) as caught:
        LifecyclePolicy(**settings)
    assert caught.value.field == field


def test_gap_grows_in_two_phases() -> None:
    """Gaps grow to backoff_max, stay there while patience lasts, and then are 4 % of the outage."""
    policy = LifecyclePolicy()
    young = [round(policy.gap(n, 1.0, middle), 3) for n in range(8)]
    assert young == [0.0, 0.05, 0.08, 0.128, 0.205, 0.328, 0.4, 0.4]
    late = [round(policy.gap(30, age, middle), 3) for age in (10.0, 11.0, 20.0, 100.0, 250.0, 1e9)]
    assert late == [0.4, 0.44, 0.8, 4.0, 10.0, 10.0]


def test_gap_jitters_by_the_given_share() -> None:
    """With jitter 0.2 a gap lies within 20 % of its middle, at both ends of the draw."""
    policy = LifecyclePolicy()
    assert policy.gap(1, 0.0, lambda: 0.0) == pytest.approx(0.04)
    assert policy.gap(1, 0.0, lambda: 0.999999) == pytest.approx(0.06, rel=1e-4)


def test_gap_without_growth() -> None:
    """A multiplier of 1 keeps the gap constant while patience lasts."""
    policy = LifecyclePolicy(backoff_multiplier=1.0, backoff_jitter=0.0)
    assert policy.gap(10**6, 1.0, middle) == 0.05
    assert policy.gap(10**6, 10.0, middle) == 0.05


@given(
    st.integers(),
    st.floats(),
    st.floats(0.0, 1.0),
    st.floats(1.0, 100.0),
    st.floats(0.001, 86_400.0),
    st.floats(0.0, 0.99),
)
def test_gap_is_total(
    failures: int, age: float, draw: float, multiplier: float, largest: float, jitter: float
) -> None:
    """Whatever went on before, the gap is finite, not negative, and within the ceiling."""
    policy = LifecyclePolicy(
        backoff_initial=0.001,
        backoff_multiplier=multiplier,
        backoff_max=largest,
        backoff_ceiling=86_400.0,
        backoff_jitter=jitter,
    )
    for count in (failures, abs(failures) ** 9 + 10**400):
        gap = policy.gap(count, age, lambda: draw)
        assert 0.0 <= gap <= 86_400.0 * (1.0 + jitter)


def test_pace() -> None:
    """A young outage gets a fast channel; an old one gaps of 2 to 4 % of its age, till it has
    doubled, and the ceiling in the end."""
    policy = LifecyclePolicy()
    for age in (0.0, 9.99, math.nan):
        initial, longest, until = policy.pace(age, 0.0)
        assert (initial, until) == (policy.backoff_initial, policy.backoff_patience)
        assert longest * 1.2 <= policy.backoff_max  # gRPC's own jitter adds up to 20 %
    assert policy.pace(15.0, 0.6).until == 10.0 * 2.0**0.6  # not all of a fleet at the same age
    for age, doubled in ((10.0, 20.0), (19.9, 20.0), (20.0, 40.0), (100.0, 160.0), (159.0, 160.0)):
        initial, longest, until = policy.pace(age, 0.0)
        assert 0.02 * age < initial * 1.2 <= 0.04 * age
        assert initial == longest
        assert until == doubled
    for age in (320.0, 1e9, math.inf):
        assert policy.pace(age, 0.0) == (10.0, 10.0, math.inf)
    policy = LifecyclePolicy(backoff_patience=0.0)
    assert policy.pace(5.0, 0.5) == (0.4, 10.0, math.inf)
    assert policy.gap(9, 1e-9, lambda: 0.5) == 10.0


@given(st.floats(), st.floats(0.0, 0.999), st.floats(0.0, 86_400.0))
def test_pace_is_total(age: float, unit: float, patience: float) -> None:
    """A window of gRPC's, and an age that is yet to come, whatever the outage and the fields."""
    policy = LifecyclePolicy(
        backoff_patience=patience, backoff_initial=0.4, backoff_max=0.4, backoff_ceiling=0.4
    )
    initial, longest, until = policy.pace(age, unit)
    assert 0.0 < initial <= longest <= 0.4
    assert math.isnan(age) or until > age or until == math.inf


def test_age() -> None:
    """A channel is due at max_age, or up to the jitter earlier; never without max_age."""
    assert not LifecyclePolicy().aged(1e9, 0.5)
    policy = LifecyclePolicy(max_age=100.0)
    assert not policy.aged(100.0, 0.0)
    assert policy.aged(100.1, 0.0)
    assert not policy.aged(79.9, 0.999)
    assert policy.aged(81.0, 0.999)


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        (None, None),
        (5, 5.0),
        (0, 0.0),
        (True, 1.0),
        (False, 0.0),
        ("5", 5.0),
        (np.float32(5), 5.0),
        (np.int64(5), 5.0),
        (np.array(5), 5.0),
        (Fraction(5, 2), 2.5),
        (Decimal("2.5"), 2.5),
        (3e9, 3e9),
        (1e10, None),
        (math.inf, None),
    ],
)
def test_timeouts_of_callers(timeout: Any, seconds: float | None) -> None:
    """Every kind of number is one of seconds, as a plain float; what never ends is no limit."""
    parsed = parse_timeout(timeout)
    assert parsed == seconds
    assert type(parsed) in (float, type(None))


@pytest.mark.parametrize(
    "timeout", [-1, -0.001, math.nan, -math.inf, "soon", "", [], 5j, np.array([5.0, 5.0]), 10**400]
)
def test_timeouts_that_are_none(timeout: Any) -> None:
    """The error names the field, the value and what is accepted, however long the value is."""
    with pytest.raises(
        ConfigError, match=r"timeout=.* is not a number of seconds from 0"
    ) as caught:
        parse_timeout(timeout)
    assert caught.value.field == "timeout"
    assert len(str(caught.value)) < 200


def test_fields_have_variables_which_hold_over_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that is given holds over all of them; a bad value names its variable."""
    monkeypatch.setenv(POLICY, '{"linger": 5, "max_age": 60}')
    monkeypatch.setenv("MILVUS_LIFECYCLE_LINGER", "null")
    monkeypatch.setenv("MILVUS_LIFECYCLE_FIRST_CONNECT_PATIENCE", "60")
    assert choose_policy(None) == LifecyclePolicy(
        linger=None, max_age=60, first_connect_patience=60
    )
    assert choose_policy(LifecyclePolicy()) == LifecyclePolicy()
    monkeypatch.delenv(POLICY)
    assert choose_policy(None) == LifecyclePolicy(linger=None, first_connect_patience=60)
    for value, told in (
        ("soon", "linger='soon' is not a number of seconds"),
        ("-1", "linger=-1 is not a number of seconds"),
    ):
        monkeypatch.setenv("MILVUS_LIFECYCLE_LINGER", value)
        for text in ("", "{}"):
            monkeypatch.setenv(POLICY, text)
            with pytest.raises(ConfigError, match=f"^MILVUS_LIFECYCLE_LINGER: .*{told}"):
                choose_policy(None)
    monkeypatch.setenv(POLICY, '{"max_waiting": -1}')
    monkeypatch.setenv("MILVUS_LIFECYCLE_LINGER", "1")
    with pytest.raises(ConfigError, match=f"^{POLICY}: .*max_waiting=-1"):
        choose_policy(None)
    for text in ("[]", '""'):
        monkeypatch.setenv(POLICY, text)
        with pytest.raises(ConfigError, match=f"^{POLICY} is not a JSON object"):
            choose_policy(None)


def test_fields_of_a_command_line_hold_over_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as the variables are, "none" too; what is refused says where it was written."""
    monkeypatch.setenv(POLICY, '{"max_age": 60, "linger": 1}')
    monkeypatch.setenv("MILVUS_LIFECYCLE_LINGER", "2")
    given = {"linger": "None", "channels": "4"}
    assert choose_policy(None, given) == LifecyclePolicy(linger=None, max_age=60, channels=4)
    for given, told in (
        ({"linger": "soon"}, "--policy: .*linger='soon' is not a number of seconds from 0"),
        ({"backoff_max": "99"}, "--policy: .*backoff_max=99 must not be greater than"),
        ({"channels": "1", "max_age": "0"}, "--policy: .*max_age=0 is not"),
        ({"backoff_max": "0.01"}, f"{POLICY} and MILVUS_LIFECYCLE_LINGER and --policy: .*=0.01"),
    ):
        with pytest.raises(ConfigError, match=f"^{told}"):
            choose_policy(None, given)
