"""Runs a body in a process of its own: for faults that would hurt the process of the tests.

A body is a function `body(flavour, folder) -> str` that asserts and returns its figures. By hand:
`python -m tests.faults.alone tests.faults.bodies:forks_under_load threads FOLDER`.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.leftovers import child_processes, warm_up
from tests.observe import came_true
from tests.processes import REPOSITORY

Body = Callable[[Any, Path], str]

_LIMIT = 150.0


def run_alone(
    body: Body, flavour: str, folder: Path, limit: float = _LIMIT, environment: Any = None
) -> str:
    """The figures of a body that ran in a process of its own; an AssertionError with its output."""
    name = f"{body.__module__}:{body.__name__}"
    arguments = [name, flavour, str(folder)]
    before = len(child_processes())
    with tempfile.TemporaryFile() as output, tempfile.TemporaryDirectory() as beside:
        # Not read from the output: gRPC logs into the midst of any line of it.
        figures = Path(beside, "figures")
        process = subprocess.run(
            [sys.executable, "-m", "tests.faults.alone", *arguments, str(figures), str(limit)],
            cwd=REPOSITORY,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=limit + 30,
            check=False,
        )
        output.seek(0)
        text = output.read().decode(errors="replace")
        assert process.returncode == 0, f"{name}: exit code {process.returncode}\n{text[-5000:]}"
        assert figures.exists(), f"{name}: no figures\n{text[-5000:]}"
        assert came_true(lambda: len(child_processes()) <= before, 10), "a process is left"
        return figures.read_text()


def main(
    name: str, flavour: str, folder: str, figures_file: str | None = None, limit: str | None = None
) -> None:
    """Run one body; print its figures, and write them to the file if one is given."""
    # Where it hangs is worth more than that it hangs.
    if limit is not None:
        faulthandler.dump_traceback_later(float(limit), exit=True)
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    warm_up()
    module, _, function = name.partition(":")
    body: Body = getattr(importlib.import_module(module), function)
    try:
        figures = body(flavour, Path(folder))
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    print(f"\n{figures}", flush=True)
    if figures_file is not None:
        Path(figures_file).write_text(figures)


if __name__ == "__main__":
    main(*sys.argv[1:])
