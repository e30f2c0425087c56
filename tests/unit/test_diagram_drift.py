"""The checked-in drawings: they show the table, and whatever no longer does is found."""

from __future__ import annotations

import re
import subprocess
import sys
import types
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from milvus_lifecycle.diagram.drawing import draw
from milvus_lifecycle.diagram.formats import (
    MERMAID_NAME,
    SVG_NAME,
    RendererMissing,
    find_drift,
    read_stamp,
    render_svg,
    write_diagrams,
)
from milvus_lifecycle.replay.stats import fold_connection, fold_stats
from milvus_lifecycle.table import TRANSITIONS, Row, State
from tests.audit_logs import Story, decoded

DIAGRAMS = Path(__file__).parents[2] / "diagrams"
SVG = "http://www.w3.org/2000/svg"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A copy of the checked-in drawings."""
    for name in (MERMAID_NAME, SVG_NAME):
        (tmp_path / name).write_bytes((DIAGRAMS / name).read_bytes())
    return tmp_path


def test_the_checked_in_drawings_show_the_table() -> None:
    """diagrams/ is up to date; if not: milvus-lifecycle diagram --write diagrams."""
    assert find_drift(DIAGRAMS) == []


def mutants() -> Iterator[tuple[str, tuple[Row, ...]]]:
    """Tables that differ from the real one in one row."""
    for index, row in enumerate(TRANSITIONS):
        name = f"{row.trigger}-{row.source}-{row.dest}"
        others = [state for state in State if state is not row.dest]
        changes = {
            "dest": replace(row, dest=others[index % len(others)]),
            "guard": replace(row, guard=row.guard + " indeed"),
            "trigger": replace(row, trigger=TRANSITIONS[index - 1].trigger),
        }
        for what, changed in changes.items():
            if changed != row:
                yield f"{name}-{what}", (*TRANSITIONS[:index], changed, *TRANSITIONS[index + 1 :])
        yield f"{name}-gone", TRANSITIONS[:index] + TRANSITIONS[index + 1 :]
    extra = replace(TRANSITIONS[0], dest=State.RECOVERING, guard="new")
    yield "one-more", (*TRANSITIONS, extra)


def test_any_changed_row_is_drift_in_both_files() -> None:
    """No row can change its trigger, target or guard, go or come, without being noticed."""
    unnoticed = []
    for name, rows in mutants():
        found = "\n".join(find_drift(DIAGRAMS, rows))
        unnoticed += [f"{name} in {file}" for file in (MERMAID_NAME, SVG_NAME) if file not in found]
    assert unnoticed == []


def test_the_words_of_a_row_are_part_of_the_svg() -> None:
    """A row's reason and conditions are shown on pointing: changing them is drift of the SVG."""
    for change in ({"why": "other words"}, {"conditions": ("other",)}):
        rows = (replace(TRANSITIONS[0], **change), *TRANSITIONS[1:])
        assert [found for found in find_drift(DIAGRAMS, rows) if SVG_NAME in found]


def test_an_edited_svg_is_drift(kept: Path) -> None:
    """A change by hand is found even where the words stay the same."""
    path = kept / SVG_NAME
    path.write_text(
        path.read_text(encoding="utf-8").replace('fill="#d8f0e6"', 'fill="#ff0000"'),
        encoding="utf-8",
    )
    assert [found for found in find_drift(kept) if "changed by hand" in found]


def test_an_edited_mermaid_text_is_drift(kept: Path) -> None:
    """A change by hand in the Mermaid text is found."""
    path = kept / MERMAID_NAME
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert [found for found in find_drift(kept) if MERMAID_NAME in found]


@pytest.mark.parametrize("name", [MERMAID_NAME, SVG_NAME])
def test_a_missing_file_is_drift(kept: Path, name: str) -> None:
    """Deleting a drawing is no way to pass the check."""
    (kept / name).unlink()
    assert [found for found in find_drift(kept) if f"{name} is missing" in found]


def test_an_svg_of_other_origin_is_drift(kept: Path) -> None:
    """lifecycle.svg must have been drawn by this code: another picture carries no stamp."""
    (kept / SVG_NAME).write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    assert [found for found in find_drift(kept) if "no stamp" in found]


@pytest.mark.parametrize("damage", [b"", b"<svg", b"\xff\xfe\x00"])
def test_a_damaged_svg_is_drift(kept: Path, damage: bytes) -> None:
    """A file that is no SVG at all is reported, whatever is in it."""
    path = kept / SVG_NAME
    for content in (damage, path.read_bytes()[:-20] + damage):
        path.write_bytes(content)
        assert [found for found in find_drift(kept) if SVG_NAME in found]


def test_line_ends_of_a_checkout_are_no_drift(kept: Path) -> None:
    """A checkout with CRLF shows the same table."""
    for path in kept.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert find_drift(kept) == []


class ForeignGraph:
    """Stands in for the Graphviz of another machine: other numbers, the same drawing."""

    def __init__(self, string: str) -> None:
        self.string = string

    def draw(self, path: None, *, format: str, prog: str, args: str) -> bytes:
        svg = (DIAGRAMS / SVG_NAME).read_text(encoding="utf-8")
        ours = (
            r'<metadata.*</metadata>\n|<title>The .*</title>\n|<desc>.*</desc>\n| role="img".*(?=>)'
        )
        svg = re.sub(ours, "", svg)
        svg = re.sub(
            r'\b(c?[xy])="(-?[\d.]+)"', lambda at: f'{at[1]}="{float(at[2]) * 1.07:.3f}"', svg
        )
        return svg.replace("<svg", "<!-- Generated by graphviz version 99 -->\n<svg").encode()

    def close(self) -> None:
        """Nothing to free."""


def test_another_graphviz_is_no_drift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drawing by another release, with other fonts, passes; of another table it does not."""
    foreign = types.ModuleType("pygraphviz")
    monkeypatch.setattr(foreign, "AGraph", ForeignGraph, raising=False)
    monkeypatch.setitem(sys.modules, "pygraphviz", foreign)
    write_diagrams(tmp_path)
    assert (tmp_path / SVG_NAME).read_bytes() != (DIAGRAMS / SVG_NAME).read_bytes()
    assert find_drift(tmp_path) == []
    assert find_drift(tmp_path, TRANSITIONS[:-1]) != []


def test_without_pygraphviz_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing pygraphviz says what to install, and nothing half is written."""
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    with pytest.raises(RendererMissing, match=r"milvus_lifecycle\[diagram\]"):
        write_diagrams(tmp_path)
    assert list(tmp_path.iterdir()) == []


STORY = Story("c").connect().step("fail", "RECOVERING", 1.0).step("retry", "RECOVERING", 1.0)
RECORDS = decoded(STORY.step("retry", "RECOVERING", 1.0).step("give_up", "IDLE", 1.0))


@pytest.fixture
def graphviz() -> None:
    pytest.importorskip("pygraphviz", reason="needs the extra milvus_lifecycle[diagram]")


@pytest.mark.usefixtures("graphviz")
def test_an_annotated_drawing_of_an_old_table_is_drift(kept: Path) -> None:
    """An example drawn from a log is fine while the table is the one it was drawn from."""
    annotated = render_svg(draw(stats=fold_stats(RECORDS)))
    (kept / "outage.svg").write_text(annotated, encoding="utf-8")
    assert find_drift(kept) == []
    assert [found for found in find_drift(kept, TRANSITIONS[1:]) if "outage.svg" in found]


@pytest.mark.usefixtures("graphviz")
def test_every_word_arrives_in_the_picture() -> None:
    """No label is lost on the way through Graphviz, plain, annotated or highlighted."""
    path = fold_connection(RECORDS, "c")
    for drawing in (draw(), draw(stats=fold_stats(RECORDS)), draw(stats=path)):
        svg = ElementTree.fromstring(render_svg(drawing).encode())
        words = {" ".join("".join(text.itertext()).split()) for text in svg.iter(f"{{{SVG}}}text")}
        for line in (line for edge in drawing.edges for line in edge.lines):
            guard = {f"[{line.guard}]"} if line.guard else set()
            assert {line.trigger, *line.figures, *guard} <= words
        for node in drawing.nodes[1:]:
            assert {node.name, *node.notes, *(line.trigger for line in node.lines)} <= words


@pytest.mark.usefixtures("graphviz")
def test_an_svg_stands_alone() -> None:
    """Well-formed, named for readers aloud, no address but the namespaces, no Graphviz release."""
    svg = render_svg(draw())
    root = ElementTree.fromstring(svg.encode())
    assert root.get("role") == "img"
    assert root.findtext(f"{{{SVG}}}title") == draw().title
    titles = [title.text or "" for title in root.iter(f"{{{SVG}}}title")]
    for row in TRANSITIONS:
        assert any(f"{row.trigger}: {row.why}" in title for title in titles)
    addresses = set(re.findall(r"\w+://[^\"' <]+", svg))
    assert addresses == {SVG, "http://www.w3.org/1999/xlink"}
    assert "graphviz version" not in svg
    stamp = read_stamp(svg)
    assert stamp is not None
    assert stamp[2]


@pytest.mark.usefixtures("graphviz")
def test_the_same_machine_draws_the_same_bytes() -> None:
    """Two processes with other hash seeds draw the same SVG."""
    script = (
        "import sys; from milvus_lifecycle.diagram.drawing import draw; "
        "from milvus_lifecycle.diagram.formats import render_svg; "
        "sys.stdout.buffer.write(render_svg(draw()).encode())"
    )
    drawn = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert drawn.decode() == render_svg(draw())
