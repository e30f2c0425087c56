"""What all commands share: their help, its examples, the version, and completion by a shell."""

from __future__ import annotations

import io
import shlex
import subprocess
from pathlib import Path

import pytest

import milvus_lifecycle
from milvus_lifecycle import cli
from milvus_lifecycle.cli.audit import Paint

HELPS = [
    "",
    *cli.COMMANDS,
    *(f"audit {name}" for name in ("verify", "stats", "tail", "report")),
]


@pytest.mark.parametrize("command", HELPS)
def test_help_has_examples_that_can_be_typed(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on a line of its own, however narrow the terminal, and the exit codes after them."""
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    if command == "audit":  # it has subcommands of its own
        return
    examples = [line for line in said.splitlines() if line.startswith(f"  {cli.PROGRAM} ")]
    assert examples
    assert "exit code" in " ".join(said.split()).lower()
    for line in examples:
        words = shlex.split(line.partition(" >>")[0])[1:]
        assert words[: len(command.split())] == command.split()
        if "COMMAND" not in words:
            assert cli.build_parser(words[:1]).parse_args(words).execute_command


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """That of the package."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"milvus-lifecycle {milvus_lifecycle.__version__}\n"


@pytest.mark.parametrize(
    ("terminal", "variable", "colours"),
    [(True, None, True), (True, "", True), (True, "1", False), (False, None, False)],
)
def test_colours_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, variable: str | None, colours: bool
) -> None:
    """And not if NO_COLOR is set to anything but an empty text."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if variable is not None:
        monkeypatch.setenv("NO_COLOR", variable)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    assert ("\x1b" in Paint.of(stream)("text", "red")) is colours


@pytest.mark.parametrize(("package", "extra"), [("certifi", "global"), ("shtab", "completion")])
def test_what_is_missing_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], package: str, extra: str
) -> None:
    """Exit code 2, no traceback."""

    def fail(shell: str) -> str:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(cli, "_completion", fail)
    assert cli.main(["--completion", "bash"]) == cli.USAGE_ERROR
    said = capsys.readouterr().err
    assert said.endswith(f": this needs {package}: pip install 'milvus_lifecycle[{extra}]'\n")


def test_bash_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Commands, their options, and files where they take one."""
    pytest.importorskip("shtab")
    assert cli.main(["--completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "audit.jsonl").touch()

    def complete(*words: str) -> list[str]:
        line = " ".join(map(shlex.quote, ("milvus-lifecycle", *words)))
        asked = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_milvus_lifecycle"
        shown = 'printf "%s\\n" "${COMPREPLY[@]}"'
        ended = subprocess.run(
            ["bash", "-c", f"{script}\n{asked}\n{shown}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return ended.stdout.split()

    assert complete("pro") == ["probe"]
    assert complete("audit", "ver") == ["verify"]
    assert "--token-env" in complete("probe", "--to")
    assert "audit.jsonl" in complete("audit", "stats", "aud")
    assert "audit.jsonl" in complete("diagram", "--output", "aud")
