"""Fixtures of the integration tests: programs on the engine, and a global cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import milvus_lifecycle as ml
from tests.flavours import FLAVOURS, Flavour, Program
from tests.global_clusters import GlobalCluster
from tests.looping import AsyncEngine
from tests.servers import FakeMilvus


@pytest.fixture
def installed(request: pytest.FixtureRequest) -> Iterator[None]:
    """The engine, installed with the policy of the test's `policy` marker."""
    marker = request.node.get_closest_marker("policy")
    ml.install(policy=ml.LifecyclePolicy(**(marker.kwargs if marker else {})))
    try:
        yield
    finally:
        ml.uninstall()


@pytest.fixture
def aio(installed: None) -> AsyncEngine:
    """The engine as tests that are a coroutine themselves (`in_loop`) see it."""
    return AsyncEngine()


@pytest.fixture(params=FLAVOURS)
def program(request: pytest.FixtureRequest, installed: None) -> Iterator[Program]:
    """A program of each flavour on the engine."""
    running = Program(request.param)
    yield running
    running.end()
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
