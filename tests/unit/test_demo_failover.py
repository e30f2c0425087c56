"""The failover's figures: where writes went, when connections moved; and its topology service."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from typing import Any

import pytest

from milvus_lifecycle.cli import demo as command
from milvus_lifecycle.demo.failover_measure import (
    Move,
    Stay,
    Write,
    check_placement,
    find_landing,
    find_move_faults,
    list_stays,
    list_writes,
    take_moves,
)
from milvus_lifecycle.demo.localhost import resolve_localhost_names
from milvus_lifecycle.demo.measure import Call
from milvus_lifecycle.demo.topology_service import TopologyService
from milvus_lifecycle.endpoints.topology import parse_topology

A, B = "127.0.0.1:1", "127.0.0.1:2"


def record(at: float, trigger: str, address: str, dest: str = "ACTIVE", **more: Any) -> Any:
    row = {"connection_id": "one", "generation": 1, "at": at, "trigger": trigger}
    return {**row, "address": address, "dest": dest, **more}


#: A connection on A from 1 s, on B from 11 s, on A again from 21 s.
RECORDS = [
    record(0.5, "acquire", "cluster", "PROBING", generation=0),
    record(1.0, "probe_passed", A),
    record(10.9, "reroute", A, "RECOVERING"),
    record(11.0, "recovered", B),
    record(20.0, "fail", B, "RECOVERING"),
    record(20.5, "retry", B, "RECOVERING"),
    record(21.0, "recovered", A),
]
STAYS = [Stay(A, 0.5, 11.0), Stay(B, 10.9, 21.0), Stay(A, 20.0, None)]


def test_records_say_where_the_primary_was() -> None:
    """A stay begins with the flight that leads there and ends with the next landing."""
    assert list_stays(RECORDS) == STAYS


def test_standing_down_is_no_move() -> None:
    """A recovery that comes back to the same address splits no stay."""
    same = [*RECORDS[:2], record(3, "fail", A, "RECOVERING"), record(4, "recovered", A)]
    assert list_stays(same) == [Stay(A, 0.5, None)]


@pytest.mark.parametrize(
    ("start", "end", "taker", "misplaced"),
    [
        (2.0, 2.1, A, 0),
        (2.0, 2.1, B, 1),  # nothing led there yet
        (10.95, 11.2, A, 0),  # began before the swap: it may finish on the old primary
        (10.95, 11.2, B, 0),
        (11.1, 11.2, A, 1),  # began after the swap
        (11.1, 11.2, B, 0),
        (19.9, 21.5, A, 0),  # retried
        (19.9, 21.5, B, 0),
        (22.0, 22.1, B, 1),
    ],
)
def test_a_write_belongs_where_its_clients_topology_said(
    start: float, end: float, taker: str, misplaced: int
) -> None:
    """A server may take a call that overlaps its time as the client's primary, and no other."""
    contents = {A: frozenset(), B: frozenset(), taker: frozenset({7})}
    placement = check_placement([Write(7, start, end)], contents, STAYS)
    assert placement.misplaced == misplaced
    assert bool(placement.faults) == bool(misplaced)
    assert placement.by_server[taker] == 1


def test_a_lost_write_is_a_fault_and_a_doubled_one_is_not() -> None:
    """Retried inserts are at-least-once: in both databases is legal, in neither is not."""
    contents = {A: frozenset({1}), B: frozenset({1})}
    placement = check_placement([Write(1, 19.9, 21.5), Write(2, 2, 3)], contents, STAYS)
    assert (placement.lost, placement.twice, placement.misplaced) == (1, 1, 0)
    assert placement.faults == ["1 of 2 acknowledged writes are in no database"]


def test_without_records_nobody_knows_what_the_client_had() -> None:
    """pymilvus keeps no records: its writes are counted, not judged."""
    placement = check_placement([Write(1, 5, 6)], {A: frozenset(), B: frozenset({1})}, [])
    assert placement.misplaced is None
    assert placement.faults == []


def test_ids_follow_the_order_of_a_workers_inserts() -> None:
    """A failed insert uses up its id; searches do not."""
    calls = [
        Call(0, "insert", 3.0, 3.1, None),
        Call(0, "insert", 1.0, 1.1, None),
        Call(0, "insert", 2.0, 2.1, "MilvusException: no"),
        Call(0, "search", 2.5, 2.6, None),
        Call(1, "insert", 1.0, 1.5, None),
        Call(1, "insert", 4.0, None, None),
    ]
    writes = list_writes(calls, {0: 1, 1: 100})
    assert [(write.id, write.start) for write in writes] == [(1, 1.0), (100, 1.0), (3, 3.0)]


def test_a_move_has_landed_when_every_connection_has() -> None:
    """The last connection's swap counts; one that was closed before does not."""
    move = Move("switch", A, B, 2, named_at=10.0)
    other = record(2.0, "probe_passed", A, connection_id="two")
    assert find_landing(RECORDS, move) == 11.0
    assert find_landing([other, *RECORDS], move) is None
    closed = record(3.0, "close", A, "CLOSED", connection_id="two")
    assert find_landing([other, closed, *RECORDS], move) == 11.0
    late = record(12.0, "recovered", B, connection_id="two")
    assert find_landing([other, *RECORDS, late], move) == 12.0
    assert find_landing([], move) is None


def test_the_figures_of_moves() -> None:
    """Times count from the naming, and so do the old primary's late writes; channels are each
    move's own, from the death on if there was one."""
    moves = [
        Move("switch", A, B, 2, named_at=10.0),
        Move("death", B, A, 3, named_at=20.2, killed_at=19.95),
    ]
    calls = [
        Call(0, "insert", 10.4, 10.6, None),
        Call(0, "insert", 12.0, 12.1, None),
        Call(0, "insert", 19.9, 21.2, None),
    ]
    switch, death = take_moves(
        moves,
        workers=1,
        ended=30.0,
        calls=calls,
        channels=[0.5, 10.9, 19.96, 20.4],
        writes=list_writes(calls, {0: 1}),
        records=RECORDS,
        contents={A: frozenset({1, 3}), B: frozenset({2})},
        served={2: 10.85, 3: 20.9},
    )
    assert (switch.moved_s, switch.late_writes) == (1.0, 1)
    assert switch.refreshed_s == pytest.approx(0.85)
    assert switch.after_refresh_s == pytest.approx(0.15)
    assert switch.late_s == pytest.approx(0.6)
    assert death.moved_s == pytest.approx(0.8)
    assert death.first_good_s == death.slowest_s == pytest.approx(1.0)
    assert death.late_writes == 0
    assert (switch.channels, death.channels) == (1, 2)
    assert find_move_faults([switch, death], on_engine=True) == []


def test_a_move_that_nobody_followed_is_a_fault_of_the_engine_only() -> None:
    """pymilvus is not expected to move; a worker without a good call is a fault of either."""
    move = Move("switch", A, B, 2, named_at=100.0)
    nothing: dict[str, Any] = {"calls": [], "channels": [], "writes": [], "served": {}}
    nothing["records"] = RECORDS
    contents: dict[str, frozenset[int]] = {A: frozenset(), B: frozenset()}
    figures = take_moves([move], workers=1, ended=101.0, contents=contents, **nothing)
    assert len(find_move_faults(figures, on_engine=True)) == 2
    assert len(find_move_faults(figures, on_engine=False)) == 1


def test_the_topology_service_names_one_primary_at_a_time() -> None:
    """Its answer is a topology; a new primary is a new version, and it knows who was told when."""
    endpoints = [f"http://{A}", f"http://{B}"]
    service = TopologyService(endpoints)
    try:
        url = service.uri.replace("demo.global-cluster.localhost", "127.0.0.1")
        assert service.find_first_served(1) is None

        def fetch() -> Any:
            with urllib.request.urlopen(f"{url}/global-cluster/topology", timeout=10) as answer:
                return parse_topology(answer.read())

        assert fetch().primary.endpoint == endpoints[0]
        named_at = service.name_primary(endpoints[1])
        assert service.find_first_served(2) is None
        topology = fetch()
        assert (topology.version, topology.primary.endpoint) == (2, endpoints[1])
        told = service.find_first_served(2)
        assert told is not None
        assert told >= named_at
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{url}/other", timeout=10)
    finally:
        service.close()


def test_localhost_names_are_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name below .localhost, as text or bytes, and no other name."""
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **named: asked.append(host))
    resolve_localhost_names()
    for host in ("a.localhost", b"A.LOCALHOST", "x.localhost.", "localhost.example.com", None):
        socket.getaddrinfo(host, 80)
    assert asked == ["127.0.0.1"] * 3 + ["localhost.example.com", None]


def test_a_missing_http_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a failover needs it, and says which extra has it."""
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "httpx" else object()
    )
    assert command.find_obstacle() is None
    problem = command.find_obstacle(failover=True)
    assert problem is not None
    assert "httpx" in problem
    assert "global" in problem
