"""The checklist of a release, walked by a command: what has to hold of what would be published.

    python -m tests.release            in a clone, with the extras test and check (Python 3.11)

Builds the sdist, and from it the wheel, in a temporary folder that is gone afterwards. Nothing is
published. What is left to a person: the changelog's words, a tag, and the upload of what it
built (`python -m build`).
"""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import tomllib

import milvus_lifecycle
from tests.processes import REPOSITORY

PACKAGE = "milvus_lifecycle"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
VERSION: str = PROJECT["project"]["version"]
IN_SDIST: list[str] = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
#: What the wheel's users may see under -W error.
_QUIET = """
import milvus_lifecycle, milvus_lifecycle.cli as cli
assert milvus_lifecycle.__file__.startswith({where!r}), milvus_lifecycle.__file__
milvus_lifecycle.install()
milvus_lifecycle.uninstall()
assert cli.main(["diagram"]) == 0
assert cli.main(["probe", "http://127.0.0.1:1"]) == 1
"""


def main() -> int:
    """Walk the list; 0 if all of it holds."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for check in CHECKS:
            said = f"{check.__doc__}".partition("\n")[0]
            try:
                problems = list(check(work))
            except Exception as error:
                problems = [f"{type(error).__name__}: {error}"]
            print(f"{'ok    ' if not problems else 'FAILED'}  {said}", flush=True)
            print(*(f"        {each}\n" for each in problems), sep="", end="", flush=True)
            failed += bool(problems)
    return 1 if failed else 0


def _run(*words: object, cwd: Path = REPOSITORY, **environment: str) -> str:
    """What a command printed. Raises RuntimeError with it, if the command failed."""
    ended = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        said = (ended.stdout + ended.stderr).strip()
        raise RuntimeError(
            f"{Path(str(words[0])).name} ended with {ended.returncode}: {said[-2000:]}"
        )
    return ended.stdout


def _tracked(*places: str) -> set[str]:
    return set(_run("git", "ls-files", "-z", "--", *places).split("\0")) - {""}


def _differ(found: set[str], wanted: set[str]) -> Iterable[str]:
    yield from (f"missing: {name}" for name in sorted(wanted - found))
    yield from (f"too much: {name}" for name in sorted(found - wanted))


def check_versions(work: Path) -> Iterable[str]:
    """One version in pyproject.toml, the package and the changelog"""
    if milvus_lifecycle.__version__ != VERSION:
        yield f"the package says {milvus_lifecycle.__version__}, pyproject.toml {VERSION}"
    changelog = (REPOSITORY / "docs" / "changelog.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    if newest is None or newest[1] != VERSION:
        yield f"the changelog begins with {newest and newest[1]}, not with {VERSION}"


def check_sdist(work: Path) -> Iterable[str]:
    """The sdist holds every file of the repository that it should, and no other"""
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", work / "dist")
    (path,) = (work / "dist").glob("*.tar.gz")
    with tarfile.open(path) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    # Those two are the build backend's own.
    yield from _differ(found - {"PKG-INFO", ".gitignore"}, _tracked(*IN_SDIST, "pyproject.toml"))


def _wheel(work: Path) -> zipfile.ZipFile:
    (path,) = (work / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def check_wheel(work: Path) -> Iterable[str]:
    """The wheel, built from the sdist, holds the package (py.typed, no tests) and its licence"""
    with _wheel(work) as archive:
        info = f"{PACKAGE}-{VERSION}.dist-info"
        own = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
        own |= {f"{info}/licenses/LICENSE"}
        yield from _differ(set(archive.namelist()), _tracked(PACKAGE) | own)
        if f"{PACKAGE}/py.typed" not in archive.namelist():
            yield "py.typed is missing"
        licence = archive.read(f"{info}/licenses/LICENSE")
        if licence != (REPOSITORY / "LICENSE").read_bytes():
            yield "the licence is not the repository's"


def check_metadata(work: Path) -> Iterable[str]:
    """The metadata are complete and what an index takes, and the command is there"""
    _run(sys.executable, "-m", "twine", "check", "--strict", *(work / "dist").iterdir())
    with _wheel(work) as archive:
        read = email.message_from_bytes(archive.read(f"{PACKAGE}-{VERSION}.dist-info/METADATA"))
        commands = archive.read(f"{PACKAGE}-{VERSION}.dist-info/entry_points.txt").decode()
    project = PROJECT["project"]
    wanted = {
        "Name": project["name"],
        "Version": VERSION,
        "Summary": project["description"],
        "License-Expression": project["license"],
        "Requires-Python": project["requires-python"],
        "Description-Content-Type": "text/markdown",
    }
    yield from (
        f"{name} is {read[name]!r}, not {value!r}"
        for name, value in wanted.items()
        if read[name] != value
    )
    extras = set(read.get_all("Provides-Extra", []))
    yield from _differ(extras, set(project["optional-dependencies"]))
    if str(read.get_payload()).strip() != (REPOSITORY / "README.md").read_text("utf-8").strip():
        yield "its description is not the README"
    if "milvus-lifecycle = milvus_lifecycle.cli:main" not in commands:
        yield f"no command: {commands!r}"


def check_warnings(work: Path) -> Iterable[str]:
    """The wheel and its commands warn of nothing (python -W error)"""
    where = work / "unpacked"
    with _wheel(work) as archive:
        archive.extractall(where)
    script = _QUIET.format(where=str(where))
    _run(sys.executable, "-W", "error", "-c", script, cwd=work, PYTHONPATH=str(where))
    return ()


def check_types(work: Path) -> Iterable[str]:
    """A user's program is checked against the installed wheel by mypy --strict and by pyright"""
    python = work / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    _run(sys.executable, "-m", "venv", work / "venv")
    (wheel,) = (work / "dist").glob("*.whl")
    _run(python, "-m", "pip", "install", "--quiet", wheel, "typing-extensions", cwd=work)
    place = work / "program"
    place.mkdir()
    program = place / "program.py"
    program.write_bytes((REPOSITORY / "tests" / "typed_program.py").read_bytes())
    settings = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}
    (place / "pyrightconfig.json").write_text(json.dumps(settings))
    elsewhere = {"PYTHONPATH": "", "MYPYPATH": ""}
    mypy = ("mypy", "--strict", "--no-incremental", "--config-file=")
    for words in (
        (sys.executable, "-m", *mypy, "--python-executable", python, program),
        ("basedpyright", "--pythonpath", python, "--project", place),
    ):
        try:
            _run(*words, cwd=place, **elsewhere)
        except RuntimeError as error:
            yield str(error)


Check = Callable[[Path], Iterable[str]]
CHECKS: tuple[Check, ...] = (
    check_versions,
    check_sdist,
    check_wheel,
    check_metadata,
    check_warnings,
    check_types,
)

if __name__ == "__main__":
    sys.exit(main())
