"""One figure, one value: whoever shows it. The logs are the engine's own, in both flavours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from milvus_lifecycle.cli import main
from tests import engine_logs
from tests.audit_logs import write_log
from tests.corruption import Fields

Said = Callable[..., str]
FLAVOURS = ("threads", "asyncio")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What a command prints; it must succeed."""

    def run(*words: str) -> str:
        assert main(list(words)) == 0
        return capsys.readouterr().out

    return run


def tiles_of(said: Said, log: str) -> dict[str, str]:
    """The tiles of the report: name -> (value, words below)."""
    pytest.importorskip("bokeh", reason="the extra 'report' is not installed")
    page = Path(log).with_name("report.html")
    said("audit", "report", log, "-o", str(page))
    found = re.findall(
        r"<b>([^<]*)</b><span>([^<]*)</span><small>([^<]*)</small>", page.read_text("utf-8")
    )
    return {name: f"{value} {more}" for value, name, more in found}


def first_row(said: Said, log: str, title: str) -> dict[str, str]:
    """The first row of a table of ``audit stats``."""
    lines = said("audit", "stats", log).splitlines()
    at = lines.index(title) + 2  # the note comes between
    spans = [match.span() for match in re.finditer("-+", lines[at + 1])]
    return {lines[at][a:b].strip(): lines[at + 2][a:b].strip() for a, b in spans}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_time_in_a_state_is_one_figure(flavour: str, tmp_path: Path, said: Said) -> None:
    """An hour of health counts everywhere, although a healthy connection writes nothing."""
    log = write_log(tmp_path / "a.jsonl", engine_logs.hour_beside_a_new_one(flavour))
    total = json.loads(said("audit", "stats", "--json", log))["total"]
    assert (total["state_s"]["ACTIVE"], total["state_share"]["ACTIVE"]) == (3600.0, 1.0)
    assert first_row(said, log, "Time in each state")["ACTIVE"] == "60 min"
    assert "ACTIVE</b><br/>100.0 % of the time" in said("diagram", "--audit", log)
    assert tiles_of(said, log)["of the time ACTIVE"].startswith("100.0 %")


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize(
    ("write", "length", "shown", "relapses"),
    [
        (engine_logs.gave_up, 24.5, "24 s", 0),
        (engine_logs.flapped, 9.5, "9.5 s", 2),
        (engine_logs.open_at_the_end, 30.0, "30 s", 0),
    ],
    ids=["give_ups", "flaps", "open"],
)
def test_an_outage_is_an_outage(
    write: Callable[[str], list[Fields]],
    length: float,
    shown: str,
    relapses: int,
    flavour: str,
    tmp_path: Path,
    said: Said,
) -> None:
    """Its length is the same in the headline, the tiles, the incidents and the list of outages,
    however many recoveries it took; and it flaps everywhere or nowhere."""
    log = write_log(tmp_path / "a.jsonl", write(flavour))
    stats: Any = json.loads(said("audit", "stats", "--json", log))
    (outage,), (incident,) = stats["longest_outages"], stats["incidents"]
    assert (outage["seconds"], outage["relapses"]) == (length, relapses)
    assert (incident["seconds"], incident["suffered_s"], incident["outages"]) == (length, length, 1)
    assert {stats["total"]["outage_s"][name] for name in ("p50", "max", "sum")} == {length}
    headline = first_row(said, log, "Connections and outages")
    assert (headline["outages"], headline["p50"], headline["longest"]) == ("1", shown, shown)
    tiles = tiles_of(said, log)
    assert tiles["outages"] == f"1 p50 {shown}, longest {shown}"
    flaps = int(relapses >= 2)
    assert tiles["flapping"].split()[0] == headline["flapping"] == str(flaps)
    assert [one["relapses"] for one in stats["flapping_connections"]] == [relapses] * flaps
