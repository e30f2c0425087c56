"""Fixtures of the integration tests: the engine as tests of the asyncio flavour see it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flavours import FLAVOURS, Flavour, Program
from tests.global_clusters import GlobalCluster
from tests.looping import AsyncEngine
from tests.servers import FakeMilvus


@pytest.fixture
def aio(request: pytest.FixtureRequest) -> Iterator[AsyncEngine]:
    """The engine, installed with the policy of the test's `policy` marker; for `in_loop` tests."""
    import milvus_lifecycle as ml

    marker = request.node.get_closest_marker("policy")
    ml.install(policy=ml.LifecyclePolicy(**(marker.kwargs if marker else {})))
    try:
        yield AsyncEngine()
    finally:
        ml.uninstall()


@pytest.fixture(params=FLAVOURS)
def program(request: pytest.FixtureRequest) -> Iterator[Program]:
    """A program of each flavour on the engine, with the policy of the test's `policy` marker."""
    import milvus_lifecycle as ml

    marker = request.node.get_closest_marker("policy")
    ml.install(policy=ml.LifecyclePolicy(**(marker.kwargs if marker else {})))
    running = Program(request.param)
    try:
        yield running
    finally:
        running.end()
        ml.uninstall()
    assert running.complaints == []


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    """Clients of each flavour, on pymilvus as it is or as the test installs the engine."""
    clients = Flavour(request.param)
    try:
        yield clients
    finally:
        clients.end()


@pytest.fixture
def old() -> Iterator[FakeMilvus]:
    """The first primary of `cluster`; it lists the collection "old"."""
    with FakeMilvus(collections=["old"]) as server:
        yield server


@pytest.fixture
def new() -> Iterator[FakeMilvus]:
    """The other server of `cluster`; it lists the collection "new"."""
    with FakeMilvus(collections=["new"]) as server:
        yield server


@pytest.fixture
def cluster(old: FakeMilvus, new: FakeMilvus) -> Iterator[GlobalCluster]:
    """A global cluster of `old`, its primary, and `new`."""
    with GlobalCluster(old, new) as service:
        yield service
