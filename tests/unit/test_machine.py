"""The machine: what the table forbids raises, and leaves everything as it was."""

from __future__ import annotations

import pytest

from milvus_lifecycle.errors import IllegalTransition
from milvus_lifecycle.table import IGNORED, IMPOSSIBLE, State, Trigger
from tests.cores import Core


def test_an_impossible_trigger_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that a maintainer calls impossible raises by its name, moves and records nothing."""
    cell = (State.ACTIVE, Trigger.EXPIRE)
    monkeypatch.delitem(IGNORED, cell)
    monkeypatch.setitem(IMPOSSIBLE, cell, "nobody may expire under a client")
    core = Core().to(State.ACTIVE)
    before = list(core.records)
    with pytest.raises(IllegalTransition, match="expire in ACTIVE: nobody may expire"):
        core.step(Trigger.EXPIRE)
    assert core.connection.state is State.ACTIVE
    assert core.records == before
    assert core.step(Trigger.CLOSE).moved, "the step let go of its lock"
