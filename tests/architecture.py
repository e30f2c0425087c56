"""The house in one picture: which folder of the package imports which, types included.

``python -m tests.architecture`` reads the imports and draws ``docs/architecture.svg``, which
``docs/architecture.md`` shows. A box is a folder, or some of the modules in the package's own. The
picture says what it was drawn from; ``find_drift`` compares that with the imports of today.
"""

from __future__ import annotations

import ast
import hashlib
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import milvus_lifecycle
from milvus_lifecycle.diagram.formats import FONTS

ROOT = Path(__file__).parents[1]
PACKAGE = Path(milvus_lifecycle.__file__).parent
PICTURE = ROOT / "docs" / "architecture.svg"
REMEDY = "python -m tests.architecture draws it anew"

#: The boxes, and what each is about.
SUBJECTS = {
    "cli": "the commands",
    "report": "a log as a page",
    "diagram": "the table as a picture",
    "replay": "logs, read and judged",
    "demo": "a server killed before your eyes",
    "the package": "what users import",
    "integrations": "pymilvus on the engine",
    "testing": "a clock and a server that obey a test",
    "managers": "the public managers",
    "endpoints": "where to connect: file, cluster",
    "drivers": "threads and asyncio: what waits; pymilvus",
    "core": "what decides: no I/O, nothing waits",
    "audit": "records and their way out",
    "settings": "what users say",
    "ground": "states, errors, forks",
}
#: The boxes of the modules in the package's own folder.
OWN = {
    "__init__": "the package",
    "__main__": "cli",
    "managers": "managers",
    **dict.fromkeys(("config", "policy", "uri", "tls"), "settings"),
    **dict.fromkeys(("table", "errors", "fork"), "ground"),
}

Arrows = dict[str, set[str]]


def box_of(path: Path) -> str:
    """The box of a module. Raises LookupError for one that has no place in the picture yet."""
    parts = path.relative_to(PACKAGE).parts
    box = parts[0] if len(parts) > 1 else OWN.get(path.stem)
    if box not in SUBJECTS:
        raise LookupError(f"{path}: which box of tests/architecture.py is it in?")
    return box


@cache
def modules() -> list[Path]:
    """The modules of the package; what is no package (``bootstrap``) is not looked at."""
    return [
        path for path in sorted(PACKAGE.rglob("*.py")) if (path.parent / "__init__.py").exists()
    ]


def imported(path: Path) -> Iterator[Path]:
    """The package's modules that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = path.relative_to(PACKAGE.parent).parts[: -node.level] if node.level else ()
            base = [*here, *(node.module or "").split(".")]
            names = [[*filter(None, base), alias.name] for alias in node.names]
        else:
            continue
        for name in names:
            found = _file(name) or _file(name[:-1])
            if found is not None:
                yield found


def _file(name: list[str]) -> Path | None:
    place = PACKAGE.parent.joinpath(*name)
    files = (place.with_name(place.name + ".py"), place / "__init__.py")
    return next(
        (file for file in files if name and file.is_relative_to(PACKAGE) and file.exists()), None
    )


@cache
def arrows() -> Arrows:
    """From each box to those that its modules import."""
    found: Arrows = {box: set() for box in SUBJECTS}
    for path in modules():
        box = box_of(path)
        found[box] |= {box_of(target) for target in imported(path)} - {box}
    return found


def _below(arrows: Arrows, box: str) -> set[str]:
    """Everything that can be reached from a box."""
    reached: set[str] = set()
    new = set(arrows[box])
    while new:
        reached |= new
        new = {target for each in new for target in arrows[each]} - reached
    return reached


def to_dot() -> str:
    """The picture in Graphviz's language: the same text for the same imports.

    An arrow that a longer way makes superfluous is a word in its box instead: there are so many of
    them that nobody would see the house behind them.
    """
    found = arrows()
    lines = [
        "digraph architecture {",
        f'  graph [fontname="{FONTS}", bgcolor=white, nodesep=0.3, ranksep=0.3, pad=0.2];',
        f'  node [fontname="{FONTS}", fontsize=13, shape=box, margin="0.15,0.08"];',
        '  edge [arrowsize=0.7, color="#24292f"];',
    ]
    for box in SUBJECTS:
        direct = {
            target
            for target in found[box]
            if not any(target in _below(found, each) for each in found[box] - {target})
        }
        lines.append(f'  "{box}" [{_look(box)}, label=<{_label(box, found[box] - direct)}>];')
        lines += [f'  "{box}" -> "{target}";' for target in sorted(direct)]
    return "\n".join([*lines, "}", ""])


def _look(box: str) -> str:
    style = "rounded,filled" if (PACKAGE / box).is_dir() else "rounded,dashed"
    return f'style="{style}", color="#57606a", fillcolor="#f6f8fa"'


def _label(box: str, also: set[str]) -> str:
    """Name and subject, the modules, and the imports for which there is no arrow."""
    inside = [path.stem for path in modules() if box_of(path) == box]
    names = "  ".join(name for name in inside if name != "__init__" or len(inside) == 1)
    parts = [f"<b>{box}</b>", f'<font point-size="10">{SUBJECTS[box]}</font>']
    parts += (f'<font point-size="9" color="#57606a">{line}</font>' for line in _wrapped(names))
    if also:
        more = _wrapped("and imports " + ", ".join(sorted(also)))
        parts += (f'<font point-size="9" color="#57606a"><i>{line}</i></font>' for line in more)
    return "<br/>".join(parts)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 44)


def draw() -> str:
    """The picture as an SVG that says what it was drawn from."""
    import pygraphviz  # brings Graphviz with it

    svg = pygraphviz.AGraph(string=to_dot()).draw(None, format="svg", prog="dot").decode()
    # Without what names Graphviz's release.
    return stamped(re.sub(r"<!--.*?-->\s*|<!DOCTYPE.*?>\s*", "", svg, flags=re.DOTALL))


def stamped(svg: str) -> str:
    """The picture with what it was drawn from, and a digest of its own."""
    return f"{svg}<!-- dot={_digest(to_dot())} body={_digest(svg)} -->\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def find_drift(svg: str) -> list[str]:
    """What is wrong with the picture, a sentence each; none if it shows today's imports."""
    found = re.fullmatch(r"(.*)<!-- dot=(\w+) body=(\w+) -->\n", svg, re.DOTALL)
    if found is None:
        return [f"it does not say what it was drawn from: {REMEDY}"]
    drift = []
    if found[2] != _digest(to_dot()):
        drift.append(f"it does not show today's imports: {REMEDY}")
    if found[3] != _digest(found[1]):
        drift.append("it was changed by hand since it was drawn")
    return drift


if __name__ == "__main__":
    PICTURE.write_bytes(draw().encode())
