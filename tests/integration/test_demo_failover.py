"""`milvus-lifecycle demo --failover` as a user runs it: two real servers, one really killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_demo import LIMIT, assert_nothing_left, read_until, run_demo

pytest.importorskip("milvus_lite")
pytest.importorskip("rich")
pytest.importorskip("httpx")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    """The folder for the demo's temporary files."""
    folder = tmp_path / "demo"
    folder.mkdir()
    return folder


def assert_followed(run: dict[str, Any], rounds: int) -> None:
    """No failed call, every move followed in time (times ten), every write where it belongs."""
    assert run["faults"] == []
    assert run["failed_calls"] == run["unended_calls"] == 0
    assert run["calls"] > 100
    assert run["manager"].startswith("milvus_lifecycle")
    assert [move["kind"] for move in run["moves"]] == ["switch", "death"] * rounds
    for move in run["moves"]:
        assert move["failed_calls"] == 0
        # The promise is 1 s, for both: a test allows ten times that.
        assert 0 <= move["after_refresh_s"] < 10.0
        if move["kind"] == "death":
            assert 0 <= move["first_good_s"] < 10.0
            assert move["late_writes"] == 0
        assert move["channels"] >= 1
    opened = run["channels_at_start"] + sum(move["channels"] for move in run["moves"])
    assert opened == run["channels"]
    placement = run["placement"]
    assert placement["writes"] > 30
    assert placement["lost"] == placement["misplaced"] == 0
    assert all(count > 0 for count in placement["by_server"].values())
    assert {"reroute", "fail", "recovered"} <= set(run["transitions_by_trigger"])


@pytest.mark.parametrize("flavour", [[], ["--asyncio"]], ids=["threads", "asyncio"])
def test_the_program_follows_the_primary(tmp: Path, tmp_path: Path, flavour: list[str]) -> None:
    """Two rounds of a planned switch and a death: exit code 0, and the figures say why."""
    figures = tmp_path / "figures.json"
    options = ["--failover", "--outages", "0.5,1", "--threads", "4", "--json", str(figures)]
    with run_demo(tmp, *options, *flavour) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    content = json.loads(figures.read_text())
    assert content["options"]["failover"] is True
    assert_followed(content["runs"][0], 2)
    assert "is where it belongs" in said
    assert_nothing_left(tmp)


def test_pymilvus_stays_where_it_was(tmp: Path, tmp_path: Path) -> None:
    """With --compare: pymilvus goes on writing to the old primary, and the table shows it."""
    figures = tmp_path / "figures.json"
    options = ["--failover", "--outages", "0.5", "--threads", "2", "--compare"]
    with run_demo(tmp, *options, "--json", str(figures)) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    engine, stock = json.loads(figures.read_text())["runs"]
    assert_followed(engine, 1)
    assert stock["manager"].startswith("pymilvus")
    assert stock["moves"][0]["moved_s"] is None
    assert stock["moves"][0]["refreshed_s"] is not None
    assert stock["moves"][0]["late_writes"] > engine["moves"][0]["late_writes"]
    assert stock["placement"]["misplaced"] is None
    assert_nothing_left(tmp)


@pytest.mark.parametrize("marker", ["listens on", "planned switch", "killed"])
def test_an_interrupted_failover_leaves_nothing(tmp: Path, marker: str) -> None:
    """Ctrl-C at any stage: no process and no file is left, the exit code says why."""
    with run_demo(tmp, "--failover", "--threads", "2") as process:
        read_until(process, marker)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGINT
    assert "interrupted" in said
    assert "Traceback" not in said
    assert_nothing_left(tmp)
