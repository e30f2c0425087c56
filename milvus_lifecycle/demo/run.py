"""Plays the demo: once on the engine and, to compare, once on pymilvus's own manager."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from milvus_lifecycle.demo.child import Workload
from milvus_lifecycle.demo.failover_measure import MOVE_LIMIT_S
from milvus_lifecycle.demo.failover_run import play_failover_run
from milvus_lifecycle.demo.measure import (
    CHANNEL_LIMIT,
    FIRST_GOOD_LIMIT_S,
    RATE_LIMIT,
    take_figures,
)
from milvus_lifecycle.demo.options import Options, begin_run, observe
from milvus_lifecycle.demo.outages import play_outages
from milvus_lifecycle.demo.server import MilvusLite
from milvus_lifecycle.demo.session import Session
from milvus_lifecycle.demo.signals import Signals
from milvus_lifecycle.demo.stages import begin_work, end_work, start_server
from milvus_lifecycle.demo.summary import Run, print_summary
from milvus_lifecycle.demo.view import View

_JSON_SCHEMA = 1


def play_demo(options: Options, console: Console, signals: Signals) -> bool:
    """Run the demo and print its summary; says whether the engine's run was without fault.

    Raises DemoError or Interrupted; whatever happens, no process and no file is left behind.
    """
    began = time.monotonic()
    # pymilvus second: the demo is about the engine, and what it proves is known early.
    kinds = [False, True] if options.compare else [False]
    with View(console) as view:
        play = play_failover_run if options.failover else _play_outage_run
        runs = [play(options, view, signals, stock=stock) for stock in kinds]
    print_summary(console, runs, options.worker_name)
    seconds = time.monotonic() - began
    console.print(f"{seconds:.0f} s in all", style="dim", highlight=False)
    if options.json_file is not None:
        _write_json(options.json_file, _build_json(options, runs, seconds))
    return not any(run.faults for run in runs if run.on_engine)


def _play_outage_run(options: Options, view: View, signals: Signals, *, stock: bool) -> Run:
    title = begin_run(options, view, stock=stock)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="milvus-lifecycle-demo-"))
        server = MilvusLite(Path(folder))
        stack.callback(server.close)
        start_server(server, view, signals)
        workload = Workload(
            server.uri,
            options.workers,
            use_asyncio=options.use_asyncio,
            stock=stock,
            log=Path(folder) / "program.log",
        )
        stack.callback(workload.close)
        session = Session(server, workload, options.workers, view, signals)
        began = begin_work(session)
        outages = play_outages(session, options.outages)
        ended = time.monotonic()
        clean_exit = end_work(session)
        seen = observe(options, workload.heard, began, ended, outages)
        return Run(
            title=title,
            on_engine=not stock,
            manager=workload.heard.manager or "",
            figures=take_figures(seen),
            log_lines=workload.heard.log_lines,
            clean_exit=clean_exit,
        )


def _build_json(options: Options, runs: Sequence[Run], seconds: float) -> dict[str, object]:
    return {
        "schema": _JSON_SCHEMA,
        "options": {
            "outages": list(options.outages),
            "workers": options.workers,
            "asyncio": options.use_asyncio,
            "compare": options.compare,
            "failover": options.failover,
        },
        "limits": {
            "first_good_call_s": FIRST_GOOD_LIMIT_S,
            "channels_per_outage": CHANNEL_LIMIT,
            "calls_per_s": RATE_LIMIT,
            "move_s": MOVE_LIMIT_S,
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
