"""Plays the demo: once on the engine and, to compare, once on pymilvus's own manager."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from milvus_lifecycle.demo.child import Heard, Workload
from milvus_lifecycle.demo.errors import WorkloadFailed
from milvus_lifecycle.demo.measure import (
    CHANNEL_LIMIT,
    FIRST_GOOD_LIMIT_S,
    RATE_LIMIT,
    Observations,
    Outage,
    take_figures,
)
from milvus_lifecycle.demo.outages import STEADY_S, play_outages
from milvus_lifecycle.demo.port import Knock
from milvus_lifecycle.demo.server import START_LIMIT, MilvusLite
from milvus_lifecycle.demo.session import Session
from milvus_lifecycle.demo.signals import Signals
from milvus_lifecycle.demo.summary import Run, print_summary
from milvus_lifecycle.demo.view import View

#: Seconds that the program may take to start and to be answered for the first time.
_BEGIN_LIMIT = 30.0

#: Seconds that it may take to end its calls, and then its process.
_STOP_LIMIT = 10.0
_EXIT_LIMIT = 5.0

_JSON_SCHEMA = 1


@dataclass(frozen=True)
class Options:
    """What the command line asked for. `outages` in seconds, `json_file` or None."""

    outages: tuple[float, ...]
    workers: int
    use_asyncio: bool
    compare: bool
    json_file: Path | None

    @property
    def worker_name(self) -> str:
        """What a worker is."""
        return "task" if self.use_asyncio else "thread"


def play_demo(options: Options, console: Console, signals: Signals) -> bool:
    """Run the demo and print its summary; says whether the engine's run was without fault.

    Raises DemoError or Interrupted; whatever happens, no process and no file is left behind.
    """
    began = time.monotonic()
    # pymilvus second: the demo is about the engine, and what it proves is known early.
    kinds = [False, True] if options.compare else [False]
    with View(console) as view:
        runs = [_play_run(options, view, signals, stock=stock) for stock in kinds]
    print_summary(console, runs, options.worker_name)
    seconds = time.monotonic() - began
    console.print(f"{seconds:.0f} s in all", style="dim", highlight=False)
    if options.json_file is not None:
        _write_json(options.json_file, _build_json(options, runs, seconds))
    return not any(run.faults for run in runs if run.on_engine)


def _play_run(options: Options, view: View, signals: Signals, *, stock: bool) -> Run:
    title = "pymilvus alone" if stock else "with the engine"
    client = "AsyncMilvusClient" if options.use_asyncio else "MilvusClient"
    view.begin_run(f"{title}: {client}, {options.workers} {options.worker_name}s")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="milvus-lifecycle-demo-"))
        server = MilvusLite(Path(folder))
        stack.callback(server.close)
        _start_server(server, view, signals)
        workload = Workload(
            server.uri,
            options.workers,
            use_asyncio=options.use_asyncio,
            stock=stock,
            log=Path(folder) / "program.log",
        )
        stack.callback(workload.close)
        session = Session(server, workload, options.workers, view, signals)
        began = _begin(session)
        outages = play_outages(session, options.outages)
        ended = time.monotonic()
        clean_exit = _end(session)
        figures = take_figures(_observe(options, workload.heard, began, ended, outages))
        return Run(
            title=title,
            on_engine=not stock,
            manager=workload.heard.manager or "",
            figures=figures,
            log_lines=workload.heard.log_lines,
            clean_exit=clean_exit,
        )


def _start_server(server: MilvusLite, view: View, signals: Signals) -> None:
    server.start()
    deadline = time.monotonic() + START_LIMIT
    with Knock(server.port) as knock:
        while knock.listens_at is None:
            signals.check()
            server.check()
            if time.monotonic() > deadline:
                raise server.give_up()
            time.sleep(0.02)
    # A process that lost the port to another may die after something answered on it.
    server.check()
    view.say(f"Milvus Lite listens on {server.uri}")


def _begin(session: Session) -> float:
    """Wait until every worker has been answered once, and some more; returns when work began."""
    if not session.wait_until_all_answered(0.0, _BEGIN_LIMIT, "the program starts"):
        raise WorkloadFailed(
            f"not every worker of the client program was answered within {_BEGIN_LIMIT:.0f} s"
        )
    began = time.monotonic()
    session.view.say(f"{session.workers} workers insert, search and list")
    session.wait(STEADY_S, "regular work")
    return began


def _end(session: Session) -> bool:
    """Let the program end; says whether its process did so by itself."""
    workload = session.workload
    workload.ask_stop()
    if not session.wait_until(lambda: workload.heard.done, _STOP_LIMIT, "the program ends"):
        open_calls = workload.ask_in_flight(limit=1.0)
        workload.close()
        workload.heard.calls.extend(open_calls)
        return False
    session.wait_until(workload.ended, _EXIT_LIMIT, "the program's process ends")
    return workload.close()


def _observe(
    options: Options, heard: Heard, began: float, ended: float, outages: Sequence[Outage]
) -> Observations:
    return Observations(
        workers=options.workers,
        began=began,
        ended=ended,
        calls=heard.calls,
        channels=heard.channels,
        triggers=[
            record["trigger"]
            for record in heard.records
            if record["event"] == "connection.transition"
        ],
        outages=outages,
    )


def _build_json(options: Options, runs: Sequence[Run], seconds: float) -> dict[str, object]:
    return {
        "schema": _JSON_SCHEMA,
        "options": {
            "outages": list(options.outages),
            "workers": options.workers,
            "asyncio": options.use_asyncio,
            "compare": options.compare,
        },
        "limits": {
            "first_good_call_s": FIRST_GOOD_LIMIT_S,
            "channels_per_outage": CHANNEL_LIMIT,
            "calls_per_s": RATE_LIMIT,
        },
        "runs": [run.as_json() for run in runs],
        "ok": not any(run.faults for run in runs if run.on_engine),
        "seconds": seconds,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    """Write the file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
