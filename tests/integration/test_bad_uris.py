"""Bad URIs, and `.db` paths without Milvus Lite: errors as pymilvus's users know them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pymilvus.exceptions import ConnectionConfigException, ErrorCode, MilvusException

import milvus_lifecycle as ml
from milvus_lifecycle.errors import ConfigError, LoopMismatch
from tests.asking import ASKING
from tests.conftest import Engine
from tests.processes import REPOSITORY

pytestmark = pytest.mark.timeout(60)


def heard(side: str, folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.uri_errors", side, str(folder)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_errors_are_those_of_pymilvus(tmp_path: Path) -> None:
    """Class, code and phrase are what pymilvus itself raises, in both flavours; nothing is pooled.

    For what it calls illegal, a folder that is missing, and a path without Milvus Lite to serve it.
    """
    theirs, ours = heard("stock", tmp_path), heard("engine", tmp_path)
    assert ours.pop("left behind") == 0
    assert all(kind == "config" and code == 1 for kind, code, _ in ours.values()), ours
    for case, (_, _, phrases) in theirs.items():
        assert set(phrases) <= set(ours[case][2]), (case, ours[case])


@pytest.mark.parametrize("flavour", ASKING)
def test_a_broken_milvus_lite(
    engine: Engine, flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is installed and cannot be imported says what to install, and leaves nothing."""
    monkeypatch.setitem(sys.modules, "milvus_lite.server_manager", None)
    with pytest.raises(ConnectionConfigException, match="pip install") as caught:
        ASKING[flavour](str(tmp_path / "demo.db"))
    assert caught.value.code == ErrorCode.UNEXPECTED_ERROR
    assert engine.stats()["total_connections"] == 0


def test_errors_of_direct_use() -> None:
    """Whoever uses the engine's classes without `install` is raised MilvusExceptions too."""
    with pytest.raises(ConnectionConfigException, match="is illegal") as refused:
        ml.ConnectionConfig.from_uri("ftp://root:pa55word@h")
    assert refused.value.code == ErrorCode.UNEXPECTED_ERROR
    assert isinstance(refused.value, ConfigError)
    assert refused.value.field == "uri"
    assert "pa55word" not in f"{refused.value!r}{refused.value}{refused.value.__context__!r}"
    with pytest.raises(MilvusException, match="no event loop") as lost:
        ml.AsyncConnectionManager.get_instance()
    assert isinstance(lost.value, LoopMismatch)


_ALONE = """
import sys
sys.modules["pymilvus"] = None
import milvus_lifecycle as ml
def parse():
    ml.ConnectionConfig.from_uri("ftp://h")
for work in (parse, ml.AsyncConnectionManager.get_instance):
    try:
        work()
    except Exception as error:
        print(type(error).__name__)
"""


def test_errors_without_pymilvus() -> None:
    """Where pymilvus is not installed, the same mistakes raise the engine's own errors."""
    done = subprocess.run(
        [sys.executable, "-c", _ALONE], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["ConfigError", "LoopMismatch"]
