"""The drawing of the lifecycle: it shows the table, all of it, and the same everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations

import pytest

from milvus_lifecycle.diagram.drawing import GROUP, START, Drawing, Look, draw
from milvus_lifecycle.diagram.formats import to_dot, to_mermaid
from milvus_lifecycle.table import TRANSITIONS, Row, State, Trigger


def shown(drawing: Drawing) -> Counter[tuple[str, str, str, str]]:
    """(source or group, dest, trigger, guard) of every line in every label."""
    labels = {node.id: node.lines for node in drawing.nodes}
    names = {node.id: node.name for node in drawing.nodes}
    return Counter(
        (names[edge.source], edge.dest, line.trigger, line.guard)
        for edge in drawing.edges
        for line in edge.lines or labels[edge.source]
    )


def test_every_row_is_drawn_once() -> None:
    """Each row of the table is one line of one label, with its guard; nothing else is drawn."""
    everywhere = {Trigger.FORKED, Trigger.CLOSE}
    expected = Counter(
        (row.source.value, row.dest.value, row.trigger.value, row.guard)
        for row in TRANSITIONS
        if row.trigger not in everywhere
    )
    for row in TRANSITIONS:
        if row.trigger in everywhere:
            expected[GROUP, row.dest.value, row.trigger.value, row.guard] = 1
    assert shown(draw()) == expected


def test_parallel_rows_share_one_edge() -> None:
    """Between two nodes there is at most one arrow in each direction."""
    pairs = Counter((edge.source, edge.dest) for edge in draw().edges)
    assert max(pairs.values()) == 1


def test_what_leads_from_everywhere_is_found_in_the_table() -> None:
    """A trigger is grouped only while every live state has it, so that no exception is hidden."""
    fewer = [
        row for row in TRANSITIONS if (row.trigger, row.source) != (Trigger.CLOSE, State.PROBING)
    ]
    drawn = shown(draw(fewer))
    assert (GROUP, "CLOSED", "close", "") not in drawn
    for source in ("IDLE", "ACTIVE", "RECOVERING"):
        assert drawn[source, "CLOSED", "close", ""] == 1
    assert ("PROBING", "CLOSED", "close", "") not in drawn


def test_a_guarded_trigger_is_never_grouped() -> None:
    """A condition on one of the rows from everywhere is shown where it holds."""
    guarded = [
        replace(row, guard="only here", conditions=("held",))
        if (row.trigger, row.source) == (Trigger.FORKED, State.ACTIVE)
        else row
        for row in TRANSITIONS
    ]
    drawn = shown(draw(guarded))
    assert drawn["ACTIVE", "IDLE", "forked", "only here"] == 1
    assert (GROUP, "IDLE", "forked", "") not in drawn


def test_final_states_are_those_without_a_way_out() -> None:
    """CLOSED is drawn as final because no row leaves it; a row that does takes that away."""
    reopened = [*TRANSITIONS, Row(Trigger.ACQUIRE, State.CLOSED, State.IDLE, "reopened")]
    for rows, final in ((TRANSITIONS, {"CLOSED"}), (reopened, set())):
        assert {node.name for node in draw(rows).nodes if node.look.final} == final


def test_no_two_states_look_alike_without_colour() -> None:
    """Width, dashes and the double outline alone tell any two states, and their lines, apart."""
    looks = {node.name: node.look for node in draw().nodes if node.name in set(State)}
    assert set(looks) == {state.value for state in State}
    for one, other in combinations(looks.values(), 2):
        assert (one.width, one.style, one.final) != (other.width, other.style, other.final)


def luminance(color: str) -> float:
    """Relative luminance, WCAG 2.1."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_is_readable() -> None:
    """Every label's colour has a contrast of at least 4.5 on white (WCAG AA)."""
    for edge in draw().edges:
        assert 1.05 / (luminance(edge.look.color) + 0.05) >= 4.5, edge


def test_every_row_says_its_reason_where_one_points_at_it() -> None:
    """The hint of a line holds each row's words and every condition's name."""
    hints = "\n".join(hint for edge in draw().edges for hint in edge.hints)
    for row in TRANSITIONS:
        assert f"{row.trigger}: {row.why}" in hints
        for name in (*row.conditions, *row.unless):
            assert name in hints


def test_mermaid_has_all_states_and_triggers() -> None:
    """The Mermaid text names every state, and every trigger with its guard."""
    text = to_mermaid(draw()).replace("\u00a0", " ")
    for state in State:
        assert re.search(rf'^ +{state}\(+"<b>{state}</b>"\)+$', text, re.MULTILINE)
    for row in TRANSITIONS:
        assert f"{row.trigger} [{row.guard}]" if row.guard else str(row.trigger) in text
    assert len(re.findall(r"-->|-\.->", text)) == len(draw().edges)


def test_words_of_the_table_cannot_break_the_texts() -> None:
    """Quotes, brackets, pipes, ampersands and backslashes in a guard stay text."""
    nasty = 'a "b" <c> & |d| #e \\N'
    rows = [
        replace(row, guard=nasty, why=nasty) if row.guard == "silent" else row
        for row in TRANSITIONS
    ]
    mermaid, dot = to_mermaid(draw(rows)), to_dot(draw(rows))
    label = next(line for line in mermaid.splitlines() if "doubt" in line)
    assert label.count('"') == 2
    assert label.count("|") == 2
    assert "#quot;b#quot;" in label
    assert "&lt;c&gt; &amp; |d| #e \\N]" in dot
    assert 'a \\"b\\" <c> & |d| #e \\\\N' in dot


SCRIPT = """
import sys
from milvus_lifecycle.diagram.drawing import draw
from milvus_lifecycle.diagram.formats import to_dot, to_mermaid
sys.stdout.buffer.write((to_dot(draw()) + to_mermaid(draw())).encode())
assert "pygraphviz" not in sys.modules
"""


def run_script(seed: str) -> bytes:
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, check=True
    ).stdout


def test_texts_are_the_same_in_every_process() -> None:
    """Mermaid and DOT do not depend on hashes, and neither text needs pygraphviz."""
    assert run_script("1") == run_script("2") == (to_dot(draw()) + to_mermaid(draw())).encode()


def test_marks_are_no_states() -> None:
    """The start dot and the groups stand beside a state and never pass for one."""
    marks = [node for node in draw().nodes if node.target]
    assert {node.name for node in marks} == {START, GROUP}
    assert {node.target for node in marks} == {"IDLE", "CLOSED"}
    assert all(node.look.color == Look().color for node in marks if node.name == START)


@pytest.mark.parametrize("rows", [TRANSITIONS[:1], TRANSITIONS[-1:]], ids=["first", "last"])
def test_a_small_table_can_be_drawn(rows: tuple[Row, ...]) -> None:
    """One row is enough for a drawing: a table under construction can be looked at."""
    text = to_dot(draw(rows)) + to_mermaid(draw(rows))
    assert rows[0].trigger.value in text
