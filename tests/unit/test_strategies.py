"""Which strategy a configuration gets, and what each of them says without I/O."""

from __future__ import annotations

import gc
import re
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from milvus_lifecycle import (
    ConnectionConfig,
    GlobalStrategy,
    LocalStrategy,
    RegularStrategy,
)
from milvus_lifecycle.endpoints.choose import default_strategy
from tests.cores import CONFIG, Core
from tests.observe import Client
from tests.rigs import Rig

PAGE = (Path(__file__).parents[2] / "docs" / "integration.md").read_text(encoding="utf-8")


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
    locator = LocalStrategy(config).locator(Core().life)
    assert isinstance(locator, LocalStrategy)
    assert locator.config is config


def test_what_a_strategy_is_given_can_be_kept_weakly() -> None:
    """A locator that serves many connections keeps what belongs to each as long as it lives."""
    core = Core()
    life = weakref.ref(core.life)
    assert life() is core.life
    del core
    gc.collect()
    assert life() is None


def test_the_documented_strategy_does_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's example runs as it stands; its channels rotate at eleven, and not at nine."""
    (example,) = re.findall(r"```python\n([^`]+class [^`]+)```", PAGE)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["manager"].get_stats()["total_connections"] == 0
    hour = 9
    monkeypatch.setattr(time, "localtime", lambda: time.struct_time((2026, 1, 1, hour, *[0] * 5)))
    strategy, client = names["QuietHours"](CONFIG), Client()
    with Rig(strategy, max_age=100.0, idle_threshold=None, backoff_jitter=0.0) as rig:
        rig.connected(client)
        rig.clock.advance(1_000)
        rig.manager._pool.maintenance.run_due()
        assert "recycle" not in rig.triggers()
        hour = 11
        rig.clock.advance(100)
        rig.sees(lambda: "recovered" in rig.triggers(), "its channel is not replaced")
        assert "recycle" in rig.triggers()
