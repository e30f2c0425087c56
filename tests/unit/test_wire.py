"""A wire: RPCs are counted in and out in the same step that decides closing."""

from __future__ import annotations

import threading

import pytest

from milvus_lifecycle.core.wire import Rpc, Wire, WireState


def wire(state: WireState = WireState.CURRENT) -> Wire:
    made = Wire(object(), "home:19530", 0.0)
    if state is not WireState.CANDIDATE:
        made.promote()
    return made


def test_only_the_current_channel_takes_rpcs() -> None:
    """A candidate, a draining and a closed channel let nobody in."""
    candidate, draining, closed = wire(WireState.CANDIDATE), wire(), wire()
    draining.retire()
    closed.close_now(cut=False)
    assert not any(each.enter(Rpc()) for each in (candidate, draining, closed))


def test_a_retired_channel_is_closed_by_its_last_rpc() -> None:
    """The last of several RPCs that leave closes it, and only that one."""
    it, rpcs = wire(), [Rpc() for _ in range(3)]
    assert [it.enter(rpc) for rpc in rpcs] == [True] * 3
    it.retire()
    assert not it.close_if_drained()
    assert [it.leave(rpc) for rpc in rpcs] == [False, False, True]
    assert it.state is WireState.CLOSED


def test_an_rpc_that_is_gone_does_not_count() -> None:
    """Whoever ran it may have been interrupted before he could count it out."""
    it, rpcs = wire(), [Rpc() for _ in range(3)]
    assert [it.enter(rpc) for rpc in rpcs] == [True] * 3
    rpcs.pop()
    assert it.in_flight == 2
    assert not it.leave(rpcs.pop())
    rpcs.pop()
    assert it.in_flight == 0
    assert it.rpcs() == []
    it.retire()
    assert it.close_if_drained()


def test_a_channel_that_is_not_retired_stays_open() -> None:
    """RPCs that come and go close nothing."""
    it, rpc = wire(), Rpc()
    assert it.enter(rpc)
    assert not it.leave(rpc)
    assert it.state is WireState.CURRENT


def test_whoever_asks_is_told_to_close_until_it_is_done() -> None:
    """Who was told first may have been interrupted. A channel that is gone is not closed again."""
    it, rpc = wire(), Rpc()
    it.enter(rpc)
    assert it.close_now(cut=True)
    assert it.leave(rpc)
    assert it.close_if_drained()
    it.gone = True
    assert not it.close_now(cut=True)
    assert not it.leave(rpc)
    it.retire()
    assert not it.close_if_drained()


@pytest.mark.parametrize("running", [True, False])
def test_cut_says_that_rpcs_were_cut(running: bool) -> None:
    """``cut`` marks a channel that drain_timeout closed under running RPCs, no other."""
    it, rpc = wire(), Rpc()
    if running:
        it.enter(rpc)
    it.close_now(cut=True)
    assert it.cut is running


def test_a_channel_may_be_validated_anew() -> None:
    """Demoted, it lets nobody in, keeps its running RPCs, and may become current again."""
    it, rpc = wire(), Rpc()
    assert it.enter(rpc)
    it.demote()
    assert not it.enter(Rpc())
    assert it.state is WireState.CANDIDATE
    assert not it.leave(rpc)
    it.promote()
    assert it.enter(rpc)


@pytest.mark.parametrize("end", ["retired", "severed"])
def test_a_channel_that_ended_does_not_come_back(end: str) -> None:
    """Neither promote nor demote revives a draining or closed channel."""
    it, rpc = wire(), Rpc()
    it.enter(rpc)
    if end == "retired":
        it.retire()
    else:
        it.close_now(cut=False)
    state = it.state
    it.promote()
    it.demote()
    assert it.state is state
    assert not it.enter(Rpc())


def test_racing_rpcs_and_retirement() -> None:
    """Whatever the order, a retired channel is closed, and after its last RPC."""
    for _ in range(50):
        it = wire()
        closed: list[str] = []

        def work(it: Wire = it, closed: list[str] = closed) -> None:
            rpc = Rpc()
            if it.enter(rpc) and it.leave(rpc):
                closed.append(f"{it.in_flight} left")

        def retire(it: Wire = it, closed: list[str] = closed) -> None:
            it.retire()
            if it.close_if_drained():
                closed.append(f"{it.in_flight} left")

        threads = [threading.Thread(target=work) for _ in range(6)]
        threads.insert(3, threading.Thread(target=retire))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert set(closed) == {"0 left"}
        assert (it.state, it.in_flight) == (WireState.CLOSED, 0)


def test_an_rpc_that_was_never_let_in_leaves_nothing_behind() -> None:
    """Whoever was refused may count out, and be ended, all the same."""
    it, rpc = wire(WireState.CANDIDATE), Rpc()
    assert not it.enter(rpc)
    assert not it.leave(rpc)
    rpc.sever()
    assert rpc.severed
