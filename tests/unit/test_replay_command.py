"""``milvus-lifecycle audit``: options, output and exit codes, as a person sees them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from milvus_lifecycle.cli import audit as command
from milvus_lifecycle.cli import main
from milvus_lifecycle.cli import tail as command_tail
from tests.audit_logs import Story, merged, write_log
from tests.corruption import encode, join
from tests.observe import wait_until


@pytest.fixture
def log(tmp_path: Path) -> str:
    stories = (
        Story("aa11", "one:1").connect().outage(2.0, 0.5, 1.0),
        Story("bb22", "two:1").connect(),
    )
    return write_log(tmp_path / "audit.jsonl", merged(*stories))


@pytest.fixture
def bad_log(tmp_path: Path) -> str:
    records = merged(Story("aa11", "one:1").connect().outage(2.0, 0.5, 1.0))
    records[3]["dest"] = "PROBING"
    path = tmp_path / "bad.jsonl"
    path.write_bytes(join([encode(record) for record in records]) + b'{"event": "connec')
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["audit", *words])
    return code, capsys.readouterr().out


# -- verify ------------------------------------------------------------------------------------


def test_verify_says_legal(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0, and one line that says what was read."""
    code, out = run(capsys, "verify", log)
    assert code == 0
    assert out.startswith("legal: 9 records of 2 connections in 1 file, ")


def test_verify_says_what_is_wrong_and_where(
    bad_log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; each finding is one line that begins with file and line."""
    code, out = run(capsys, "verify", bad_log)
    lines = out.splitlines()
    assert code == 1
    assert lines[0].startswith(f"{bad_log}:4: illegal-transition: ACTIVE -> PROBING on fail is no")
    assert lines[0].endswith("from ACTIVE, fail leads to RECOVERING  [aa11 one:1]")
    assert lines[1].startswith(f"{bad_log}:5: source-mismatch: ")
    assert "(see line 4)" in lines[1]
    assert lines[2].startswith(f"{bad_log}:7: cut-line: ")
    assert lines[-1].startswith("NOT LEGAL: ")
    assert "6 records of 1 connection" in lines[-1]


def test_verify_as_json(bad_log: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` is one object with everything in it, and the same exit code."""
    code, out = run(capsys, "verify", "--json", bad_log)
    told = json.loads(out)
    assert (code, told["exit_code"], told["legal"], told["violations"]) == (1, 1, False, 3)


def test_verify_without_the_file_is_two(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 where a file could not be opened, although the other one is legal."""
    assert main(["audit", "verify", log, log + ".missing"]) == 2
    told = capsys.readouterr()
    assert told.err == f"{log}.missing: unreadable: cannot be opened: No such file or directory\n"
    assert told.out.startswith("no verdict: 1 file could not be opened; no violation in 9 records")


@pytest.mark.parametrize(
    ("words", "content", "code", "told"),
    [
        # "": the file is not there
        (("verify",), "", 2, "{log}: unreadable: cannot be opened: No such file or directory"),
        (("stats",), "", 2, "{log}: unreadable: cannot be opened: No such file or directory"),
        (("report", "-o", "{out}"), "", 2, "{log}: unreadable: cannot be opened: No such file"),
        (("tail",), "", 2, "{log}: cannot be opened: No such file or directory"),
        (("verify", "-q"), "\n", 2, "nothing to verify: no record in 1 file"),
        (("stats",), "\n", 0, "0 records"),
        (("report", "-o", "{out}"), "\n", 2, "{log}: no audit record in it: empty"),
        (("tail",), "\n", 0, ""),
        (("verify", "-q"), "no JSON", 1, "NOT LEGAL: 1 foreign-line in 0 records"),
        (("stats",), "no JSON", 2, "{log}: no audit record in it; audit verify says why"),
        (("stats", "--json"), "no JSON", 2, "{log}: no audit record in it;"),
        (("report", "-o", "{out}"), "no JSON", 2, "{log}: no audit record in it;"),
        (("tail",), "no JSON", 2, "{log}: no audit record in it; audit verify says why"),
    ],
)
def test_a_log_without_a_record_is_one_line(
    words: tuple[str, ...],
    content: str,
    code: int,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Missing, empty, or something else: one line says so, no figures, no page, no verdict."""
    log, out = tmp_path / "log.jsonl", tmp_path / "page.html"
    if content:
        log.write_text(content)
    command = [word.format(out=out) for word in words]
    assert main(["audit", command[0], str(log), *command[1:]]) == code
    lines = "".join(capsys.readouterr()).splitlines()
    assert len(lines) == int(bool(told))
    assert "".join(lines).startswith(told.format(log=log))
    assert not out.exists()


def test_an_empty_log_has_figures_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Healthy connections write nothing: an alert that asks an empty log gets zeros."""
    (tmp_path / "log.jsonl").touch()
    code, out = run(capsys, "stats", "--json", str(tmp_path / "log.jsonl"))
    assert (code, json.loads(out)["total"]["give_ups"]) == (0, 0)


def test_verify_can_be_brief_and_can_ignore(
    bad_log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """``-q`` prints the verdict alone, ``--ignore`` drops a kind of finding."""
    _, out = run(capsys, "verify", "-q", "--ignore", "cut-line", bad_log)
    assert len(out.splitlines()) == 1
    assert "cut-line" not in out


def test_verify_reads_standard_input(
    log: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-`` is standard input."""
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(Path(log).read_bytes())))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out = run(capsys, "verify", "-")
    assert (code, out.startswith("legal: 9 records")) == (0, True)


def test_verify_reads_a_pipe_with_several_jobs(log: str) -> None:
    """A stream cannot be shared out to workers: it is read here, whatever ``--jobs`` says."""
    words = ["audit", "verify", "--jobs", "2", "-"]
    done = subprocess.run(
        [sys.executable, "-m", "milvus_lifecycle", *words],
        input=Path(log).read_bytes(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout[:16]) == (0, b"legal: 9 records"), done.stderr


def test_output_into_a_closed_pipe_is_no_error(bad_log: str) -> None:
    """``| head`` ends the output, and nothing else."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "milvus_lifecycle", "audit", "verify", bad_log],
            stdout=out,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "words", [["verify"], ["verify", "--jobs", "-1", "x"], ["report", "x"], []]
)
def test_wrong_usage_is_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse explains, with exit code 2."""
    with pytest.raises(SystemExit) as raised:
        main(["audit", *words])
    assert raised.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_progress_is_for_people_at_a_terminal(
    log: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, on a terminal, for long input; never in a pipe."""
    monkeypatch.setattr(command, "WORTH_IT", 0)
    run(capsys, "verify", log)
    with command.progress(10**9, "reading") as on_progress:
        assert on_progress is None
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with command.progress(10**9, "reading") as on_progress:
        assert on_progress is not None
        on_progress(5 * 10**8)
    assert "reading:  50%" in terminal.getvalue()


# -- stats, tail -----------------------------------------------------------------------


def test_stats_as_tables_and_as_json(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people, an object for programs, the same figures."""
    code, out = run(capsys, "stats", log)
    assert code == 0
    assert "Connections and outages" in out
    assert "one:1" in out
    code, out = run(capsys, "stats", "--json", log)
    assert json.loads(out)["endpoints"]["one:1"]["recoveries"] == 1


def test_stats_says_what_it_could_not_read(
    bad_log: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures of a damaged log come with what was left out, on standard error."""
    assert main(["audit", "stats", bad_log, "/missing.jsonl"]) == 2
    told = capsys.readouterr()
    assert "7: cut-line" in told.err
    assert "/missing.jsonl: unreadable" in told.err
    assert "6 records" in told.out


def test_tail_shows_the_last_transitions(log: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As many as asked for, filtered, or as they stand."""
    code, out = run(capsys, "tail", "-n", "2", log)
    assert code == 0
    assert [line.split()[1:4] for line in out.splitlines()[1:]] == [
        ["RECOVERING", "→", "RECOVERING"],
        ["RECOVERING", "→", "ACTIVE"],
    ]
    _, out = run(capsys, "tail", "--json", "--connection", "bb", "--trigger", "probe_passed", log)
    (line,) = out.splitlines()
    assert json.loads(line)["connection_id"] == "bb22"
    _, out = run(capsys, "tail", "--since", "2026-03-01T09:00:05Z", "--address", "one", log)
    assert len(out.splitlines()) == 4
    assert main(["audit", "tail", log + ".missing"]) == 2


def test_tail_follows(
    log: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-f`` shows what is added, until Ctrl-C."""
    stop = threading.Event()
    seen: list[str] = []

    def pause(_: float) -> None:
        seen.append(capsys.readouterr().out)
        stop.wait(0.01)
        if stop.is_set():
            raise KeyboardInterrupt

    monkeypatch.setattr(command_tail, "sleep", pause)
    story = merged(Story("cc33", "three:1").connect())

    def add() -> None:
        try:
            wait_until(lambda: any("two:1" in out for out in seen), 10.0)
            with open(log, "ab") as file:
                file.write(join([encode(record) for record in story]))
            wait_until(lambda: any("three:1" in out for out in seen), 10.0)
        finally:
            stop.set()

    writer = threading.Thread(target=add)
    writer.start()
    assert main(["audit", "tail", "-f", log]) == 130
    writer.join()
    out = "".join(seen)
    assert out.count("cc33") == len(story)
    assert out.count("aa11 #1 ") == 1


WITHOUT_MSGSPEC = """
import sys
sys.modules["msgspec"] = None
from milvus_lifecycle.cli import main
for words in (*sys.argv[1:], "audit verify --help", "audit report --help", "diagram"):
    try:
        print("exit code", main(words.split()))
    except SystemExit as stop:
        print("exit code", stop.code)
"""


def test_reading_without_msgspec_names_the_extra(log: str) -> None:
    """A log cannot be read without it, and a line says how to get it. All else works."""
    reading = ("audit verify", "audit stats", "audit tail", "audit report -o x.html")
    words = [f"{command} {log}" for command in (*reading, "diagram --audit")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MSGSPEC, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    codes = [line for line in done.stdout.splitlines() if line.startswith("exit code")]
    assert codes == ["exit code 2"] * 5 + ["exit code 0"] * 3
    told = "milvus-lifecycle: this needs msgspec: pip install"
    assert done.stderr.splitlines() == [f"{told} 'milvus_lifecycle[audit]'"] * 5
