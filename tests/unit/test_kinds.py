"""The kinds of tests: what is left out of a plain run is not left out of everything."""

from __future__ import annotations

import re

import pytest

from tests.processes import REPOSITORY


def test_what_a_plain_run_leaves_out_runs_in_ci() -> None:
    """`.ci/run` has every kind that plain `pytest` has not, but for long faults and the soak."""
    script = REPOSITORY / ".ci" / "run"
    if not script.exists():
        pytest.skip("the scripts of the repository are not here")
    settings = (REPOSITORY / "pyproject.toml").read_text()
    left_out = re.search(r"^addopts = .* -m 'not \((.*)\)'", settings, re.MULTILINE)
    run = re.search(r'^pytest -m "(.*)"$', script.read_text(), re.MULTILINE)
    assert left_out is not None
    assert run is not None
    assert set(left_out[1].split(" or ")) == {*run[1].split(" or "), "long", "soak"}
