"""docs/compatibility.md: what it says of pymilvus and of the engine is what is measured."""

from __future__ import annotations

import re
from unittest import mock

import pytest
from pymilvus import MilvusClient

from tests.integration.compatibility import PAGE, ROWS, documented, measure
from tests.integration.test_defects import BODIES
from tests.stock import Side

SIDES: tuple[Side, ...] = ("stock", "engine")


@pytest.mark.parametrize("side", [pytest.param("stock", marks=pytest.mark.stock), "engine"])
@pytest.mark.timeout(300)
def test_the_page_says_what_is_measured(side: Side) -> None:
    """Each row's cell, word by word; and no row is missing."""
    column = SIDES.index(side)
    assert {title: cells[column] for title, cells in documented().items()} == measure(side)


def test_bodies_that_the_page_names_exist() -> None:
    """Each is one of those that fail on pymilvus and hold on the engine."""
    names = re.findall(r"\| `(d\d+_\w+)` \|", PAGE.read_text("utf-8"))
    known = [str(body.id) for body in BODIES]
    assert len(names) > 5
    assert [name for name in names if not any(each.startswith(name) for each in known)] == []


def test_the_pages_example_runs(installed: None) -> None:
    """As it stands."""
    (example,) = re.findall(r"```python\n(.+?)```", PAGE.read_text("utf-8"), re.DOTALL)
    exec(example, {"mock": mock, "MilvusClient": MilvusClient})


if __name__ == "__main__":
    stock, engine = (measure(side) for side in SIDES)
    for title in ROWS:
        print(f"| {title} | {stock[title]} | {engine[title]} | |")
