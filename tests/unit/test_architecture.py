"""``docs/architecture.md``: its picture shows today's imports, and what it names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from milvus_lifecycle.table import Trigger
from tests import architecture
from tests.architecture import PACKAGE, PICTURE, ROOT, find_drift

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
#: What stands in `code` and is no file and no name in one.
WORDS = {"MilvusClient", "PYTHONPATH", "audit", "seq", "transitions", *map(str, Trigger)}


def spans() -> list[str]:
    """What the page has in `code`, blocks aside."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", PAGE, flags=re.M | re.S))


@cache
def defined(file: Path) -> set[str]:
    """The names of a file: classes, functions and variables, and what classes have."""
    return set(_names(ast.parse(file.read_text(encoding="utf-8")), ""))


def _names(scope: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for node in scope.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name
        if isinstance(node, ast.ClassDef):
            yield from _names(node, f"{prefix}{node.name}.")
        for each in ast.walk(node):
            if not isinstance(getattr(each, "ctx", None), ast.Store):
                continue
            if isinstance(each, ast.Name) and isinstance(node, (ast.Assign, ast.AnnAssign)):
                yield prefix + each.id
            elif prefix and isinstance(each, ast.Attribute) and ast.unparse(each.value) == "self":
                yield prefix + each.attr


def unknown(page: list[str]) -> list[str]:
    """The files that are not there, and the names that the file before them does not have."""
    wrong: list[str] = []
    names: set[str] = set()
    file = ""
    for span in page:
        if "/" in span or re.fullmatch(r"[a-z_]+\.(py|toml)", span):
            places = (PACKAGE / span, PACKAGE.parent / span, ROOT / span)
            found = next((at for at in places if at.exists()), None)
            file, names = span, set()
            if found is None:
                wrong.append(span)
            elif found.suffix == ".py":
                names = defined(found)
        elif span not in names and span not in WORDS:
            wrong.append(f"{file}: {span}")
    return wrong


def test_every_file_and_name_of_the_page_exists() -> None:
    """A file is a path in the package or in the repository; a name is in the file named last."""
    assert unknown(spans()) == []


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        (["core/pool.py", "Pool.step"], []),
        (["core/pool.py", "Pool.walk"], ["core/pool.py: Pool.walk"]),
        (["core/pond.py", "Pool.step"], ["core/pond.py", "core/pond.py: Pool.step"]),
        (["core/pool.py", "table.py", "Pool.step"], ["table.py: Pool.step"]),
        (["table.py", "Row", "give_up", "TRANSITIONS"], []),
        (["step"], [": step"]),
    ],
)
def test_what_is_not_there_is_found(page: list[str], wrong: list[str]) -> None:
    """A renamed method, a moved file and a name of another file are told."""
    assert unknown(page) == wrong


def test_the_page_names_much() -> None:
    """The extraction found it: at least twenty files, and more names than files."""
    files = [span for span in spans() if span.endswith(".py")]
    assert len(set(files)) >= 20
    assert len(spans()) > 2 * len(files)


def test_the_picture_shows_todays_imports() -> None:
    """It was drawn from the imports as they are, and not touched since."""
    assert "](architecture.svg)" in PAGE
    assert find_drift(PICTURE.read_text(encoding="utf-8")) == []


def test_a_new_import_and_a_changed_picture_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Either makes the picture wrong; one that does not say what it was drawn from is wrong."""
    svg = architecture.stamped("<svg>core</svg>\n")
    assert find_drift(svg) == []
    assert "by hand" in find_drift(svg.replace("core", "cellar"))[0]
    assert "does not say" in find_drift("<svg>core</svg>\n")[0]
    found = {**architecture.arrows(), "core": {"endpoints"}}
    monkeypatch.setattr(architecture, "arrows", lambda: found)
    assert "today's imports" in find_drift(svg)[0]


def test_imports_are_found_wherever_they_stand() -> None:
    """For types only, inside a function, of a module by name and of a package."""
    for module, target in (
        ("core/facts.py", "core/wire.py"),
        ("endpoints/global_cluster.py", "endpoints/topology_fetch.py"),
        ("core/connection.py", "core/mutex.py"),
        ("cli/__init__.py", "__init__.py"),
    ):
        assert PACKAGE / target in architecture.imported(PACKAGE / module), module
