"""Timeouts as users of pymilvus give them: at the client and with a call, in both flavours."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from pymilvus.exceptions import ErrorCode, MilvusException

import milvus_lifecycle as ml
from milvus_lifecycle.errors import ConfigError, LifecycleError
from tests.asking import ASKING, Ask
from tests.network import BlackHole
from tests.observe import wait_until
from tests.servers import FakeMilvus

pytestmark = pytest.mark.timeout(60)

#: What pymilvus takes (stock, in at least one flavour), and what it would take but for an overflow.
TAKEN = [True, "5", np.float32(5), np.int64(5), Fraction(5), np.bool_(True), math.inf, 1e10, 1e300]
REFUSED = ["soon", math.nan, [], {}]


def triggers(audit: Path) -> list[str]:
    """The triggers on record, in order."""
    lines = audit.read_text().splitlines()
    return [record["trigger"] for record in map(json.loads, lines) if "trigger" in record]


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture(params=ASKING)
def ask(request: pytest.FixtureRequest, audit: Path) -> Iterator[Ask]:
    """The engine, installed, and how its clients are asked in one of its flavours."""
    policy = ml.LifecyclePolicy(connect_timeout=5.0, recovery_budget=5.0)
    ml.install(policy=policy, audit=str(audit))
    try:
        yield ASKING[request.param]
    finally:
        ml.uninstall()


@pytest.mark.parametrize("border", ["of_client", "of_call"])
@pytest.mark.parametrize("timeout", TAKEN, ids=repr)
def test_what_pymilvus_takes(ask: Ask, server: FakeMilvus, border: str, timeout: Any) -> None:
    """A call is served, whatever kind of number its timeout or its client's is."""
    assert ask(server.uri, **{border: timeout}) == ["demo"]


@pytest.mark.parametrize("border", ["of_client", "of_call"])
@pytest.mark.parametrize("timeout", REFUSED, ids=repr)
def test_what_is_no_timeout(ask: Ask, server: FakeMilvus, border: str, timeout: Any) -> None:
    """A MilvusException with pymilvus's code says which value is wrong and what is accepted."""
    with pytest.raises(MilvusException, match=r"timeout=.* is not a number of seconds") as caught:
        ask(server.uri, **{border: timeout})
    assert isinstance(caught.value, ConfigError)
    assert caught.value.code == ErrorCode.UNEXPECTED_ERROR
    assert server.count("ShowCollections") == 0


@pytest.mark.parametrize("timeout", [0, 0.0, False, 1e-9, Fraction(0)], ids=repr)
def test_a_client_without_time(ask: Ask, server: FakeMilvus, timeout: Any) -> None:
    """It connects to a server that answers at once (polled for: this machine may be busy)."""

    def connects() -> bool:
        try:
            return bool(ask(server.uri, of_client=timeout) == ["demo"])
        except MilvusException as error:
            if isinstance(error, ConfigError):
                raise
            return False

    assert wait_until(connects, 20)


def test_a_client_without_time_does_not_wait(ask: Ask) -> None:
    """A server that says nothing is given 0.2 s, not `connect_timeout`."""
    with BlackHole() as hole:
        began = time.monotonic()
        with pytest.raises(MilvusException, match="could not connect"):
            ask(hole.uri, of_client=0)
        assert time.monotonic() - began < 4.0


def test_a_call_without_time_is_for_grpc_to_judge(
    ask: Ask, server: FakeMilvus, audit: Path
) -> None:
    """On a good connection it fails by gRPC's own deadline, and that makes nobody doubt.

    (Given as a fraction: pymilvus itself refuses a plain 0 in asyncio, without an RPC.)
    """
    server.hold("ShowCollections")
    with pytest.raises(grpc.RpcError) as caught:
        ask(server.uri, of_call=Fraction(0))
    assert not isinstance(caught.value, LifecycleError)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    ml.uninstall()
    assert wait_until(lambda: "close" in triggers(audit), 20)
    assert "doubt" not in triggers(audit)
