"""A failed RPC can be followed by a reader: its way is counted."""

from __future__ import annotations

from tests.journey import failed_rpc, moves

#: 126 calls and 132 moves before the procedures were objects and failures values
CALLS, MOVES = 110, 109


def test_a_failed_rpc_has_a_short_way() -> None:
    """Calls of the engine's functions in the caller's thread, and moves between its files."""
    events = failed_rpc()
    names = [function for called, _, function in events if called]
    assert "action_begin_recovery" in names, "it did not fail"
    assert names.count("with_call") == 2, "it was not tried again"
    assert len(names) <= CALLS
    assert moves(events) <= MOVES
