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

from milvus_lifecycle.demo.child import Workload
from milvus_lifecycle.demo.figures import (
    CHANNEL_LIMIT,
    FIRST_GOOD_LIMIT_S,
    MOVE_LIMIT_S,
    RATE_LIMIT,
    Run,
    take_figures,
)
from milvus_lifecycle.demo.scenarios import Session, Signals, play_failovers, play_outages
from milvus_lifecycle.demo.screen import View, print_summary
from milvus_lifecycle.demo.servers import HOST, MilvusLite

_JSON_SCHEMA = 1


@dataclass(frozen=True)
class Options:
    """What the command line asked for. `outages` in seconds, `json_file` or None."""

    outages: tuple[float, ...]
    workers: int
    use_asyncio: bool
    compare: bool
    json_file: Path | None
    failover: bool

    @property
    def worker_name(self) -> str:
        """What a worker is."""
        return "task" if self.use_asyncio else "thread"


def play_demo(options: Options, console: Console, signals: Signals) -> bool:
    """Run the demo and print its summary; says whether the engine's run was without fault.

    Raises DemoError or Interrupted; whatever happens, no process and no file is left behind.
    """
    began = time.monotonic()
    # The servers are on this machine. (gRPC reads the lower-case name.)
    os.environ["no_grpc_proxy"] = HOST  # noqa: SIM112
    # pymilvus second: the demo is about the engine, and what it proves is known early.
    kinds = [False, True] if options.compare else [False]
    view = View(console)
    with view.live():
        runs = [_play_run(options, view, signals, stock=stock) for stock in kinds]
    print_summary(console, runs, options.worker_name)
    seconds = time.monotonic() - began
    console.print(f"{seconds:.0f} s in all", style="dim", highlight=False)
    good = not any(run.figures.faults for run in runs if run.on_engine)
    if options.json_file is not None:
        _write_json(options.json_file, _build_json(options, runs, good, seconds))
    return good


def _play_run(options: Options, view: View, signals: Signals, *, stock: bool) -> Run:
    title = "pymilvus alone" if stock else "with the engine"
    client = "AsyncMilvusClient" if options.use_asyncio else "MilvusClient"
    arguments = ["--workers", str(options.workers), *["--asyncio"] * options.use_asyncio]
    arguments += ["--stock"] * stock + ["--failover"] * options.failover
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="milvus-lifecycle-demo-"))
        )
        servers = []
        for name in ("a", "b") if options.failover else ("a",):
            servers.append(MilvusLite(folder / name, durable=options.failover))
            stack.callback(servers[-1].close)
        workload = Workload(arguments, folder / "program.log")
        stack.callback(workload.close)
        workers = f"{options.workers} {options.worker_name}s"
        view.begin_run(f"{title}: {client}, {workers}", workload.heard)
        session = Session(servers, workload, options.workers, view, signals)
        session.start_servers()
        play = play_failovers if options.failover else play_outages
        figures = take_figures(play(session, options.outages))
        return Run(title, not stock, workload.heard.manager, workload.heard.log_lines, figures)


def _build_json(
    options: Options, runs: Sequence[Run], good: bool, seconds: float
) -> dict[str, object]:
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
        "ok": good,
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
