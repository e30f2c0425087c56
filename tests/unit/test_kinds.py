"""What is left out of a plain run is not left out of everything, nor skipped without a word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY


def test_what_a_plain_run_leaves_out_runs_in_ci() -> None:
    """`.ci/run` has every kind that plain `pytest` has not, but for long faults and the soak."""
    script = REPOSITORY / ".ci" / "run"
    if not script.exists():
        pytest.skip("the scripts of the repository are not here")
    settings = (REPOSITORY / "pyproject.toml").read_text()
    left_out = re.search(r"^addopts = .* -m 'not \((.*)\)'", settings, re.MULTILINE)
    run = re.findall(r'^pytest -m "([^"]*)"', script.read_text(), re.MULTILINE)
    assert left_out is not None
    assert set(left_out[1].split(" or ")) == {*" or ".join(run).split(" or "), "long", "soak"}


_SKIPS = """
import pytest

@pytest.mark.parametrize("reason", ["no chromium: apt-get it", "no wish", "could not import"])
def test_something(reason):
    pytest.skip(reason)

@pytest.mark.xfail(reason="it is broken")
def test_broken():
    assert False
"""


@pytest.mark.slow
def test_a_skip_in_ci_has_a_reason_that_is_listed(tmp_path: Path) -> None:
    """Any other fails there: of a test, of a whole module, of one that is expected to fail."""
    (tmp_path / "test_skips.py").write_text(_SKIPS)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('nonsense')")
    (tmp_path / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", str(tmp_path)]
    done = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"],
        cwd=REPOSITORY,
        env={**os.environ, "MILVUS_LIFECYCLE_CI": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "3 failed, 1 skipped, 1 error in" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1
