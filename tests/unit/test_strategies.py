"""Which strategy a configuration gets, and what each of them says without I/O."""

from __future__ import annotations

import pytest

from milvus_lifecycle import (
    ConnectionConfig,
    GlobalStrategy,
    LocalStrategy,
    RegularStrategy,
)
from milvus_lifecycle.engine import default_strategy
from milvus_lifecycle.local import LocalServer
from tests.cores import Core


@pytest.mark.parametrize(
    ("uri", "strategy"),
    [
        ("http://home:19530", RegularStrategy),
        ("https://x.global-cluster.example.com", GlobalStrategy),
        ("./milvus.db", LocalStrategy),
    ],
)
def test_the_configuration_decides(uri: str, strategy: type) -> None:
    """A host of a global cluster, a path and everything else each have their own."""
    config = ConnectionConfig.from_uri(uri, token="root:Milvus")
    assert type(default_strategy(config)) is strategy


def test_a_local_path_is_located_by_its_server() -> None:
    """The strategy of a path has the server of that path found, and nothing else decides."""
    config = ConnectionConfig.from_uri("./milvus.db")
    locator = LocalStrategy(config).locator(Core().connection)
    assert isinstance(locator, LocalServer)
    assert locator.path == config.address
