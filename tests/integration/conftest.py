"""Fixtures of the integration tests: the engine as tests of the asyncio flavour see it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.looping import AsyncEngine


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
