"""``milvus-lifecycle diagram``: every format, every mistake, and the drift check's exit code."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from milvus_lifecycle.cli import main
from milvus_lifecycle.diagram.drawing import draw
from milvus_lifecycle.diagram.formats import render_svg, to_dot, to_mermaid

DIAGRAMS = Path(__file__).parents[2] / "diagrams"

RECORD = {
    "event": "connection.transition",
    "ts": "2026-01-01T00:00:00+00:00",
    "seq": 1,
    "connection_id": "3f2a9c01",
    "trigger": "retry",
    "source": "RECOVERING",
    "dest": "RECOVERING",
    "dwell_s": 0.25,
}


def run(*arguments: object) -> int:
    """The subcommand's exit code; argparse's own exits count as theirs."""
    try:
        return main(["diagram", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    path.write_text(json.dumps(RECORD) + "\n")
    return path


def test_mermaid_goes_to_standard_output(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """Without options the table's Mermaid text is printed."""
    assert run() == 0
    assert capsysbinary.readouterr().out.decode() == to_mermaid(draw())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.mmd", to_mermaid), ("a.md", to_mermaid), ("a.dot", to_dot), ("a.GV", to_dot)],
)
def test_the_suffix_names_the_format(tmp_path: Path, name: str, expected: object) -> None:
    """-o FILE alone is enough where FILE says what it is."""
    assert callable(expected)
    assert run("-o", tmp_path / name) == 0
    assert (tmp_path / name).read_text(encoding="utf-8") == expected(draw())


def test_pictures(tmp_path: Path, log: Path) -> None:
    """SVG and PNG are written by suffix or by --format, annotated too."""
    pytest.importorskip("pygraphviz", reason="needs the extra milvus_lifecycle[diagram]")
    assert run("-o", tmp_path / "a.svg") == 0
    assert run("--format", "png", "-o", tmp_path / "picture") == 0
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")
    assert run("--audit", log, "-o", tmp_path / "b.svg") == 0
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    assert "retry" in (tmp_path / "b.svg").read_text(encoding="utf-8")


def test_a_png_is_not_thrown_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Binary output to a terminal is refused with the way out."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("--format", "png") == 2
    assert "-o FILE" in capsys.readouterr().err


def test_missing_pygraphviz_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The error names the extra; no traceback, no file."""
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    assert run("-o", tmp_path / "a.svg") == 2
    error = capsys.readouterr().err
    assert "pip install 'milvus_lifecycle[diagram]'" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_logs_may_be_many_packed_or_patterns(
    tmp_path: Path, log: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Several files, gzip and globs are read one after the other, and none twice."""
    (tmp_path / "old.jsonl.gz").write_bytes(gzip.compress(log.read_bytes() * 2))
    assert run("--audit", log, tmp_path / "old.jsonl.gz", tmp_path / "*.jsonl") == 0
    assert "\u00d73" in capsysbinary.readouterr().out.decode()


def test_what_was_left_out_is_told(log: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """A damaged line costs itself, and whoever looks at the picture knows."""
    log.write_bytes(log.read_bytes() + b"not json\n" + log.read_bytes())
    assert run("--audit", log) == 0
    out, err = capsysbinary.readouterr()
    assert "\u00d72" in out.decode()
    assert b"left out: 1 finding;" in err


def test_the_path_of_one_connection(log: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """--connection highlights it; an id that is not in the log is an error with a hint."""
    assert run("--audit", log, "--connection", "3f2a9c01") == 0
    assert "What connection 3f2a9c01 did" in capsysbinary.readouterr().out.decode()
    assert run("--audit", log, "--connection", "3f2a9c0x") == 2
    assert b"did you mean '3f2a9c01'" in capsysbinary.readouterr().err


def test_something_else_is_no_log(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Lines without a single record are refused; an empty log is a drawing in which all is dim."""
    path = tmp_path / "app.log"
    path.write_text("hello\n")
    assert run("--audit", path) == 2
    out, err = capsysbinary.readouterr()
    assert (out, err.count(b"\n")) == (b"", 1)
    assert f"{path}: no audit record in it".encode() in err
    path.write_text("")
    assert run("--audit", path) == 0


def test_a_picture_says_nothing_on_standard_error(tmp_path: Path) -> None:
    """The bundled Fontconfig complains of configurations newer than itself: nobody can help it."""
    pytest.importorskip("pygraphviz", reason="needs the extra milvus_lifecycle[diagram]")
    fonts = tmp_path / "fonts.conf"
    fonts.write_text("<fontconfig><newer/><include>/etc/fonts/fonts.conf</include></fontconfig>")
    done = subprocess.run(
        [sys.executable, "-m", "milvus_lifecycle", "diagram", "-o", str(tmp_path / "a.svg")],
        env={**os.environ, "FONTCONFIG_FILE": str(fonts)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    assert (tmp_path / "a.svg").stat().st_size > 1000


def test_what_else_is_said_while_drawing_is_heard(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Only Fontconfig's lines are dropped, and an error of the drawing itself comes through."""

    class Graph:
        def __init__(self, string: str) -> None: ...

        def draw(self, path: None, **how: object) -> bytes:
            os.write(2, b"Fontconfig warning: unknown\nError: real trouble\n")
            raise RuntimeError("no picture")

        def close(self) -> None: ...

    monkeypatch.setitem(sys.modules, "pygraphviz", SimpleNamespace(AGraph=Graph))
    with pytest.raises(RuntimeError, match="no picture"):
        render_svg(draw())
    assert capfd.readouterr().err == "Error: real trouble\n"


def test_mistakes_are_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each wrong use has exit code 2 and says what would be right."""
    (tmp_path / "a.dot").mkdir()
    cases = {
        ("--connection", "c"): "--audit LOG",
        ("-o", str(tmp_path / "a.pdf")): "none of .md .mmd",
        ("-o", str(tmp_path / "none" / "a.mmd")): "No such file",
        ("-o", str(tmp_path / "a.dot")): "directory",
        ("--audit", str(tmp_path / "none.jsonl")): "No such file",
        ("--audit", str(tmp_path)): "directory",
        ("--audit", str(tmp_path / "*.none")): "no file matches",
        ("--check", str(tmp_path / "none")): "no directory",
        ("--check", str(tmp_path), "-o", "a.svg"): "no other option",
    }
    for arguments, words in cases.items():
        assert run(*arguments) == 2, arguments
        assert words in capsys.readouterr().err


def test_check_tells_drift_by_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 and a good word for the repository's folder, 1 and the remedy for an empty one."""
    assert run("--check", DIAGRAMS) == 0
    assert "show the table" in capsys.readouterr().out
    assert run("--check", tmp_path) == 1
    assert "--write" in capsys.readouterr().out


def test_write_draws_what_check_accepts(tmp_path: Path) -> None:
    """--write into a new folder, then --check of it."""
    pytest.importorskip("pygraphviz", reason="needs the extra milvus_lifecycle[diagram]")
    assert run("--write", tmp_path / "new") == 0
    assert run("--check", tmp_path / "new") == 0
