"""The command line: which options are accepted, and what is said about the others."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from milvus_lifecycle import cli
from milvus_lifecycle.cli import demo as command


@pytest.mark.parametrize(
    ("text", "outages"),
    [("1,5", (1.0, 5.0)), ("0.1", (0.1,)), ("45", (45.0,)), (" 2 , 3", (2.0, 3.0))],
)
def test_outages_are_seconds(text: str, outages: tuple[float, ...]) -> None:
    """A list of seconds is taken as written."""
    assert command.parse_outages(text) == outages


@pytest.mark.parametrize(
    "option",
    [
        "--outages=",
        "--outages=1,,2",
        "--outages=soon",
        "--outages=0",
        "--outages=-1",
        "--outages=46",
        "--outages=nan",
        "--outages=inf",
        "--outages=" + ",".join(["1"] * 11),
        "--threads=0",
        "--threads=-3",
        "--threads=65",
        "--threads=8.0",
        "--threads=many",
        "--threads=²",
        "--json=/no/such/folder/figures.json",
        "--json=/",
        "--json=",
        "--report=/no/such/folder/report.html",
        "--audit=/",
        "--bogus",
    ],
)
def test_a_bad_option_is_refused_at_once(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line that names the option, before anything is started."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["demo", option])
    assert caught.value.code == cli.USAGE_ERROR
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert option.split("=")[0] in last_line
    assert "Traceback" not in last_line


@pytest.mark.parametrize(
    ("option", "accepted"), [("--outages=99", "0.1 to 45"), ("--threads=99", "1 to 64")]
)
def test_a_refusal_says_what_is_accepted(
    option: str, accepted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text of a refusal is enough to get it right the second time."""
    with pytest.raises(SystemExit):
        cli.main(["demo", option])
    assert accepted in capsys.readouterr().err


def test_a_json_file_may_exist_already(tmp_path: Path) -> None:
    """Running the demo twice with the same --json is no mistake. An --audit has to be empty."""
    path = tmp_path / "figures.json"
    path.write_text("{}")
    assert command.parse_file(str(path)) == path
    with pytest.raises(ArgumentTypeError, match="name a new file"):
        command.parse_new_file(str(path))
    path.write_text("")
    assert command.parse_new_file(str(path)) == path


@pytest.mark.parametrize(
    ("missing", "options", "extra"),
    [
        ("milvus_lite", [], "[demo]"),
        ("httpx", ["--failover"], "[demo,global]"),
        ("bokeh", ["--report=report.html"], "[demo,report]"),
    ],
)
def test_a_missing_extra_is_named(
    missing: str,
    options: list[str],
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without what a run needs, the demo says what to install instead of failing to import; only
    a failover needs an HTTP library, only a report a plotting library."""
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == missing else object()
    )
    assert cli.main(["demo", *options]) == cli.USAGE_ERROR
    said = capsys.readouterr().err
    assert missing.replace("_", "-") in said
    assert f"milvus-lifecycle{extra}" in said
    assert (command.find_obstacle() is None) == bool(options)


def test_no_subcommand_prints_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A bare `milvus-lifecycle` is wrong usage and lists every subcommand."""
    assert cli.main([]) == cli.USAGE_ERROR
    said = capsys.readouterr().err
    assert all(name in said for name in cli.COMMANDS)


def test_an_unknown_subcommand_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A misspelt subcommand gets the list of those that exist."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["demmo"])
    assert caught.value.code == cli.USAGE_ERROR
    assert "demo" in capsys.readouterr().err


def test_help_needs_no_extra() -> None:
    """`demo --help` works where neither pymilvus nor rich nor Milvus Lite can be imported."""
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['pymilvus', 'rich', 'milvus_lite']))\n"
        "from milvus_lifecycle.cli import main\n"
        "main(['demo', '--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--outages" in done.stdout


def test_every_subcommand_can_be_configured(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line of the table of subcommands names a module that really is one."""
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
    capsys.readouterr()
