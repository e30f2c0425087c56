"""Faults of real servers and of the network before them, under load, in both flavours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.load import FLAVOURS, Flavour
from tests.faults.matrix import NETWORK_FAULTS, QUICK_SERVER_FAULTS, SERVER_FAULTS
from tests.faults.scene import Fault, play
from tests.faults.servers import SERVERS, LiteServer, Server

pytestmark = pytest.mark.timeout(420)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("fault", [*SERVER_FAULTS, *QUICK_SERVER_FAULTS, *NETWORK_FAULTS], ids=str)
@pytest.mark.parametrize("running", list(SERVERS), indirect=True)
def test_no_call_fails(
    server: Server,
    fault: Fault,
    flavour: Flavour,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """No call without a timeout fails, no acknowledged insert is lost, and nothing is left."""
    if fault in QUICK_SERVER_FAULTS and not isinstance(server, LiteServer):
        pytest.skip("its restarts take too long to do twice")
    outcome = play(fault, server, flavour, tmp_path / "audit.jsonl")
    record_property("fault", f"{server.name:16} {flavour:7}  {fault.name}: {outcome}")
    assert outcome.failed == []
    assert outcome.refused == [] or fault.unwell
    assert outcome.missing == 0
    assert outcome.acknowledged > 0
    assert fault.breaks in (None, outcome.recovered > 0)
    assert outcome.waits > 0 or not (fault.reloads and server.indexed)
    assert outcome.waits == 0 or server.indexed
