"""Runs a body in a process of its own: for faults that would hurt the process of the tests.

A body is a function `body(flavour, folder) -> str` that asserts and returns its figures. By hand:
`python -m tests.faults.alone tests.faults.bodies:forks_under_load threads FOLDER`.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.faults.leftovers import child_processes, warm_up
from tests.faults.load import Flavour
from tests.observe import wait_until
from tests.processes import REPOSITORY

Body = Callable[[Flavour, Path], str]

_MARK = "FIGURES "
_LIMIT = 150.0


def run_alone(body: Body, flavour: Flavour, folder: Path, **environment: str) -> str:
    """The figures of a body that ran in a process of its own; an AssertionError with its output."""
    name = f"{body.__module__}:{body.__name__}"
    before = len(child_processes())
    with tempfile.TemporaryFile() as output:
        process = subprocess.run(
            [sys.executable, "-m", "tests.faults.alone", name, flavour, str(folder)],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT + 30,
            check=False,
        )
        output.seek(0)
        text = output.read().decode(errors="replace")
    last = text.rstrip().rpartition("\n")[2]
    assert process.returncode == 0, f"{name}: exit code {process.returncode}\n{text[-5000:]}"
    assert last.startswith(_MARK), f"{name}: no figures\n{text[-5000:]}"
    assert wait_until(lambda: len(child_processes()) <= before, 10), "a process is left"
    return str(json.loads(last[len(_MARK) :]))


def main(name: str, flavour: Flavour, folder: str) -> None:
    """Run one body; its figures are the last line."""
    # Where it hangs is worth more than that it hangs.
    faulthandler.dump_traceback_later(_LIMIT, exit=True)
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    warm_up()
    module, _, function = name.partition(":")
    body: Body = getattr(importlib.import_module(module), function)
    try:
        figures = body(flavour, Path(folder))
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    print(f"\n{_MARK}{json.dumps(figures)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]  # argparse would not know Literal
