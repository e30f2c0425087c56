"""A wire: RPCs are counted in and out in the same step that decides closing."""

from __future__ import annotations

import threading

import pytest

from milvus_lifecycle.wire import Wire, WireState


def wire(state: WireState = WireState.CURRENT) -> Wire:
    made = Wire(object(), "home:19530", 0.0, slow=False)
    if state is not WireState.CANDIDATE:
        made.promote()
    return made


def test_only_the_current_channel_takes_rpcs() -> None:
    """A candidate, a draining and a closed channel let nobody in."""
    candidate, draining, closed = wire(WireState.CANDIDATE), wire(), wire()
    assert draining.enter()
    assert not draining.retire()
    assert closed.retire()
    assert not any(each.enter() for each in (candidate, draining, closed))


def test_a_retired_channel_is_closed_by_its_last_rpc() -> None:
    """The last of several RPCs that leave closes it, and only that one."""
    it = wire()
    assert [it.enter() for _ in range(3)] == [True] * 3
    assert not it.retire()
    assert [it.leave() for _ in range(3)] == [False, False, True]
    assert it.state is WireState.CLOSED


def test_a_channel_that_is_not_retired_stays_open() -> None:
    """RPCs that come and go close nothing."""
    it = wire()
    assert it.enter()
    assert not it.leave()
    assert it.state is WireState.CURRENT


def test_one_closes() -> None:
    """Of all who want to close a channel, one is told to do it."""
    it = wire()
    it.enter()
    assert it.sever(cut=True)
    assert not it.sever(cut=True)
    assert not it.leave()
    assert not it.retire()


@pytest.mark.parametrize("running", [True, False])
def test_cut_says_that_rpcs_were_cut(running: bool) -> None:
    """``cut`` marks a channel that drain_timeout closed under running RPCs, no other."""
    it = wire()
    if running:
        it.enter()
    it.sever(cut=True)
    assert it.cut is running


def test_a_channel_may_be_validated_anew() -> None:
    """Demoted, it lets nobody in, keeps its running RPCs, and may become current again."""
    it = wire()
    assert it.enter()
    it.demote()
    assert not it.enter()
    assert it.state is WireState.CANDIDATE
    assert not it.leave()
    it.promote()
    assert it.enter()


@pytest.mark.parametrize("end", ["retired", "severed"])
def test_a_channel_that_ended_does_not_come_back(end: str) -> None:
    """Neither promote nor demote revives a draining or closed channel."""
    it = wire()
    it.enter()
    if end == "retired":
        it.retire()
    else:
        it.sever(cut=False)
    state = it.state
    it.promote()
    it.demote()
    assert it.state is state
    assert not it.enter()


def test_racing_rpcs_and_retirement() -> None:
    """Whatever the order, a retired channel is closed exactly once and after its last RPC."""
    for _ in range(50):
        it = wire()
        closed: list[str] = []

        def rpc(it: Wire = it, closed: list[str] = closed) -> None:
            if it.enter() and it.leave():
                closed.append("rpc")

        def retire(it: Wire = it, closed: list[str] = closed) -> None:
            if it.retire():
                closed.append("retire")

        threads = [threading.Thread(target=rpc) for _ in range(6)]
        threads.insert(3, threading.Thread(target=retire))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(closed) == 1
        assert (it.state, it.in_flight) == (WireState.CLOSED, 0)
