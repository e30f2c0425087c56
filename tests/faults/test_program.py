"""Faults of the client's own process, each in a process of its own, in both flavours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import bodies
from tests.faults.alone import Body, run_alone
from tests.faults.load import FLAVOURS, Flavour
from tests.stock import FORK_POLLER

pytestmark = pytest.mark.timeout(240)

BODIES: dict[str, Body] = {
    "200 threads, 2,000 coroutines": bodies.a_crowd_loses_its_server,
    "gc.set_threshold(1)": bodies.the_collector_runs_everywhere,
    "fork under load": bodies.forks_under_load,
    "no file descriptor left": bodies.no_descriptor_is_left,
    "full disk under the audit log": bodies.the_disk_is_full,
}


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("name", list(BODIES))
def test_the_program_survives(
    name: str,
    flavour: Flavour,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Each body's promise holds, and it leaves nothing behind."""
    environment = FORK_POLLER if "fork" in name else {}
    figures = run_alone(BODIES[name], flavour, tmp_path, environment=environment)
    record_property("fault", f"{'program':16} {flavour:7}  {name}: {figures}")
