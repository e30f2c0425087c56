"""What the demo prints: sane without a terminal, and the figures side by side at the end."""

from __future__ import annotations

import io
import time

from rich.console import Console

from milvus_lifecycle.demo.figures import Blow, Call, Run, Seen, take_figures
from milvus_lifecycle.demo.screen import View, print_summary
from milvus_lifecycle.testing import until


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
    """A finished run of one worker with one outage."""
    seen = Seen(1, steady=(0.0, 1.0), log_lines=7 * failed)
    seen.blows = [Blow("outage 1", "killed", healed_at=2.8, killed_at=1.0)]
    calls = [Call(0, number, number / 2000, number / 2000 + 0.0001) for number in range(1233)]
    calls += [Call(0, None, 0.9, 2.92, "MilvusException: [gone]" if failed else None)]
    for call in calls + calls[-1:] * (failed - 1):
        seen.add_call(call)
    if not failed:
        seen.records += [make_record("fail", "ACTIVE", "RECOVERING")]
        seen.records += [make_record("recovered", "RECOVERING", "ACTIVE")]
    return take_figures(title, seen)


def test_transitions_are_lines_without_escapes_off_a_terminal() -> None:
    """A pipe gets one plain line for each transition, retries aside, and no live table."""
    console, seen = make_console(), Seen(1)
    seen.records += [
        make_record("fail", "ACTIVE", "RECOVERING", error_code="UNAVAILABLE"),
        make_record("retry", "RECOVERING", "RECOVERING"),
        make_record("recovered", "RECOVERING", "ACTIVE", reason="after [2] attempts"),
    ]
    view = View(console, "a run", seen)
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
    console, seen = make_console(terminal=True), Seen(2)
    record = make_record("probe_passed", "ACTIVE", "RECOVERING", attempt=3)
    seen.records.append({**record, "address": "127.0.0.1:65535"})
    now = time.monotonic()
    seen.add_call(Call(0, 1, now - 9, now - 8))
    seen.add_call(Call(0, None, now - 0.1, now, "gone"))
    view = View(console, "a run", seen)
    with view.live():
        view.show("the server is down")
        until(lambda: "last step" in read(console), 20, "nothing is shown")
    said = read(console)
    assert "connection-1 127.0.0.1:65535 RECOVERING 1          3       8       probe_passed" in said
    assert "calls 2 (0/s)   failed 1 " in said
    assert "the server is down" in said


def test_the_summary_puts_both_runs_side_by_side() -> None:
    """One table with a column per run, each figure of the issue in it, in 80 columns."""
    console = make_console()
    runs = [make_run("with the engine", failed=0), make_run("pymilvus alone", failed=249)]
    print_summary(console, runs)
    said = read(console)
    assert "\x1b" not in said
    rows = {line.split("│")[1].strip(): line for line in said.splitlines() if line.count("│") == 4}
    assert "1,234" in rows["calls"]
    assert "1 of 1" in rows["workers in flight at the kill"]
    assert "0.120 s" in rows["slowest worker's first good call after"]
    assert "never" in rows["slowest worker's first good call after"]
    assert "1,743" in rows["lines logged by pymilvus"]
    assert "with the engine: no call failed, of 1,234" in said
    assert "pymilvus alone: 249 of 1482 calls failed" in said
    assert "249 x MilvusException: [gone]" in said
    assert "recovered" in said
