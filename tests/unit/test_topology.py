"""Topology: what a service may answer, and which version holds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_lifecycle.endpoints.topology import MAX_BYTES, Cluster, Topology, newer, parse_topology
from milvus_lifecycle.errors import TopologyError, TopologyReason
from tests.topology_service import answer, cluster


@pytest.mark.parametrize("encode", [lambda text: text, str.encode, json.loads])
def test_answer_of_the_issue(encode: Callable[[str], object]) -> None:
    """The documented answer is read, as bytes, text or decoded JSON."""
    text = (
        '{"code": 0, "data": {"version": "1", "clusters": [{"clusterId": "in01-x", '
        '"endpoint": "https://in01-x.example.com", "capability": 3}]}}'
    )
    primary = Cluster("in01-x", "https://in01-x.example.com", 3)
    assert parse_topology(encode(text)) == Topology(1, (primary,))
    assert parse_topology(encode(text)).primary == primary


def test_unknown_fields_are_ignored() -> None:
    """A newer service may say more, anywhere."""
    more = answer(clusters=[{**cluster(), "region": {"x": [1]}}], trace="x")
    more["data"]["etag"] = None
    assert parse_topology(more).primary.cluster_id == "in01-a"


def test_primary_is_the_writable_one() -> None:
    """Capability bit 2 makes the primary, whatever the other bits and the order are."""
    topology = parse_topology(
        answer(clusters=[cluster("r", capability=1), cluster("w", capability=6)])
    )
    assert topology.primary.cluster_id == "w"
    assert [entry.is_primary for entry in topology.clusters] == [False, True]


@pytest.mark.parametrize(("version", "number"), [("7", 7), (7, 7), ("007", 7), (0, 0)])
def test_version_is_a_number(version: Any, number: int) -> None:
    """Text and numbers are accepted as a version."""
    assert parse_topology(answer(version)).version == number


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "GARBAGE"),
        (b"<html>", "GARBAGE"),
        (b"\xff\xfe\xfa", "GARBAGE"),
        ("[" * 100_000, "GARBAGE"),
        ("9" * 5000, "GARBAGE"),
        (b" " * (MAX_BYTES + 1), "TOO_LARGE"),
        (None, "WRONG_TYPE"),
        ([], "WRONG_TYPE"),
        (b"7", "WRONG_TYPE"),
        ({}, "MISSING"),
        ({"code": 0}, "MISSING"),
        ({"code": 0, "data": None}, "WRONG_TYPE"),
        ({"code": 0, "data": {}}, "MISSING"),
        ({"code": "0", "data": {}}, "WRONG_TYPE"),
        ({"code": False, "data": {}}, "WRONG_TYPE"),
        ({"code": None}, "WRONG_TYPE"),
        ({"code": 7, "message": "quota"}, "REFUSED"),
        ({"code": 10**5000}, "REFUSED"),
        ({"code": 7, "message": {"a": 1}}, "REFUSED"),
        (answer(None), "WRONG_TYPE"),
        (answer(True), "WRONG_TYPE"),
        (answer(1.0), "WRONG_TYPE"),
        (answer(float("nan")), "WRONG_TYPE"),
        (answer(-1), "WRONG_TYPE"),
        (answer("-1"), "WRONG_TYPE"),
        (answer("v1"), "WRONG_TYPE"),
        (answer(""), "WRONG_TYPE"),
        (answer("\u0661"), "WRONG_TYPE"),
        (answer("9" * 5000), "WRONG_TYPE"),
        (answer(10**5000), "WRONG_TYPE"),
        ({"code": 0, "data": {"version": "1"}}, "MISSING"),
        (answer(clusters={}), "WRONG_TYPE"),
        (answer(clusters=[]), "EMPTY"),
        (answer(clusters=[7]), "WRONG_TYPE"),
        (answer(clusters=[{}]), "MISSING"),
        (answer(clusters=[{"clusterId": "a"}]), "MISSING"),
        (answer(clusters=[{"clusterId": "a", "endpoint": "h"}]), "MISSING"),
        (answer(clusters=[cluster(name="")]), "WRONG_TYPE"),
        (answer(clusters=[{**cluster(), "clusterId": 7}]), "WRONG_TYPE"),
        (answer(clusters=[{**cluster(), "endpoint": 7}]), "WRONG_TYPE"),
        (answer(clusters=[cluster(endpoint="")]), "WRONG_TYPE"),
        (answer(clusters=[cluster(endpoint="ftp://h")]), "WRONG_TYPE"),
        (answer(clusters=[cluster(endpoint="https://u:s3cr3t@h")]), "WRONG_TYPE"),
        (answer(clusters=[cluster(capability="3")]), "WRONG_TYPE"),
        (answer(clusters=[cluster(capability=True)]), "WRONG_TYPE"),
        (answer(clusters=[cluster(capability=-1)]), "WRONG_TYPE"),
        (answer(clusters=[cluster(capability=1)]), "NO_PRIMARY"),
        (answer(clusters=[cluster(capability=0)]), "NO_PRIMARY"),
        (answer(clusters=[cluster("a"), cluster("b")]), "TWO_PRIMARIES"),
    ],
)
def test_unusable_answers(payload: object, reason: str) -> None:
    """Each way in which an answer can be wrong has a reason and a clear message."""
    with pytest.raises(TopologyError) as caught:
        parse_topology(payload)
    assert caught.value.reason is TopologyReason[reason]
    assert "s3cr3t" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_refusal_carries_the_message() -> None:
    """What the service says reaches the reader, in one line, shortened and redacted."""
    payload = {"code": 1100, "message": "no\nsuch cluster, token=s3cr3t " + "x" * 10_000}
    with pytest.raises(
        TopologyError, match=r"no such cluster, token=\*\*\* x+ \(code 1100\)"
    ) as caught:
        parse_topology(payload)
    assert len(str(caught.value)) < 600


def test_topology_cannot_be_made_wrongly() -> None:
    """No Topology object without exactly one primary exists, wherever it is made."""
    secondary, primary = Cluster("a", "a", 1), Cluster("b", "b", 2)
    for clusters in ((), (secondary,), (primary, primary)):
        with pytest.raises(TopologyError):
            Topology(1, clusters)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=15,
)


nearly_right = st.fixed_dictionaries(
    {},
    optional={
        "code": st.sampled_from([0, 0, 0, 1, "0", None]),
        "message": json_values,
        "data": json_values
        | st.fixed_dictionaries(
            {},
            optional={
                "version": json_values | st.integers(0, 9) | st.integers(0, 9).map(str),
                "clusters": json_values
                | st.lists(
                    st.fixed_dictionaries(
                        {},
                        optional={
                            "clusterId": json_values | st.just("a"),
                            "endpoint": json_values
                            | st.sampled_from(["a:1", "https://b", "[::1]"]),
                            "capability": json_values | st.integers(0, 4),
                        },
                    ),
                    max_size=4,
                ),
            },
        ),
    },
)


@given(json_values | nearly_right)
def test_parser_raises_nothing_else(payload: object) -> None:
    """Any JSON is a topology with one primary, or a TopologyError."""
    for form in (payload, json.dumps(payload), json.dumps(payload).encode()):
        try:
            topology = parse_topology(form)
        except TopologyError:
            continue
        assert topology.primary in topology.clusters
        assert topology.version >= 0


@given(st.binary(max_size=200))
def test_parser_takes_any_bytes(payload: bytes) -> None:
    """Bytes that are not even text are a TopologyError."""
    with contextlib.suppress(TopologyError):
        parse_topology(payload)


def topology(version: int, primary: str = "a") -> Topology:
    return Topology(version, (Cluster(primary, f"{primary}:1", 3),))


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("ab")), min_size=1))
def test_version_only_grows(answers: list[tuple[int, str]]) -> None:
    """Whatever comes in whatever order, the version that holds never goes back."""
    current: Topology | None = None
    for version, primary in answers:
        candidate = topology(version, primary)
        if current is not None and version < current.version:
            with pytest.raises(TopologyError, match="older than version") as caught:
                newer(current, candidate)
            assert caught.value.reason is TopologyReason.OUTDATED
            continue
        chosen = newer(current, candidate)
        assert chosen is (candidate if current is None or version > current.version else current)
        current = chosen


def test_every_reason_has_a_code() -> None:
    """Each reason has an audit code of its own."""
    assert {TopologyError(reason).audit_code for reason in TopologyReason} == {
        f"TOPOLOGY_{reason.name}" for reason in TopologyReason
    }
