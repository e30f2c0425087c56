"""The floor under branch coverage: the core at 100 %, the package at 97 %.

    python -m tests.coverage_floor            the core, by the tests whose timing cannot matter
    python -m tests.coverage_floor --whole    the package, by all but the long faults and recipes

The core is what decides: the table and everything that moves a connection by it, in both flavours.
It has to be covered by the unit and conformance tests alone, which run on injected clocks and
scripted I/O, so that the figure is the same on every machine. The simulation is left out of both:
it runs the core in greenlets, where measuring is slow and not reliable, and reaches nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.processes import REPOSITORY

PACKAGE = "milvus_lifecycle"
CORE = (
    "table",
    *(
        "core/admission",
        "core/checkout",
        "core/connection",
        "core/facts",
        "core/flight",
        "core/leases",
    ),
    *(
        "core/lifecycle",
        "core/machine",
        "core/maintenance",
        "core/mutex",
        "core/notices",
        "core/pool",
    ),
    *("core/readiness", "core/recording", "core/recovery", "core/registry", "core/requests"),
    *("core/retry", "core/strategies", "core/wire"),
    *("endpoints/global_cluster", "endpoints/local"),
    *("drivers/threads", "drivers/aio", "drivers/aio_loops"),
)
#: Percent of lines and branches, together, that the whole package must have.
WHOLE_FLOOR = 97.0

#: Tests of what reads logs and draws: they run nothing of the core.
_READING = ("*/test_replay*", "*/test_diagram*", "*/test_demo*", "*/test_audit_docs*")
_DETERMINISTIC = ("tests/unit", "tests/conformance", *(f"--ignore-glob={it}" for it in _READING))
_PLAIN = ("tests", "--ignore=tests/simulation", "-m", "not (long or recipes)")

Files = dict[str, dict[str, Any]]


def measure(tests: tuple[str, ...], workers: str) -> tuple[bool, dict[str, Any]]:
    """Run tests under branch coverage: (have they passed, coverage's JSON report)."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            *(sys.executable, "-m", "pytest", *tests, "-q", "-ra", "-o", "addopts="),
            *("-n", workers, "--dist", "worksteal", "-p", "no:cacheprovider"),
            *("--cov", "--cov-config=pyproject.toml", f"--cov-report=json:{report}"),
        ]
        environment = {**os.environ, "COVERAGE_FILE": str(Path(folder) / "data")}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False)
        if done.returncode not in (0, 1) or not report.exists():
            sys.exit(f"pytest ended with {done.returncode}: see above; nothing can be said")
        return done.returncode == 0, json.loads(report.read_text())


def module(name: str) -> str:
    """Its path as it stands in a report."""
    return f"{PACKAGE}/{name}.py"


def missing(entry: dict[str, Any]) -> str:
    """Lines that did not run, and branches that were not taken though their line ran."""
    lines: list[int] = entry["missing_lines"]
    branches = [
        f"{start}->{'exit' if end < 0 else end}"
        for start, end in entry["missing_branches"]
        if start not in lines and end not in lines
    ]
    return ", ".join([*_ranges(lines), *branches])


def _ranges(lines: list[int]) -> list[str]:
    ranges: list[list[int]] = []
    for line in lines:
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        else:
            ranges.append([line, line])
    return [str(first) if first == last else f"{first}-{last}" for first, last in ranges]


def check_core(files: Files) -> list[str]:
    """What is wrong with the core's coverage, a line each."""
    wrong = []
    for name in map(module, CORE):
        if "no cover" in (REPOSITORY / name).read_text():
            wrong.append(f"{name}: excludes something from coverage; the core excludes nothing")
        entry = files.get(name)
        if entry is None:
            wrong.append(f"{name}: was not measured")
        elif entry["missing_lines"] or entry["missing_branches"]:
            wrong.append(f"{name}: not covered: {missing(entry)}")
    return wrong


def check_whole(report: dict[str, Any]) -> list[str]:
    """Print what is left out, module by module; what is wrong with the package's coverage."""
    files: Files = report["files"]
    for name, entry in sorted(files.items()):
        percent = entry["summary"]["percent_covered"]
        if percent < 100:
            print(f"{percent:7.2f} %  {name}: {missing(entry)}")
    total: float = report["totals"]["percent_covered"]
    print(f"{total:7.2f} %  {PACKAGE}")
    if total < WHOLE_FLOOR:
        return [f"{PACKAGE}: {total:.2f} % of lines and branches, less than {WHOLE_FLOOR} %"]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the floor under branch coverage.")
    parser.add_argument("--whole", action="store_true", help="the package, by nearly all tests")
    parser.add_argument("-n", dest="workers", default="2", help="processes that run tests")
    options = parser.parse_args()
    passed, report = measure(_PLAIN if options.whole else _DETERMINISTIC, options.workers)
    wrong = check_whole(report) if options.whole else check_core(report["files"])
    if not passed:
        wrong.append("tests have failed: see above")
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        sys.exit(1)
    print("the floor holds" + ("" if options.whole else f": 100 % of {len(CORE)} core modules"))


if __name__ == "__main__":
    main()
