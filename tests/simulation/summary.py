"""What the simulation looked at, printed at the end of every run of the tests."""

from __future__ import annotations

from collections import Counter
from typing import Any

#: properties of tests that are added up over all of them, and how they are said
_SUMS = {
    "states": "states of the model",
    "moves": "moves between them",
    "futures": "states that are one, looked at whether they are",
    "mutants": "broken cores rejected",
    "schedules": "schedules of the real drivers",
    "examples": "examples of a manager's use that are of today",
    "bugs": "seeded driver bugs found",
    "stateful bugs": "seeded bugs found by the stateful search",
    "rows": "rows of the table travelled",
    "cells": "ignored and impossible cells tried",
}


def summarize(terminalreporter: Any) -> None:
    """Write the sums of what tests have noted by ``record_property``."""
    sums: dict[str, int] = {}
    reached: Counter[str] = Counter()
    lines: list[str] = []
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", ()):
            if name in _SUMS:
                sums[name] = sums.get(name, 0) + int(value)
            elif name == "reached":
                reached.update(value)
            elif name == "figures":
                lines.append(str(value))
    if sums or lines:
        terminalreporter.section("simulation")
        for line in sorted(lines):
            terminalreporter.write_line(line)
        for name, text in _SUMS.items():
            if name in sums:
                terminalreporter.write_line(f"{sums[name]:>9,} {text}")
        for what, count in sorted(reached.items()):
            terminalreporter.write_line(f"{count:>9,} schedules reached {what}")
