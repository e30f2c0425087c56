"""`milvus-lifecycle run app.py` is `python app.py`, with its MilvusClients on the engine."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import milvus_lifecycle
from milvus_lifecycle.cli import main
from milvus_lifecycle.cli.run import interpreter_flags
from tests.processes import REPOSITORY

PROBE = REPOSITORY / "tests" / "run_probe.py"
PACKAGE = Path(milvus_lifecycle.__file__).parent
BOOTSTRAP = str(PACKAGE / "bootstrap")

#: What a program is given; argparse would understand some of it.
WORDS = ("--audit", "x", "-m", "--", "-h", "", "two words", "--", "run")


class Ended:
    """How a program ended, and what it printed: a line of JSON for each thing that it saw."""

    def __init__(self, process: subprocess.Popen[str], given: str) -> None:
        printed, self.errors = process.communicate(given, timeout=120)
        self.lines = printed.splitlines()
        self.code = process.returncode

    def seen(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for line in self.lines:
            found.update(json.loads(line) if line.startswith("{") else {line: True})
        return found


def start(folder: Path, words: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (environment.pop("PYTHONPATH", ""), str(REPOSITORY))))
    return subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *words: str, **environment: str) -> Ended:
    command = [sys.executable, "-m", "milvus_lifecycle", "run", *words]
    return Ended(start(folder, command, **environment), "")


def run_both(
    folder: Path, words: Sequence[str], flags: Sequence[str] = (), given: str = "", **env: str
) -> tuple[Ended, Ended]:
    """A program run by Python, and by us, at the same time."""
    plain = start(folder, [sys.executable, *flags, *words], **env)
    ours = start(folder, [sys.executable, *flags, "-m", "milvus_lifecycle", "run", *words], **env)
    return Ended(plain, given), Ended(ours, given)


def undo_announced(seen: dict[str, Any]) -> None:
    """What the docs say of `run`: two variables, and a finder until pymilvus is imported."""
    environment = seen["environ"]
    bootstrap, _, environment["PYTHONPATH"] = environment["PYTHONPATH"].partition(os.pathsep)
    assert bootstrap == BOOTSTRAP
    assert environment.pop("MILVUS_LIFECYCLE_RUN") == sys.prefix
    assert seen["meta_path"].pop(0) == "EngineFinder"


def assert_alike(plain: Ended, ours: Ended) -> None:
    """All that was seen is equal, but for what the docs announce."""
    assert (ours.errors, ours.code) == (plain.errors, plain.code)
    expected, seen = plain.seen(), ours.seen()
    if "environ" in seen:
        undo_announced(seen)
    different = {
        name: (value, seen.get(name)) for name, value in expected.items() if value != seen.get(name)
    }
    assert not different
    assert list(seen) == list(expected)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The probe in every form that Python runs, and in none."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("app.py", "sub/app.py", "bundle/__main__.py", "pkg/__main__.py", "pkg/inner.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROBE, folder / name)
    (folder / "pkg" / "__init__.py").touch()
    (folder / "bare").mkdir()
    (folder / "bare" / "__init__.py").touch()
    (folder / "broken.py").write_text("def broken(:\n")
    (folder / "link.py").symlink_to(folder / "sub" / "app.py")
    py_compile.compile(str(PROBE), cfile=str(folder / "compiled.pyc"))
    with zipfile.ZipFile(folder / "bundle.zip", "w") as bundle:
        bundle.write(PROBE, "__main__.py")
    return folder


@pytest.mark.parametrize(
    "program",
    [
        "app.py",
        "sub/app.py",
        "./sub/../app.py",
        "link.py",
        "compiled.pyc",
        "bundle",
        "bundle.zip",
        "-",
        "-m app",
        "-m pkg",
        "-m pkg.inner",
    ],
)
def test_a_program_sees_what_python_shows(programs: Path, program: str) -> None:
    """Its __main__, arguments, paths, modules, flags, streams, environment; also at its end."""
    given = PROBE.read_text() if program == "-" else ""
    plain, ours = run_both(programs, [*program.split(), "exit 3", *WORDS], given=given)
    assert plain.code == 3, plain.errors
    assert {"in the script", "at exit", "in a thread that outlives the script"} <= {*plain.seen()}
    assert_alike(plain, ours)


@pytest.mark.parametrize(
    ("program", "end"),
    [
        *(("app.py", end) for end in ("", "exit", "exit words", "error", "hook", "interrupt")),
        *(("-m app", end) for end in ("error", "interrupt")),
    ],
)
def test_a_program_ends_as_under_python(programs: Path, program: str, end: str) -> None:
    """Exit code or signal, traceback without a line of ours, its own excepthook."""
    assert_alike(*run_both(programs, [*program.split(), end]))


@pytest.mark.parametrize(
    "program", ["nowhere.py", "bare", "broken.py", "-m nowhere", "-m bare", "-m app.x", "-m broken"]
)
def test_what_cannot_be_run_is_said_as_python_says_it(programs: Path, program: str) -> None:
    """The same words, the same exit code."""
    plain, ours = run_both(programs, program.split())
    assert plain.code in (1, 2)
    assert plain.errors
    assert_alike(plain, ours)


def test_a_program_gets_the_flags_of_python(programs: Path) -> None:
    """Those before -m, also the ones that share a word with it."""
    flags = ["-O", "-W", "error::UserWarning", "-Xutf8", "-X", "int_max_str_digits=5000"]
    plain = start(programs, [sys.executable, *flags, "-Bu", "app.py"])
    ours = start(programs, [sys.executable, *flags, "-Bum", "milvus_lifecycle", "run", "app.py"])
    assert_alike(Ended(plain, ""), Ended(ours, ""))


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("/venv/bin/milvus-lifecycle run app.py", ""),
        ("-OO -P /venv/bin/milvus-lifecycle run -m app", "-OO -P"),
        ("-m milvus_lifecycle run -B app.py", ""),
        ("-mmilvus_lifecycle run -B app.py", ""),
        ("-Werror -sWdefault -X dev -c code run", "-Werror -sWdefault -X dev"),
        ("--check-hash-based-pycs always -m milvus_lifecycle", "--check-hash-based-pycs always"),
        ("- run app.py", ""),
        ("", ""),
    ],
)
def test_flags_end_where_the_program_begins(words: str, flags: str) -> None:
    """At -m, -c, the script or standard input."""
    assert interpreter_flags(words.split()) == flags.split()


def test_a_sitecustomize_of_the_users_is_run(programs: Path, tmp_path: Path) -> None:
    """Ours hides it and hands over to it."""
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    buffered = {"PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": ""}
    plain, ours = run_both(programs, ["app.py"], **buffered)
    assert plain.seen()["sitecustomize"] == str(tmp_path / "sitecustomize.py")
    assert ours.lines.count("mine") == 2  # of milvus-lifecycle itself, which is Python too
    assert_alike(plain, ours)


def test_pythons_of_other_environments_are_left_alone(programs: Path, tmp_path: Path) -> None:
    """What they inherit of us does nothing there."""
    theirs = {"PYTHONPATH": BOOTSTRAP, "MILVUS_LIFECYCLE_RUN": str(tmp_path)}
    plain = Ended(start(programs, [sys.executable, "app.py"]), "").seen()
    child = Ended(start(programs, [sys.executable, "app.py"], **theirs), "").seen()
    assert plain.pop("environ") != child.pop("environ")
    assert child == plain


_WHERE = """
import sys
import milvus_lifecycle, pymilvus
from pymilvus.client.connection_manager import ConnectionManager
print(milvus_lifecycle.__file__)
print(type(ConnectionManager.get_instance()).__module__, [repr(one) for one in sys.meta_path])
"""


def test_a_clone_that_is_not_installed_runs_its_own_engine(tmp_path: Path) -> None:
    """It is found by the working directory, which a program has nothing of."""
    (tmp_path / "app.py").write_text(_WHERE)
    command = [sys.executable, "-m", "milvus_lifecycle", "run", str(tmp_path / "app.py")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.stderr == ""
    where, what = ended.stdout.splitlines()
    assert where == str(PACKAGE / "__init__.py")
    assert what.startswith("milvus_lifecycle.managers")
    assert "EngineFinder" not in what


def unsupported(folder: Path) -> dict[str, str]:
    """A pymilvus of 2.5.0, as far as its metadata goes."""
    metadata = folder / "pymilvus-2.5.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: pymilvus\nVersion: 2.5.0\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize(
    ("words", "policy", "said"),
    [
        (("--audit", "no/such/folder/a.jsonl"), "", "audit='"),
        ((), '{"linger": -1}', "MILVUS_LIFECYCLE_POLICY: LifecyclePolicy: linger=-1 is not"),
        ((), '{"budget": 1}', "MILVUS_LIFECYCLE_POLICY is not a JSON object of LifecyclePolicy's"),
        (("--policy", "linger=-1"), "", "--policy: LifecyclePolicy: linger=-1 is not a number of"),
        ((), "[1", "MILVUS_LIFECYCLE_POLICY is not a JSON object of LifecyclePolicy's fields"),
        ((), None, "pymilvus 2.5.0 is not supported"),
    ],
)
def test_what_the_engine_refuses_is_said_in_a_line(
    tmp_path: Path, words: tuple[str, ...], policy: str | None, said: str
) -> None:
    """Before the program is started: exit code 2, no traceback."""
    (tmp_path / "app.py").write_text("print('started')")
    environment = unsupported(tmp_path) if policy is None else {"MILVUS_LIFECYCLE_POLICY": policy}
    ended = run(tmp_path, *words, "app.py", **environment)
    assert (ended.code, ended.lines) == (2, [])
    assert ended.errors.startswith("milvus-lifecycle run: ")
    assert said in ended.errors
    assert ended.errors.count("\n") == 1


def test_a_python_that_looks_at_no_environment_is_refused(programs: Path) -> None:
    """Nothing can be handed to it."""
    ours = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import milvus_lifecycle.cli as c"
    command = [sys.executable, "-E", "-c", f"{ours}; sys.exit(c.main(['run', 'app.py']))"]
    ended = Ended(start(programs, command), "")
    assert (ended.code, ended.lines) == (2, [])
    assert "-I, -E or -S" in ended.errors


_TWICE = """
import os
os.rmdir("logs")
for attempt in range(2):
    try:
        import pymilvus
    except ValueError as error:
        print(error)
"""


def test_a_program_never_goes_on_without_the_engine_unheard(tmp_path: Path) -> None:
    """What cannot be installed any more when pymilvus is imported fails that import, each time."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "app.py").write_text(_TWICE)
    ended = run(tmp_path, "--audit", "logs/audit.jsonl", "app.py")
    assert [line.partition("=")[0] for line in ended.lines] == ["audit", "audit"], ended.errors


_OWN = """
import milvus_lifecycle as ml
ml.install(policy=ml.LifecyclePolicy(recovery_budget=9))
from pymilvus.client.connection_manager import ConnectionManager
print(ConnectionManager.get_instance()._pool.policy.recovery_budget)
try:
    ml.install(policy=ml.LifecyclePolicy(recovery_budget=8))
except RuntimeError:
    print("refused")
"""


@pytest.mark.parametrize("first", ["", "import pymilvus"])
def test_an_install_of_the_programs_own_has_the_last_word(tmp_path: Path, first: str) -> None:
    """Before pymilvus is imported and after; and it is the only one, as without `run`."""
    (tmp_path / "app.py").write_text(first + _OWN)
    ended = run(tmp_path, "--audit", "audit.jsonl", "app.py")
    assert (ended.errors, ended.lines, ended.code) == ("", ["9", "refused"], 0)


_CHILD = """
import multiprocessing, sys
def show():
    import pymilvus
    from milvus_lifecycle import ConnectionManager
    policy = ConnectionManager.get_instance()._pool.policy
    print(policy.recovery_budget, policy.linger, policy.max_age, flush=True)
if __name__ == "__main__":
    show()
    process = multiprocessing.get_context("spawn").Process(target=show)
    process.start()
    process.join()
"""


@pytest.mark.slow
def test_fields_of_the_policy_reach_the_program_and_its_children(tmp_path: Path) -> None:
    """With what the environment says of the other fields."""
    (tmp_path / "app.py").write_text(_CHILD)
    words = ["--policy", "recovery_budget=9", "--policy=linger=none", "app.py"]
    ended = run(tmp_path, *words, MILVUS_LIFECYCLE_MAX_AGE="60", MILVUS_LIFECYCLE_LINGER="1")
    assert (ended.errors, ended.lines, ended.code) == ("", ["9 None 60"] * 2, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("lingr=3", "'lingr=3': LifecyclePolicy has no field 'lingr'; it has idle_threshold, "),
        ("linger", "'linger' names no value, as in linger=30"),
    ],
)
def test_a_field_that_there_is_not_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], given: str, said: str
) -> None:
    """Said by argparse, as for any other option."""
    with pytest.raises(SystemExit) as ended:
        main(["run", "--policy", given, "app.py"])
    assert ended.value.code == 2
    assert f"argument --policy: {said}" in capsys.readouterr().err
