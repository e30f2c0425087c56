"""The benchmark's own judgement; `python -m tests.benchmarks --quick` runs its rows."""

from __future__ import annotations

import json

from tests.benchmarks.__main__ import LONG, RECORD, line, worse
from tests.benchmarks.rows import ROWS


def test_a_ratio_twice_as_bad_as_on_record_is_worse() -> None:
    """Only ratios count, more than twice as bad as they were, and only of what is on record."""
    record = {"a call": {"engine": 1.0, "ratio": 0.5}}
    assert worse({"a call": {"engine": 90.0, "ratio": 0.9}}, record) == []
    assert worse({"a call": {"engine": 1.0, "ratio": 1.1}}, record) == [
        "a call: 1.10 instead of 0.50"
    ]
    assert worse({"another": {"engine": 1.0, "ratio": 9.0}}, record) == []


def test_a_budget_is_one_of_ratios_or_of_figures() -> None:
    """ "1.0 x" is about the ratio, everything else about the engine's figure."""
    got = {"engine": 12.0, "pymilvus": 24.0, "ratio": 0.5}
    assert line("a call", "us", "0.6 x", got)[6] == "yes"
    assert line("a call", "us", "0.4 x", got)[6] == "no"
    assert line("a call", "us", "12", got)[6] == "yes"
    assert line("a call", "us", "11", got)[6] == "no"
    assert line("a call", "us", "", got)[6] == ""


def test_every_figure_of_a_quick_run_is_on_record() -> None:
    """A row that is added or renamed is judged only once the record knows it."""
    quick = [row for name, row in ROWS.items() if name not in LONG]
    assert set(json.loads(RECORD.read_text())) == {
        title for row in quick for title, *_ in row.figures
    }
