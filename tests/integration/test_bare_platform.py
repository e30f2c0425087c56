"""Platforms that lack what Linux has: the engine and its audit work there all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.mark.parametrize("flavour", ["threads", "asyncio"])
def test_a_platform_without_fork_and_posix(flavour: str, tmp_path: Path) -> None:
    """Every module is importable; calls are served and ride out an outage; all is on record.

    Without fork, POSIX's signals and files, and Unix sockets; locks that cannot wait for a year;
    output in a code page without arrows.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.bare_platform", flavour, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        timeout=100,
        check=False,
    )
    output = done.stdout.decode("cp1252")
    assert (done.returncode, output.splitlines()[-1:]) == (0, ["done"]), done.stderr.decode()
    assert b"Exception in thread" not in done.stderr, done.stderr.decode()
    lines = (tmp_path / "audit.jsonl").read_bytes().splitlines()
    triggers = [json.loads(line).get("trigger") for line in lines]
    assert "probe_passed" in triggers
    assert "recovered" in triggers
