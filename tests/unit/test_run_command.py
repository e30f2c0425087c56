"""`python -m milvus_lifecycle run app.py`: the program is as it was, and on the engine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

_PROGRAM = """
import sys
from pymilvus.client.connection_manager import ConnectionManager
print(__name__, sys.argv[1:], type(ConnectionManager.get_instance()).__module__)
sys.exit(7)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "milvus_lifecycle", "run", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("how", [("app.py",), ("-m", "app")], ids=["path", "module"])
def test_a_program_runs_on_the_engine(tmp_path: Path, how: tuple[str, ...]) -> None:
    """As __main__, with its own arguments and exit code, and its manager is the engine's."""
    (tmp_path / "app.py").write_text(_PROGRAM)
    done = run(tmp_path, *how, "--fast", "x")
    assert done.stdout.strip() == "__main__ ['--fast', 'x'] milvus_lifecycle.manager", done
    assert done.returncode == 7


def test_a_program_that_ends_by_itself(tmp_path: Path) -> None:
    """Its end is a success; the audit log is where it was asked for."""
    (tmp_path / "app.py").write_text("print('done')")
    done = run(tmp_path, "--audit", "audit.jsonl", "app.py")
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("nowhere.py",), "no program"), (("--audit", "no/such/folder/a.jsonl", "app.py"), "audit")],
)
def test_what_cannot_be_run_is_said_in_a_line(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Exit code 2, no traceback."""
    done = run(tmp_path, *arguments)
    assert done.returncode == 2, done
    assert said in done.stderr
    assert "Traceback" not in done.stderr
