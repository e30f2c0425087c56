"""Timeouts as users of pymilvus give them: at the client and with a call, in both flavours."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from typing import Any

import grpc
import numpy as np
import pytest
from pymilvus.exceptions import ErrorCode, MilvusException

from milvus_lifecycle.errors import ConfigError, LifecycleError
from tests.flavours import Program
from tests.network import BlackHole
from tests.observe import wait_until
from tests.servers import FakeMilvus

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.policy(connect_timeout=5.0, recovery_budget=5.0),
]

#: What pymilvus takes (stock, in at least one flavour), and what it would take but for an overflow.
TAKEN = [True, "5", np.float32(5), np.int64(5), Fraction(5), np.bool_(True), math.inf, 1e10, 1e300]
REFUSED = ["soon", math.nan, [], {}]


def ask(program: Program, uri: str, of_client: Any = None, of_call: Any = None) -> Any:
    """What a new client is answered, with a timeout of its own and one of its call."""
    client = program.new_client(uri, timeout=of_client)
    try:
        return client.list_collections(timeout=of_call)
    finally:
        client.close()


@pytest.mark.parametrize("border", ["of_client", "of_call"])
@pytest.mark.parametrize("timeout", TAKEN, ids=repr)
def test_what_pymilvus_takes(
    program: Program, server: FakeMilvus, border: str, timeout: Any
) -> None:
    """A call is served, whatever kind of number its timeout or its client's is."""
    assert ask(program, server.uri, **{border: timeout}) == ["demo"]


@pytest.mark.parametrize("border", ["of_client", "of_call"])
@pytest.mark.parametrize("timeout", REFUSED, ids=repr)
def test_what_is_no_timeout(
    program: Program, server: FakeMilvus, border: str, timeout: Any
) -> None:
    """A MilvusException with pymilvus's code says which value is wrong and what is accepted."""
    with pytest.raises(MilvusException, match=r"timeout=.* is not a number of seconds") as caught:
        ask(program, server.uri, **{border: timeout})
    assert caught.value.code == ErrorCode.UNEXPECTED_ERROR
    assert isinstance(caught.value, ConfigError)
    assert server.count("ShowCollections") == 0


@pytest.mark.parametrize("timeout", [0, 0.0, False, 1e-9, Fraction(0)], ids=repr)
def test_a_client_without_time(program: Program, server: FakeMilvus, timeout: Any) -> None:
    """It connects to a server that answers at once (polled for: this machine may be busy)."""

    def connects() -> bool:
        try:
            return bool(ask(program, server.uri, of_client=timeout) == ["demo"])
        except MilvusException as error:
            if isinstance(error, ConfigError):
                raise
            return False

    wait_until(connects, 20)


def test_a_client_without_time_does_not_wait(program: Program) -> None:
    """A server that says nothing is given 0.2 s (4 s are allowed), not `connect_timeout`, 10 s."""
    with BlackHole() as hole:
        began = time.monotonic()
        with pytest.raises(MilvusException, match="could not connect"):
            ask(program, hole.uri, of_client=0)
        assert time.monotonic() - began < 4.0


def test_a_call_without_time_is_for_grpc_to_judge(program: Program, server: FakeMilvus) -> None:
    """On a good connection it fails by gRPC's own deadline, and that makes nobody doubt.

    (Given as a fraction: pymilvus itself refuses a plain 0 in asyncio, without an RPC.)
    """
    server.hold("ShowCollections")
    with pytest.raises(grpc.RpcError) as caught:
        ask(program, server.uri, of_call=Fraction(0))
    assert not isinstance(caught.value, LifecycleError)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    program.close_all()
    assert program.saw("close", limit=20)
    assert "doubt" not in program.path()
