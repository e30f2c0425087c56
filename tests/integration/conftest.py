"""Fixtures of the integration tests: the engine as tests of the asyncio flavour see it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flavours import NAMES, Flavour, running
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


@pytest.fixture(params=NAMES)
def flavour(request: pytest.FixtureRequest) -> Iterator[Flavour]:
    """Clients of either flavour, for a test whose body is written once."""
    with running(request.param) as made:
        yield made


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
