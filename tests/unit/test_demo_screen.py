"""What the demo prints: sane without a terminal, and the figures side by side at the end."""

from __future__ import annotations

import io
import time

from rich.console import Console

from milvus_lifecycle.demo.child import Heard
from milvus_lifecycle.demo.figures import Figures, OutageFigures, Run
from milvus_lifecycle.demo.screen import View, print_summary


def make_console(*, terminal: bool = False) -> Console:
    """A console of 80 columns that writes into a string."""
    return Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)


def read(console: Console) -> str:
    """What was printed."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def make_record(trigger: str, source: str, dest: str, **fields: object) -> dict[str, object]:
    """A transition as the program's process reports it."""
    return {
        "event": "connection.transition",
        "connection_id": "connection-1",
        "address": "127.0.0.1:1",
        "trigger": trigger,
        "source": source,
        "dest": dest,
        "reason": "",
        "error_code": None,
        "generation": 1,
        "attempt": 0,
        "clients": 8,
        **fields,
    }


def make_run(title: str, *, failed: int) -> Run:
    """A finished run with one outage."""
    outage = OutageFigures(1.0, 1.8, 8, failed, 1 + failed, 0.12 if not failed else None)
    figures = Figures(
        workers=8,
        calls=1234,
        failed_calls=failed,
        unended_calls=0,
        channels=2 + failed,
        channels_at_start=1,
        slowest_rate=29.5,
        longest_call_s=1.9,
        calls_by_operation={"insert": 1234},
        transitions_by_trigger={} if failed else {"fail": 1, "recovered": 1},
        errors={"MilvusException: [gone]": failed} if failed else {},
        outages=[outage],
        moves=[],
        placement=None,
        clean_exit=True,
    )
    return Run(title, not failed, "module", 7 * failed, figures)


def test_transitions_are_lines_without_escapes_off_a_terminal() -> None:
    """A pipe gets one plain line for each transition, retries aside, and no live table."""
    console, heard = make_console(), Heard()
    heard.records += [
        make_record("fail", "ACTIVE", "RECOVERING", error_code="UNAVAILABLE"),
        make_record("retry", "RECOVERING", "RECOVERING"),
        make_record("recovered", "RECOVERING", "ACTIVE", reason="after [2] attempts"),
    ]
    view = View(console)
    view.begin_run("a run", heard)
    with view.live():
        view.show("regular work")
        view.show("regular work")
        view.say("killed [for] 1 s")
    title, *lines = read(console).splitlines()
    assert title == "a run"
    assert len(lines) == 3
    assert "ACTIVE -> RECOVERING fail UNAVAILABLE" in lines[0]
    assert "after [2] attempts" in lines[1]
    assert "killed [for] 1 s" in lines[2]
    assert "\x1b" not in read(console)


def test_a_terminal_shows_the_states_live() -> None:
    """80 columns of a terminal have room for the connections' states, below them the counts."""
    console, heard = make_console(terminal=True), Heard()
    record = make_record("probe_passed", "ACTIVE", "RECOVERING", attempt=3)
    heard.records.append({**record, "address": "127.0.0.1:65535"})
    now = time.monotonic()
    heard.add_call([0, "insert", now - 9, now - 8, None])
    heard.add_call([0, "search", now - 0.1, now, "gone"])
    view = View(console)
    view.begin_run("a run", heard)
    with view.live():
        view.show("the server is down")
        deadline = time.monotonic() + 20
        while "last step" not in read(console):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    said = read(console)
    assert "connection-1 127.0.0.1:65535 RECOVERING 1          3       8       probe_passed" in said
    assert "calls 2 (0/s)   failed 1 " in said
    assert "the server is down" in said


def test_the_summary_puts_both_runs_side_by_side() -> None:
    """One table with a column per run, each figure of the issue in it, in 80 columns."""
    console = make_console()
    print_summary(
        console,
        [make_run("with the engine", failed=0), make_run("pymilvus alone", failed=249)],
        "thread",
    )
    said = read(console)
    assert "\x1b" not in said
    rows = {line.split("│")[1].strip(): line for line in said.splitlines() if line.count("│") == 4}
    assert rows["calls"].count("1,234") == 2
    assert "8 of 8 threads" in rows["in flight at the kill"]
    assert "0.120 s" in rows["slowest thread's first good call after"]
    assert "none" in rows["slowest thread's first good call after"]
    assert "1,743" in rows["lines logged by pymilvus"]
    assert "with the engine: no call failed, of 1,234" in said
    assert "pymilvus alone: 249 of 1234 calls failed" in said
    assert "249 x MilvusException: [gone]" in said
    assert "recovered" in said
