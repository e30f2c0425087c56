"""What people are told of outages at WARNING: one line when calls wait, one when it is over."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from milvus_lifecycle import ConnectionConfig
from milvus_lifecycle.audit import stream
from milvus_lifecycle.audit.logs import ApplicationLog
from milvus_lifecycle.audit.stream import Audit
from milvus_lifecycle.core import notices
from milvus_lifecycle.core.flight import Outage
from milvus_lifecycle.core.notices import NOTICE_AFTER
from milvus_lifecycle.errors import DeadlineExceeded, RecoveryExhausted
from milvus_lifecycle.table import State
from milvus_lifecycle.testing import rpc_error
from tests.observe import Call, Client, LogLines
from tests.rigs import Rig, Roamer, Signpost

LIMIT = 20.0
UNAVAILABLE = rpc_error("UNAVAILABLE")


class Told(Rig):
    """A rig whose WARNINGs are seen as the application sees them."""

    def __enter__(self) -> Told:
        self.manager._pool.audit.add(ApplicationLog())
        self.lines = LogLines(logging.WARNING, "milvus_lifecycle").__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        self.lines.__exit__(*exc)

    def told(self) -> list[str]:
        """What stands in the log, without event and address."""
        self.manager._pool.audit.flush(LIMIT)
        told = [line.getMessage() for line in self.lines.records]
        return [line.removeprefix("connection.outage home:19530 ") for line in told]

    def waits(self, *handlers: Any) -> list[Call]:
        """A call on each of the handlers, that waits; the first one has found the failure."""
        calls = [self.failing(handlers[0], "register")]
        for handler in handlers[1:]:
            if handler.face.connection.state is State.ACTIVE:
                self.script.plan("rpc", UNAVAILABLE)
            calls.append(Call(handler.call))
            self.sees(lambda: self.clock.sleeping() == len(calls), "it does not wait")
        return calls

    def fails(self, error: Any = UNAVAILABLE, ends: str = "retry") -> None:
        """The attempt that is under way fails: at once, and when it has waited for its channel."""
        before, sleeping = len(self.audit.transitions(ends)), self.clock.sleeping()

        def over() -> bool:
            for held in self.script.held("register"):
                held.fail(error)
            return len(self.audit.transitions(ends)) > before

        self.sees(over, f"there is no {ends}")
        if ends == "retry":
            self.sees(
                lambda: self.clock.sleeping() > sleeping or self.script.held("register"),
                "there is no gap, and no other attempt",
            )


def test_an_outage_has_one_line_when_calls_wait_and_one_when_it_is_over() -> None:
    """With how many wait and why; then with its length, its attempts and what calls felt."""
    with Told(backoff_jitter=0.0) as rig:
        handler = rig.connected(Client())
        calls = rig.waits(handler, handler, handler, handler)
        rig.fails()
        assert rig.told() == [], "an outage that is a moment old is nobody's business"
        for _ in range(8):
            rig.clock.advance(4.0)
            rig.fails()
        rig.clock.advance(4.6)
        rig.script.let_go()
        for call in calls:
            call.value(LIMIT)
        down, back = rig.told()
        assert down == (
            "down: the server cannot be reached, for 4.0 s; 4 calls wait: UNAVAILABLE: scripted"
        )
        assert back == "back: after 36.6 s and 10 attempts: 4 calls waited, 0 failed"
        (recovered,) = rig.audit.transitions("recovered")
        assert recovered.reason.endswith("after 36.6 s and 10 attempts; 4 waited, 0 failed")
        assert [r.waiting for r in rig.audit.transitions("retry")] == [4] * 9
        assert (recovered.waiting, recovered.waited, recovered.failed) == (0, 4, 0)


def test_an_outage_that_nobody_feels_is_not_told_of() -> None:
    """The call that found it has left by its own timeout: only then is there something to say."""
    with Told() as rig:
        handler = rig.connected(Client())
        (call,) = rig.waits(handler)
        rig.clock.advance(2.0)
        rig.script.let_go()
        call.value(LIMIT)
        assert rig.told() == []
        (recovered,) = rig.audit.transitions("recovered")
        assert recovered.reason.endswith("after 2.0 s and 1 attempt; 1 waited, 0 failed")


def test_a_forked_child_has_no_outage_of_its_parents_to_tell_of() -> None:
    """They are the parent's to tell of, whose address is back there."""
    with Told() as rig:
        (call,) = rig.waits(rig.connected(Client()))
        assert rig.manager._pool.notices.troubles
        rig.manager._pool.notices.reset_after_fork()
        assert rig.manager._pool.notices.troubles == {}
        rig.script.let_go()
        call.value(LIMIT)


def test_while_all_is_well_no_call_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a call that finds a good connection is not longer for it."""
    with Told() as rig:
        handler = rig.connected(Client())
        monkeypatch.setattr(rig.manager._pool.notices, "look", None)
        handler.call()


def test_it_is_told_though_nothing_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The good call that ends an outage moves nothing: whoever reads is woken for it."""
    monkeypatch.setattr(stream, "IDLE", 0.01)
    with Told() as rig:
        handler = rig.connected(Client())
        (call,) = rig.waits(handler)
        rig.clock.advance(5.0)
        rig.fails()
        rig.clock.advance(1.0)
        # It recovers, and its call does not go on yet: all that was to be read is read.
        rig.script.hold("rpc")
        for held in rig.script.held("register"):
            rig.script.finish(held)
        good = rig.script.wait_held("rpc")
        outlets = [reader.outlet for reader in rig.manager._pool.audit.readers]

        def idle() -> bool:
            return all(each._worker is None and each._queue.empty() for each in outlets)

        rig.sees(idle, "somebody reads")
        rig.script.finish(good)
        call.value(LIMIT)
        rig.sees(idle, "it waits in the queue")
        assert len(rig.lines.records) == 2


def test_one_that_gave_up_keeps_its_address_down() -> None:
    """Nothing vouches for it, whatever the others' calls say, until a call of its own does."""
    with Told(recovery_budget=5.0, backoff_jitter=0.0) as rig:
        one, client = rig.connected(Client()), Client()
        config = ConnectionConfig.from_uri("http://home:19530", token="an:other")
        rejected = rig.manager.get_or_create(config, client=client)
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.hold("register")
        with pytest.raises(type(UNAVAILABLE)):
            rejected.rpc()
        rig.script.wait_held("register").fail(rpc_error("UNAUTHENTICATED"))
        rig.sees(lambda: rejected.face.connection.state is State.IDLE, "it does not give up")
        rig.script.let_go()
        rig.sees(lambda: len(rig.told()) == 1, "it is not told")
        rig.script.plan("rpc", UNAVAILABLE)
        one.call()
        rig.clock.advance(10.0)
        one.call()
        assert len(rig.told()) == 1
        rejected.call()
        rig.sees(lambda: len(rig.told()) == 2, "it is not told")


def test_calls_that_failed_are_told_of_though_none_waits() -> None:
    """And the end says how many there were."""
    with Told(max_waiting=0) as rig:
        client = Client()
        handler = rig.connected(client)
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.hold("register")
        with pytest.raises(RecoveryExhausted):
            handler.call()
        rig.clock.advance(5.0)
        rig.fails()
        assert rig.told()[0].startswith("down: the server cannot be reached, for 5.0 s; 1 failed:")
        rig.clock.advance(1.0)
        rig.script.let_go()
        rig.sees(lambda: handler.face.connection.state is State.ACTIVE, "it does not recover")
        assert len(rig.told()) == 1, "no call has succeeded yet"
        handler.call()
        assert rig.told()[1] == "back: after 6.0 s and 2 attempts: 0 calls waited, 1 failed"


def test_connections_to_one_address_are_one_outage() -> None:
    """One line for all of them, and one once the last of them is back."""
    with Told() as rig:
        one, client = rig.connected(Client()), Client()
        config = ConnectionConfig.from_uri("http://home:19530", token="an:other")
        two = rig.manager.get_or_create(config, client=client)
        calls = rig.waits(one, two)
        rig.clock.advance(5.0)
        rig.fails()
        rig.clock.advance(1.0)
        rig.script.let_go()
        for call in calls:
            call.value(LIMIT)
        rig.sees(lambda: len(rig.told()) == 2, "it is not told")
        down, back = rig.told()
        assert "for 5.0 s; 2 calls wait; 2 connections: " in down
        assert "2 calls waited, 0 failed; 2 connections" in back
        assert back.startswith("back: after 6.0 s and ")


def test_a_connection_that_is_lost_again_meanwhile_counts_twice() -> None:
    """What its calls felt the first time is not forgotten, while another one is still down."""
    with Told() as rig:
        clients = Client(), Client()
        config = ConnectionConfig.from_uri("http://home:19530", token="an:other")
        one = rig.connected(clients[0])
        two = rig.manager.get_or_create(config, client=clients[1])
        calls = rig.waits(one, two)
        rig.clock.advance(5.0)
        rig.fails()
        rig.clock.advance(1.0)
        rig.script.finish(rig.script.wait_held("register"))
        rig.sees(lambda: any(call.done for call in calls), "none is back")
        back = one if calls[0].done else two
        rig.sees(lambda: rig.script.held("register"), "the other one does not try")
        rig.script.plan("rpc", UNAVAILABLE)
        again = Call(back.call)
        rig.sees(lambda: back.face.connection.state is State.RECOVERING, "it is not lost")
        rig.sees(lambda: a_call_waits(back), "its call does not wait")
        rig.script.let_go()
        for call in (*calls, again):
            call.value(LIMIT)
        rig.sees(lambda: len(rig.told()) == 2, "it is not told")
        assert "3 calls waited, 0 failed; 2 connections" in rig.told()[1]


def a_call_waits(handler: Any) -> bool:
    """Does a call wait for its recovery?"""
    flight = handler.face.connection.lifecycle.flight
    return flight is not None and flight.waiting == 1


def test_one_that_is_back_and_has_no_call_keeps_no_outage_open() -> None:
    """The address is back with the calls of the others, and their next outage is told of, too."""
    with Told(backoff_jitter=0.0) as rig:
        one, client = rig.connected(Client()), Client()
        config = ConnectionConfig.from_uri("http://home:19530", token="an:other")
        idle = rig.manager.get_or_create(config, client=client)
        rig.script.plan("rpc", UNAVAILABLE)
        with pytest.raises(type(UNAVAILABLE)):
            idle.rpc()
        for _ in range(2):
            (call,) = rig.waits(one)
            rig.clock.advance(5.0)
            rig.fails()
            rig.clock.advance(1.0)
            rig.script.let_go()
            call.value(LIMIT)
            rig.sees(lambda: idle.face.connection.state is State.ACTIVE, "it does not recover")
            rig.clock.advance(NOTICE_AFTER)
            one.call()
        told = rig.told()
        assert [line[:5] for line in told] == ["down:", "back:", "down:", "back:"]
        assert told[3].startswith("back: after 6.0 s ")
        idle.call()
        assert rig.manager._pool.notices.troubles == {}


def test_what_was_told_of_an_outage_is_not_told_again() -> None:
    """It may outlast what people were told of it, until its next call: then only news is news."""
    with Told(backoff_jitter=0.0) as rig:
        one, client = rig.connected(Client()), Client()
        config = ConnectionConfig.from_uri("http://home:19530", token="an:other")
        idle = rig.manager.get_or_create(config, client=client)
        (call,) = rig.waits(one)
        rig.script.plan("rpc", UNAVAILABLE)
        late = Call(idle.call, None, 2.0)
        rig.sees(lambda: rig.clock.sleeping() == 2, "it does not wait")
        rig.clock.advance(2.0)
        with pytest.raises(DeadlineExceeded):
            late.value(LIMIT)
        rig.clock.advance(3.0)
        rig.fails()
        rig.script.let_go()
        rig.clock.advance(1.0)
        call.value(LIMIT)
        rig.sees(lambda: idle.face.connection.state is State.ACTIVE, "it does not recover")
        rig.clock.advance(NOTICE_AFTER)
        one.call()
        rig.sees(lambda: len(rig.told()) == 2, "it is not told")
        assert "2 calls waited, 1 failed; 2 connections" in rig.told()[1]
        rig.script.plan("rpc", UNAVAILABLE)
        with pytest.raises(type(UNAVAILABLE)):
            idle.rpc()
        rig.clock.advance(5.0)
        rig.sees(lambda: idle.face.connection.state is State.ACTIVE, "it does not recover")
        idle.call()
        rig.sees(lambda: len(rig.told()) == 4, "it is not told")
        assert "fails every call" in rig.told()[2]
        assert "0 calls waited, 0 failed" in rig.told()[3]


def test_flapping_that_was_told_of_is_no_news() -> None:
    """An outage that goes on flaps anew, or it is nothing to tell of yet, and may be over."""
    outage = Outage(0.0, 1, flaps=2, told=(0, 0, 0, 2))
    trouble, life = notices._Trouble(0.0), SimpleNamespace(id="one", flight=None, suspect=False)
    life.state, life.state_since = State.ACTIVE, 0.0
    trouble.add(life, outage)  # type: ignore[arg-type]
    tell = notices.Notices(Audit("threads"))._tell_beginning
    assert not tell(trouble, life, outage, 0.1)  # type: ignore[arg-type]
    assert trouble.over(10.0)
    outage.flaps += 1
    assert not trouble.over(10.0)


def test_neighbours_that_come_and_go_are_not_remembered_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While one connection stays down: the oldest of the others' outages are forgotten."""
    monkeypatch.setattr(notices, "_MOST", 2)
    trouble, outages = notices._Trouble(0.0), [Outage(float(n), 1, waited=1) for n in range(6)]
    for number, outage in enumerate(outages):
        life: Any = SimpleNamespace(id="down" if number == 0 else "neighbour")
        trouble.add(life, outage)
    assert list(trouble.outages) == [outages[0], *outages[-3:]]
    assert trouble.so_far() == (0, 4, 0, 0)


def test_a_call_that_is_tried_again_and_has_not_waited_yet_is_counted() -> None:
    """The first channel that failed it was replaced by others before it could wait."""
    with Told(backoff_jitter=0.0) as rig:
        client = Client()
        handler = rig.connected(client)
        rig.script.plan("rpc", UNAVAILABLE)

        def work() -> None:
            with pytest.raises(type(UNAVAILABLE)) as raised:
                handler.rpc()
            rig.sees(lambda: handler.face.connection.state is State.ACTIVE, "it does not recover")
            Call(handler.rpc).value(LIMIT)
            assert handler.face.on_rpc_error(raised.value)
            rig.script.plan("rpc", UNAVAILABLE)
            rig.script.hold("register")
            handler.call()

        call = Call(work)
        rig.script.wait_held("register")
        rig.sees(lambda: rig.clock.sleeping() == 1, "the call does not wait")
        rig.clock.advance(5.0)
        rig.fails()
        rig.clock.advance(1.0)
        rig.script.let_go()
        call.value(LIMIT)
        assert rig.told()[1].endswith(": 1 call waited, 0 failed")


def test_both_lines_of_a_cluster_that_moves_have_one_address() -> None:
    """Alerts find the two by it."""
    roamer = Roamer()
    with Told(roamer, backoff_jitter=0.0) as rig:
        handler = rig.connected(Client())
        (call,) = rig.waits(handler)
        rig.clock.advance(5.0)
        rig.fails()
        roamer.where, roamer.target = Signpost(rig.script, "away:19530"), "away:19530"
        rig.clock.advance(1.0)
        rig.script.let_go()
        call.value(LIMIT)
        rig.sees(lambda: handler.face.connection.address == "away:19530", "it does not move")
        rig.sees(lambda: handler.face.connection.lifecycle.flight is None, "it goes on moving")
        handler.call()
        down, back = rig.told()
        assert (down[:5], back[:5]) == ("down:", "back:")


def test_a_connection_that_closes_while_it_is_looked_at_is_forgotten() -> None:
    """Else nothing of its address would be told of any more."""
    with Told() as rig:
        rig.waits(rig.connected(Client()))
        pool = rig.manager._pool
        (connection,) = pool.registry.all()

        class Meanwhile(dict[str, Any]):
            def setdefault(self, *item: Any) -> Any:
                rig.manager.close_all()
                return super().setdefault(*item)

        pool.notices.troubles = Meanwhile()
        pool.notices.look(connection.lifecycle, rig.clock.seams().clock())
        assert pool.notices.troubles == {}


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("UNAVAILABLE", "down: the server cannot be reached, for 5.0 s; 1 call waits: UNAVAILABLE"),
        ("DEADLINE_EXCEEDED", "down: the server does not answer, for 5.0 s; 1 call waits: DEADL"),
        ("INTERNAL", "down: there is no usable connection, for 5.0 s; 1 call waits: INTERNAL"),
        (
            "UNAUTHENTICATED",
            "down: the server refuses this client, and waiting does not mend that: UNAUTHENTICATED",
        ),
    ],
)
def test_each_cause_has_a_text_of_its_own(code: str, told: str) -> None:
    """What is permanent is told at once, whatever its age."""
    with Told() as rig:
        rig.waits(rig.connected(Client()))
        rig.clock.advance(5.0)
        rig.fails(rpc_error(code), "give_up" if code == "UNAUTHENTICATED" else "retry")
        rig.sees(rig.told, "it is not told")
        assert rig.told()[0].startswith(told)


def test_a_budget_that_is_spent_and_a_connection_that_ends() -> None:
    """Each is said as what it is: the record of the give up, the notice, and that it was closed."""
    with Told(recovery_budget=2.0) as rig:
        handler = rig.connected(Client())
        (call,) = rig.waits(handler)
        rig.clock.advance(2.0)
        with pytest.raises(RecoveryExhausted):
            call.value(LIMIT)
        rig.fails(ends="give_up")
        (given_up,) = rig.audit.transitions("give_up")
        assert given_up.reason.startswith("the recovery budget is spent: UNAVAILABLE")
        rig.sees(rig.told, "it is not told")
        (down,) = rig.told()
        assert down.startswith("down: no channel within recovery_budget (2 s); each call tries ag")
        rig.manager.close_all()
        end = "closed: while it was down, after 2.0 s and 1 attempt: 1 call waited, 1 failed"
        assert rig.told()[1:] == [end]


def test_a_server_that_fails_every_call_is_told_of_as_that() -> None:
    """It comes back at once, each time: the outage is short, and goes on."""
    with Told(backoff_jitter=0.0) as rig:
        (call,) = rig.waits(rig.connected(Client()))
        rig.script.plan("rpc", UNAVAILABLE)
        rig.script.let_go()
        rig.sees(rig.told, "it is not told")
        rig.sees(lambda: rig.clock.sleeping() == 1, "the call does not wait")
        rig.clock.advance(1.0)
        call.value(LIMIT)
        down, back = rig.told()
        assert down.startswith("down: the server accepts connections and fails every call: UNAV")
        assert back == "back: after 1.0 s and 2 attempts: 1 call waited, 0 failed"
