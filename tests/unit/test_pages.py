"""Each code block of README.md and docs/ is run: here, or by the test that is named here."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from pymilvus import MilvusClient

import milvus_lifecycle as ml
from tests.audit_logs import Story, merged, write_log
from tests.pages import Block, blocks
from tests.processes import REPOSITORY

BLOCKS = blocks()
SETTINGS = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
COMMANDS = ("", "sh", "bash")

#: Who runs the programs of a page; it names each by the heading above.
RUN_BY = {
    ("getting-started.md", "python"): "integration/test_services.py",
    ("services.md", "python"): "integration/test_services.py",
    ("recipes.md", "python"): "integration/test_recipes.py",
    ("integration.md", "gevent"): "integration/test_gevent.py",
}

#: No program of ours reads these, and why; by the page, the language, and how the block begins.
SHOWN = {
    ("audit.md", "toml", "[sources.milvus_audit]"): "Vector is not installed here",
    ("audit.md", "text", "/var/log/app/milvus-audit.jsonl {"): "logrotate is not installed here",
    ("audit.md", "text", "audit.jsonl:1342: illegal"): "test_the_finding_of_the_page",
    ("testing.md", "text", "2,695 mutants"): "printed after hours",
    ("operations.md", "json", '{"installed"'): "test_the_status_of_the_page",
}

PROGRAMS = [block for block in BLOCKS if block.language == "python"]
OURS = [b for b in PROGRAMS if not {(b.page, "python"), (b.page, b.title)} & set(RUN_BY)]
LINES = {
    f"{block.page}: {line}": shlex.split(line, comments=True)
    for block in BLOCKS
    if block.language in COMMANDS
    for line in block.text.splitlines()
}


def _is_run(block: Block) -> bool:
    if block.language == "sql":
        return block.page == "audit.md"  # test_audit_docs.py has them all
    # Programs and commands: below. Directives: the build of the site.
    return block.language in (*COMMANDS, "python") or block.language.startswith("{")


def test_each_block_is_run_by_somebody() -> None:
    """A block of a new kind, or in a place where nobody looks, fails here until it has a test."""
    others = [
        (block.page, block.language, block.text.splitlines()[0])
        for block in BLOCKS
        if not _is_run(block)
    ]
    listed = [next((key for key in SHOWN if _begins(other, key)), other) for other in others]
    assert sorted(listed) == sorted(SHOWN)


def _begins(block: tuple[str, str, str], key: tuple[str, str, str]) -> bool:
    return block[:2] == key[:2] and block[2].startswith(key[2])


def test_whoever_is_said_to_run_a_program_names_it() -> None:
    """A program under a new heading has no test until that heading stands in one."""
    for block in PROGRAMS:
        where = RUN_BY.get((block.page, "python")) or RUN_BY.get((block.page, block.title))
        if where is not None:
            source = (REPOSITORY / "tests" / where).read_text("utf-8")
            assert f'"{block.title}"' in source or f"## {block.title}$" in source, block


@pytest.mark.parametrize("block", OURS, ids=str)
def test_a_program_runs(block: Block, tmp_path: Path) -> None:
    """As it stands, but for where it writes to."""
    text = block.text.replace("/var/log/app", str(tmp_path))
    try:
        if "install(" not in text:
            ml.install()
        exec(compile(text, str(block), "exec"), {"mock": mock, "MilvusClient": MilvusClient})
    finally:
        ml.uninstall()


@pytest.mark.parametrize("line", LINES)
def test_a_command_means_something(line: str) -> None:
    """What it names is there: extras, environments, modules and their options, kinds, paths."""
    for command in " ".join(LINES[line]).split(" && "):
        _, *rest = words = list(itertools.dropwhile(_variable, command.split()))
        if words[0] == "pip" or words[:3] == ["python", "-m", "pip"]:
            _check_pip(words)
        elif words[0] == "pytest":
            _check_pytest(rest)
        elif words[0] == "tox":
            environments = rest[rest.index("-e") + 1].split(",") if "-e" in rest else []
            assert all(f'"{name}"' in SETTINGS for name in environments)
        elif words[:2] == ["python", "-m"]:
            _check_module(words[2], words[3:])
        elif words[0] == "milvus-lifecycle":
            place = "" if words[1].startswith("-") else f".{words[1]}"
            _check_module(f"milvus_lifecycle.cli{place}", words[1:])
        else:
            assert words[0] in ("milvus-lite", "lint-imports", "opentelemetry-instrument")


def _variable(word: str) -> bool:
    """Is it NAME=VALUE in front of a command? The name has to be known to somebody."""
    name, equals, _ = word.partition("=")
    if not equals or not name.isupper():
        return False
    assert f'"{name}"' in _tests()
    return True


@functools.cache
def _tests() -> str:
    """The sources of all tests, but for this one."""
    others = (path for path in (REPOSITORY / "tests").rglob("*.py") if path != Path(__file__))
    return "".join(path.read_text("utf-8") for path in others)


def _check_pip(words: list[str]) -> None:
    for word in words[2:]:
        if extras := re.fullmatch(r"(?:\.|.*milvus_lifecycle)\[(.+)\]", word):
            for extra in extras[1].split(","):
                assert re.search(rf"^{extra} = \[", SETTINGS, re.MULTILINE), extra
        elif re.search("[<>=]", word):
            assert f'"{word}"' in SETTINGS, word


def _check_pytest(words: list[str]) -> None:
    within = [str(REPOSITORY / word) for word in words if word.startswith("tests/")]
    assert all(Path(path).exists() for path in within), within
    joined = " ".join(words)
    for kind in re.findall(r"-m (\w+)", joined):
        assert f'    "{kind}: ' in SETTINGS, kind
    named = re.search(r"-k (.+)$", joined)
    for word in re.findall(r"\w+", named[1]) if named else ():
        assert word in ("and", "or", "not") or word in _tests(), word


def _check_module(name: str, options: list[str]) -> None:
    found = importlib.util.find_spec(name)
    assert found is not None
    main = f"{name}.__main__" if found.submodule_search_locations else name
    main = name if name == "milvus_lifecycle.cli" else main
    found = importlib.util.find_spec(main)
    assert found is not None
    assert found.origin is not None
    source = Path(found.origin).read_text("utf-8")
    assert all(f'"{word}"' in source for word in _flags(options)), options


def _flags(words: list[str]) -> list[str]:
    return [word for word in (word.strip("[]") for word in words) if word.startswith("--")]


#: Those that need a server: their own tests run them.
ELSEWHERE = (["milvus-lifecycle", "demo"], ["milvus-lifecycle", "probe"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        line
        for line, words in LINES.items()
        if words[0] == "milvus-lifecycle" and words[:2] not in ELSEWHERE
    ],
)
def test_a_command_of_ours_runs(line: str, tmp_path: Path) -> None:
    """In a folder with a log and a program."""
    story = Story("c1", "milvus:19530").connect().outage(5, 1, 2).step("close", "CLOSED", 3)
    for name in ("audit.jsonl", "milvus-audit.jsonl"):
        write_log(tmp_path / name, merged(story))
    for name in ("app.py", "module.py"):
        (tmp_path / name).write_text("import pymilvus, sys\nprint(sys.argv[1:], flush=True)")
    words = itertools.takewhile(lambda word: word != ">", LINES[line][1:])
    said = [_filled_in(word.strip("[]")) for word in words if word != "...]"]
    process = subprocess.Popen(
        [sys.executable, "-m", "milvus_lifecycle", *said],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        if "-f" in said:
            assert process.stdout.readline()
            process.kill()
            return
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0, printed
        assert said[-1] in os.listdir(tmp_path) or printed


def _filled_in(word: str) -> str:
    for name, value in {
        "PATH": "run.jsonl",
        "FIELD=VALUE": "linger=60",
        "/var/log/app/": "",
        "jsonl*": "jsonl",
    }.items():
        word = word.replace(name, value)
    return word


def test_the_status_of_the_page() -> None:
    """operations.md shows the names that there are."""
    (shown,) = (json.loads(block.text) for block in BLOCKS if block.language == "json")
    assert list(shown) == list(ml.status())


def test_the_finding_of_the_page(tmp_path: Path) -> None:
    """audit.md shows what `verify` says, but for the place."""
    story = Story("c1", "milvus:19530").step("acquire", "PROBING", 1).step("release", "IDLE", 1)
    write_log(tmp_path / "audit.jsonl", merged(story))
    (shown,) = (b.text for b in BLOCKS if b.title == "verify: is it legal?" and b.language)
    command = [sys.executable, "-m", "milvus_lifecycle", "audit", "verify", "audit.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    text = re.search(r"illegal-transition: .*(?=  \[)", " ".join(shown.split("\n")))
    assert text is not None
    assert text[0] in done.stdout


def test_references_have_definitions() -> None:
    """``[text][name]`` without a definition is shown as it stands, and no build complains."""
    for path in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        text = re.sub(r"```.*?```|`[^`\n]+`", "", path.read_text("utf-8"), flags=re.DOTALL)
        for name in re.findall(r"\]\[([^\]\n]+)\]", text):
            assert re.search(rf"^\[{re.escape(name)}\]: ", text, re.MULTILINE), (path.name, name)


def test_every_public_name_is_in_the_reference() -> None:
    """Errors among them, whose module is there as a whole; the build fails for one too many."""
    text = "".join(block.text for block in BLOCKS if block.page == "api.md")
    listed = re.findall(r"auto(?:class|function):: (\w+)$", text, re.MULTILINE)
    errors = {name for name in ml.__all__ if getattr(ml, name).__module__.endswith("errors")}
    assert sorted({*listed} | errors) == sorted(ml.__all__)
