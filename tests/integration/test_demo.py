"""`milvus-lifecycle demo` as a user runs it: real servers, really killed, all in processes."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from milvus_lifecycle.cli import main

pytest.importorskip("milvus_lite")
pytest.importorskip("rich")
pytest.importorskip("httpx")

# Everything the demo waits for has a limit of its own; this one is only for a demo that hangs.
LIMIT = 180.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@contextmanager
def run_demo(tmp: Path, *options: str, path: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, with its temporary files below `tmp`."""
    environment = {**os.environ, "TMPDIR": str(tmp)}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(path), *filter(None, [environment.get("PYTHONPATH")])]
        )
    process = subprocess.Popen(
        [sys.executable, "-m", "milvus_lifecycle", "demo", *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run_to_the_end(tmp: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """Run the demo, which must be a success and leave nothing behind: (output, figures)."""
    figures = tmp.parent / "figures.json"
    with run_demo(tmp, *options, "--json", str(figures)) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    assert "\x1b" not in said
    assert_nothing_left(tmp)
    return said, json.loads(figures.read_text())


def read_until(process: subprocess.Popen[str], marker: str) -> str:
    """Read the demo's output until a line with `marker`."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if marker in line:
            return said
    pytest.fail(f"{marker!r} never came:\n{said}")


def list_left_over(tmp: Path) -> list[str]:
    """Processes and files that the demo left behind; its processes have `tmp` in their
    environment."""
    left = [str(path) for path in tmp.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(tmp).encode() in (process / "environ").read_bytes():
                left.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return left


def assert_nothing_left(tmp: Path) -> None:
    """A killed process may need a moment until the kernel has taken it away."""
    deadline = time.monotonic() + 10
    while left := list_left_over(tmp):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def assert_unharmed(run: dict[str, Any]) -> None:
    """The engine's run: no failed call and no other fault."""
    assert run["faults"] == []
    in_all = run["sections"]["in all"]
    assert in_all["failed_calls"] == in_all["unended_calls"] == 0
    assert in_all["calls"] > 50
    assert run["transitions_by_trigger"], "pymilvus's own manager makes no records"


def assert_rode_through(run: dict[str, Any], workers: int) -> None:
    """Few channels in an outage, a quick return (times ten, for a busy machine)."""
    assert_unharmed(run)
    outage = run["sections"]["outage 1"]
    assert outage["workers_in_flight"] == workers
    assert outage["down_s"] >= 0.3
    assert 1 <= outage["channels"] <= 12
    assert outage["slowest_s"] <= 5.0
    assert {"fail", "recovered"} <= set(run["transitions_by_trigger"])


def assert_followed(run: dict[str, Any], rounds: int) -> None:
    """Every move followed in time (times ten), every write where it belongs."""
    assert_unharmed(run)
    in_all, *moves, writes = run["sections"].values()
    assert len(moves) == 2 * rounds
    for move in moves:
        assert move["failed_calls"] == 0
        assert 0 <= move["after_told_s"] < 10.0
        assert 0 <= move["first_good_s"] < 10.0
        assert move["channels"] >= 1
    assert (
        in_all["channels_at_start"] + sum(move["channels"] for move in moves) == in_all["channels"]
    )
    assert writes["writes"] > 30
    assert writes["lost"] == writes["misplaced"] == 0
    assert all(count > 0 for count in writes["by_server"].values())
    assert {"reroute", "fail", "recovered"} <= set(run["transitions_by_trigger"])


@pytest.fixture
def tmp(tmp_path: Path) -> Path:
    """The folder for the demo's temporary files."""
    folder = tmp_path / "demo"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("flavour", [[], ["--asyncio"]], ids=["threads", "asyncio"])
def test_the_program_rides_through(tmp: Path, flavour: list[str]) -> None:
    """MilvusClient and AsyncMilvusClient get through an outage without a failed call. What the
    engine said of it is kept, if that is asked for, and the next command is named."""
    audit, report = tmp.parent / "the log.jsonl", tmp.parent / "report.html"
    keep = ["--report", str(report)] if flavour else ["--audit", str(audit)]
    said, figures = run_to_the_end(tmp, "--outages", "0.3", "--threads", "4", *flavour, *keep)
    assert figures["ok"] is True
    assert_rode_through(figures["runs"][0], 4)
    assert audit.exists() != report.exists()
    if flavour:
        assert "recovered" in report.read_text()
        assert f"open {report} in a browser" in said
        return
    (told,) = (line for line in said.splitlines() if " audit stats " in line)
    with redirect_stdout(io.StringIO()):
        assert main(shlex.split(told)[1:]) == 0
    recovered = figures["runs"][0]["transitions_by_trigger"]["recovered"]
    assert audit.read_text().count('"trigger":"recovered"') == recovered


@pytest.mark.parametrize(
    ("lengths", "flavour"), [("0.3,0.3", []), ("0.3", ["--asyncio"])], ids=["threads", "asyncio"]
)
def test_the_program_follows_the_primary(tmp: Path, lengths: str, flavour: list[str]) -> None:
    """A planned switch and a death, and with threads once more: a server that has come back
    becomes the primary again."""
    options = ["--failover", "--outages", lengths, "--threads", "4"]
    said, figures = run_to_the_end(tmp, *options, *flavour)
    assert figures["options"]["failover"] is True
    assert_followed(figures["runs"][0], len(lengths.split(",")))
    assert "is where it belongs" in said


@pytest.mark.stock
def test_pymilvus_fails_where_the_engine_rides_through(tmp: Path) -> None:
    """With --compare: no failed call on the engine, failed calls on pymilvus, in one table."""
    said, figures = run_to_the_end(tmp, "--outages", "0.3", "--threads", "4", "--compare")
    engine, stock = figures["runs"]
    assert_rode_through(engine, 4)
    failed = stock["sections"]["in all"]["failed_calls"]
    assert failed > 0
    assert stock["sections"]["outage 1"]["workers_in_flight"] == 4
    assert stock["transitions_by_trigger"] == {}
    assert f"{failed:,}" in said


@pytest.mark.stock
def test_pymilvus_stays_where_it_was(tmp: Path) -> None:
    """With --compare: pymilvus goes on writing to the old primary, and the table shows it."""
    options = ["--failover", "--outages", "0.3", "--threads", "2", "--compare"]
    engine, stock = run_to_the_end(tmp, *options)[1]["runs"]
    assert_followed(engine, 1)
    engine_switch, stock_switch = (run["sections"]["switch 1"] for run in (engine, stock))
    assert stock_switch["moved_s"] is None
    assert stock_switch["told_s"] is not None
    assert stock_switch["late_writes"] > engine_switch["late_writes"]
    assert stock["sections"]["writes"]["misplaced"] is None


@pytest.mark.parametrize(
    ("options", "marker", "signum"),
    [
        ([], "listens on", signal.SIGTERM),
        ([], "insert, search and list", signal.SIGINT),
        ([], "killed", signal.SIGINT),
        (["--failover"], "killed", signal.SIGTERM),
    ],
)
def test_an_interrupted_demo_leaves_nothing(
    tmp: Path, options: list[str], marker: str, signum: signal.Signals
) -> None:
    """Ctrl-C or SIGTERM at any stage: no process and no file is left, the exit code says why."""
    with run_demo(tmp, "--threads", "2", *options) as process:
        read_until(process, marker)
        process.send_signal(signum)
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signum
    assert "interrupted" in said
    assert "Traceback" not in said
    assert_nothing_left(tmp)


def test_a_server_that_does_not_start_is_an_error(tmp: Path, tmp_path: Path) -> None:
    """Exit code 2, what the server wrote, and nothing left behind."""
    fake = tmp_path / "path" / "milvus_lite"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("")
    (fake / "__main__.py").write_text("raise SystemExit('the disk is full')\n")
    with run_demo(tmp, path=fake.parent) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 2
    assert "ended by itself" in said
    assert "the disk is full" in said
    assert "Traceback" not in said
    assert_nothing_left(tmp)


def test_a_server_that_dies_by_itself_is_an_error(tmp: Path) -> None:
    """A server that the demo did not kill makes the run worthless, and it says so: exit code 2."""
    with run_demo(tmp, "--threads", "2") as process:
        read_until(process, "insert, search and list")
        for candidate in Path("/proc").glob("[0-9]*"):
            try:
                line = (candidate / "cmdline").read_text()
            except OSError:
                continue
            if "milvus_lite" in line and str(tmp) in line:
                os.kill(int(candidate.name), signal.SIGKILL)
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 2
    assert "ended by itself" in said
    assert_nothing_left(tmp)


def test_a_program_that_dies_is_an_error(tmp: Path, tmp_path: Path) -> None:
    """A client program that cannot run ends the demo with exit code 2 and its last words."""
    fake = tmp_path / "path" / "sitecustomize.py"
    fake.parent.mkdir()
    fake.write_text(
        "import os, sys\n"
        "if 'milvus_lifecycle.demo.workload' in sys.orig_argv:\n"
        "    os.write(2, b'no memory')\n"
        "    os._exit(3)\n"
    )
    with run_demo(tmp, "--threads", "2", path=fake.parent) as process:
        said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 2
    assert "client program" in said
    assert "no memory" in said
    assert "Traceback" not in said
    assert_nothing_left(tmp)
