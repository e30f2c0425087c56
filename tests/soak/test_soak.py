"""The soak itself, and the rule by which it tells growth from scatter."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.alone import run_alone
from tests.soak.channels import leave_nothing
from tests.soak.levels import GRAINS, KEEP_NOTHING, grown, growth, malloced
from tests.soak.soak import SECONDS, soak

#: What the servers' last troubles, a slow machine and the verdict on the log may add (seconds).
_MORE = 900.0


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + _MORE + 60)
def test_nothing_fails_and_nothing_grows(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Hours of it, if asked: both flavours in one process, with servers of their own."""
    limit = SECONDS + _MORE
    figures = run_alone(soak, "threads+asyncio", tmp_path, limit=limit, environment=KEEP_NOTHING)
    record_property("figures", f"soak: {figures}")


@pytest.mark.soak
def test_a_closed_channel_leaves_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Fewer than 200 bytes; 1 to 38 were measured."""
    figures = run_alone(leave_nothing, "threads", tmp_path, environment=KEEP_NOTHING)
    record_property("figures", f"soak: {figures}")


def _readings(count: int, leak: float = 0.0) -> list[dict[str, float]]:
    """Megabytes that fill up, then scatter by two, with outliers, around a level or a slope."""
    chance = random.Random(count)
    filling = [80.0 + 20.0 * at / count for at in range(count)]
    level = [100.0 + leak * at / (count - 1) + chance.gauss(0.0, 2.0) for at in range(count)]
    level[::-7] = [each + 50.0 for each in level[::-7]]
    return [{**dict.fromkeys(GRAINS, 7.0), "MB": held} for held in filling + level]


@pytest.mark.parametrize("count", [6, 11, 60])
def test_scatter_is_no_growth(count: int) -> None:
    """Nor is what fills up in the first half, nor one reading in seven that is far off."""
    readings = _readings(count)
    leaks, figures = grown(readings)
    assert leaks == []
    assert abs(growth([each["MB"] for each in readings[count:]])[0]) < 20.0
    assert f"over {count} readings: descriptors 7 -> 7" in figures


@pytest.mark.parametrize("count", [11, 60])
def test_growth_is_found(count: int) -> None:
    """By ten times the scatter over the half, outliers or not."""
    (leak,) = grown(_readings(count, leak=20.0))[0]
    assert leak.startswith("MB ")


@pytest.mark.parametrize("what", list(GRAINS))
def test_what_does_not_scatter_shows_each_grain(what: str) -> None:
    """However few readings there are; less than a grain is nothing."""
    for grains, found in ((0.9, []), (1.1, [what])):
        step = grains * GRAINS[what] / 5
        held = [{**dict.fromkeys(GRAINS, 7.0), what: 7.0 + step * at} for at in range(12)]
        assert [leak.split()[0] for leak in grown(held)[0]] == found


@pytest.mark.soak
def test_what_is_not_given_back_to_malloc_is_counted() -> None:
    """However small the pieces are, which Python knows nothing of."""
    malloc, free = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free
    malloc.restype, free.argtypes, before = ctypes.c_void_p, [ctypes.c_void_p], malloced()
    leaked = [malloc(500) for _ in range(20_000)]
    assert malloced() - before > 10e6
    for piece in leaked:
        free(piece)
    assert malloced() - before < 5e6
