"""How long callers wait, on a script: budgets, hope, members, and answers that ask to try again."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

import milvus_lifecycle as ml
from milvus_lifecycle.core.checkout import hoping
from milvus_lifecycle.core.recovery import Recovery
from milvus_lifecycle.core.retry import Retry
from milvus_lifecycle.core.wire import Rpc
from milvus_lifecycle.errors import ConnectFailed, RecoveryExhausted
from milvus_lifecycle.table import State
from milvus_lifecycle.testing import rpc_error
from tests.cores import CONFIG
from tests.observe import Call, Client
from tests.rigs import Rig

LIMIT = 20.0
UNAVAILABLE = rpc_error("UNAVAILABLE")


def test_a_block_bounds_what_its_calls_wait() -> None:
    """And the error says which budget was spent."""

    def impatient() -> None:
        with ml.budget(0.5):
            handler.call()

    with Rig() as rig:
        handler = rig.connected(Client())
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.hold("register")
        call = Call(impatient)
        rig.sees(lambda: rig.clock.sleeping() == 1, "the call does not wait")
        rig.clock.advance(0.5)
        with pytest.raises(RecoveryExhausted, match=r"within budget\(0\.5\)"):
            call.value(LIMIT)


def test_after_a_give_up_less_is_waited_and_said() -> None:
    """A tenth of the budget; the flight goes on."""
    with Rig(idle_threshold=None) as rig:
        handler = rig.connected(Client())
        call = rig.failing(handler, "register")
        rig.clock.advance(60)
        with pytest.raises(RecoveryExhausted, match="within recovery_budget"):
            call.value(LIMIT)
        rig.script.wait_held("register").fail(UNAVAILABLE)
        rig.sees(lambda: handler.face.connection.state is State.IDLE, "it does not give up")
        call = rig.failing(handler, "register")
        rig.clock.advance(6)
        with pytest.raises(RecoveryExhausted, match="within 6 s: after a give_up"):
            call.value(LIMIT)
        assert handler.face.connection.state is State.RECOVERING


def test_one_caller_too_many() -> None:
    """It is told at once, with the age of the outage."""
    with Rig(max_waiting=1) as rig:
        handler = rig.connected(Client())
        rig.failing(handler, "register")
        rig.clock.advance(2)
        told = r"1 calls wait .* \(max_waiting=1\); it is RECOVERING, in an outage since 2\.0 s"
        with pytest.raises(RecoveryExhausted, match=told):
            handler.call()


def test_what_a_first_connect_was_waited_for() -> None:
    """Nobody answers at all: the error says how long a server that is away would have had."""

    def hopeful() -> None:
        with hoping(25.0):
            rig.connected(Client())

    with Rig() as rig:
        rig.script.hold("register")
        call = Call(hopeful)
        rig.sees(lambda: rig.clock.sleeping() == 1, "the call does not wait")
        rig.clock.advance(26)
        with pytest.raises(ConnectFailed, match="waited for up to 25 s"):
            call.value(LIMIT)


def test_who_comes_as_a_first_connect_is_given_up_begins_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its leader has decided without him: the one without hope is told, the other is served."""
    rig = Rig()
    with rig:
        rig.script.hold("register")
        hopeless = Call(rig.connected, Client())
        rig.sees(lambda: rig.clock.sleeping() == 1, "it does not wait")
        decide = Recovery._connect_again

        def decided(self: Recovery, *how: Any) -> bool:
            monkeypatch.setattr(Recovery, "_connect_again", decide)
            decide(self, *how)
            return False

        monkeypatch.setattr(Recovery, "_connect_again", decided)

        def come() -> Any:
            with hoping(25.0):
                return rig.connected(Client())

        hopeful = Call(come)
        rig.sees(lambda: rig.clock.sleeping() == 2, "it does not wait")
        first = rig.script.wait_held("register")
        rig.script._held.clear()
        first.fail(UNAVAILABLE)
        assert hopeful.value(LIMIT) is not None
        with pytest.raises(ConnectFailed):
            hopeless.value(LIMIT)


@pytest.mark.parametrize(
    ("method", "reason", "timeout", "later"),
    [
        ("Query", "busy", None, True),
        ("Insert", "busy", None, False),
        ("Insert", "service not ready[proxy=7: Abnormal]", None, True),
        ("Query", "busy", 0.03, False),
    ],
)
def test_answers_that_ask_to_try_again(
    method: str, reason: str, timeout: float | None, later: bool
) -> None:
    """Reads, and what the proxy has not looked at; while there is time for a pause."""
    with Rig() as rig:
        handler = rig.connected(Client())
        said = SimpleNamespace(code=5, reason=reason, retriable=True)
        for waited, tried in ((0.0, later), (61.0, False)):
            rig.script.plan("rpc", said)
            name = f"/milvus.proto.milvus.MilvusService/{method}"
            call = handler.face.unary_unary(name)
            call(SimpleNamespace(collection_name="demo", partition_names=[]), timeout=timeout)
            rig.clock.advance(waited)
            error: Any = Exception(reason)
            error.code, error.message = 5, reason
            assert rig.manager._driver.drive(Retry(handler.face).ask(error)) is tried
        assert rig.manager._driver.drive(Retry(handler.face).ask(error)) is False


def test_the_decorators_pause_is_known() -> None:
    """It grows with each retry of one call, up to 3 s; another call begins anew."""
    with Rig() as rig:
        face = rig.connected(Client()).face
        start, _, _ = face.quick(Rpc(), None)
        pauses = []
        for _ in range(9):
            pauses.append(round(face.pause(start), 2))
            face.expect_retry(start)
        assert pauses == [0.01, 0.03, 0.09, 0.27, 0.81, 2.43, 3.0, 3.0, 3.0]
        rig.clock.advance(1)
        other, _, _ = face.quick(Rpc(), 5.0)
        assert face.pause(other) == 0.01


def _members(rig: Rig) -> list[Any]:
    return rig.manager._pool.registry.all()


def test_members_are_filled_part_and_take_over() -> None:
    """Two more than the first; a call that failed on one is served by another meanwhile."""
    client = Client()
    with Rig(channels=3, idle_threshold=None) as rig:
        handler, pool = rig.connected(client), rig.manager._pool
        rig.sees(lambda: len(_members(rig)) == 3, "there are no members")
        rig.sees(lambda: all(c.state is State.ACTIVE for c in _members(rig)), "they are not well")
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.hold("register")
        assert handler.call() is None
        assert [c.state for c in _members(rig)].count(State.RECOVERING) == 1
        rig.script.let_go()
        rig.sees(lambda: all(c.state is State.ACTIVE for c in _members(rig)), "not mended")
        first, gone = handler.face.connection, handler.face.members[0]
        pool.close(gone, "by a test")
        rig.sees(lambda: len(_members(rig)) == 2, "it does not part")
        rig.clock.advance(10)
        rig.sees(lambda: len(_members(rig)) == 3, "it is not replaced")
        pool.close(first, "by a test")
        rig.sees(lambda: handler.face.members == (), "they do not part")
        pool.plan_fill(handler.face, rig.clock())  # too late: nobody to be filled
        looked = threading.Event()
        pool.maintenance.plan(rig.clock(), looked.set)
        assert looked.wait(LIMIT)
        assert handler.call() is None
        rig.sees(lambda: len(handler.face.members) == 2, "the successor has no members")
        assert handler.face.connection is not first
        assert CONFIG.key == handler.face.connection.config.key
