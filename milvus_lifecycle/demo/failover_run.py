"""One run of the failover: two servers, a topology service, and the program between them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from milvus_lifecycle.demo.child import Heard, Workload
from milvus_lifecycle.demo.databases import create_collections, read_ids
from milvus_lifecycle.demo.failover import Pair, play_failovers
from milvus_lifecycle.demo.failover_measure import (
    Move,
    check_placement,
    list_stays,
    list_writes,
    take_moves,
)
from milvus_lifecycle.demo.measure import take_figures
from milvus_lifecycle.demo.options import Options, begin_run, observe
from milvus_lifecycle.demo.program import first_id
from milvus_lifecycle.demo.server import MilvusLite
from milvus_lifecycle.demo.session import Session
from milvus_lifecycle.demo.signals import Signals
from milvus_lifecycle.demo.stages import begin_work, end_work, start_server
from milvus_lifecycle.demo.summary import Run
from milvus_lifecycle.demo.topology_service import TopologyService
from milvus_lifecycle.demo.view import View


def play_failover_run(options: Options, view: View, signals: Signals, *, stock: bool) -> Run:
    """Play it and look into both databases afterwards. Raises DemoError or Interrupted."""
    title = begin_run(options, view, stock=stock)
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="milvus-lifecycle-demo-"))
        )
        servers = [_start(folder / name, stack, view, signals) for name in ("a", "b")]
        create_collections(server.uri for server in servers)
        service = TopologyService([server.uri for server in servers])
        stack.callback(service.close)
        workload = Workload(
            service.uri,
            options.workers,
            use_asyncio=options.use_asyncio,
            stock=stock,
            log=folder / "program.log",
            failover=True,
        )
        stack.callback(workload.close)
        session = Session(servers[0], workload, options.workers, view, signals, (servers[1],))
        began = begin_work(session)
        moves = play_failovers(session, Pair(servers[0], servers[1], service), options.outages)
        ended = time.monotonic()
        clean_exit = end_work(session)
        # The rate is that of the time before the first move: the deaths are no slowness.
        seen = observe(options, workload.heard, began, moves[0].named_at, ())
        contents = {server.address: read_ids(server.uri, options.workers) for server in servers}
        view.say("both databases have been read")
        run = Run(
            title=title,
            on_engine=not stock,
            manager=workload.heard.manager or "",
            figures=replace(
                take_figures(seen),
                channels_at_start=sum(at < moves[0].begun for at in workload.heard.channels),
            ),
            log_lines=workload.heard.log_lines,
            clean_exit=clean_exit,
        )
        return _judge(run, options, workload.heard, moves, ended, service, contents)


def _start(folder: Path, stack: ExitStack, view: View, signals: Signals) -> MilvusLite:
    folder.mkdir()
    server = MilvusLite(folder, durable=True)
    stack.callback(server.close)
    start_server(server, view, signals)
    return server


def _judge(
    run: Run,
    options: Options,
    heard: Heard,
    moves: Sequence[Move],
    ended: float,
    service: TopologyService,
    contents: dict[str, frozenset[int]],
) -> Run:
    """The run with what the moves and the databases showed."""
    first_ids = {worker: first_id(worker) for worker in range(options.workers)}
    writes = list_writes(heard.calls, first_ids)
    figures = take_moves(
        moves,
        workers=options.workers,
        ended=ended,
        calls=heard.calls,
        channels=heard.channels,
        writes=writes,
        records=heard.records,
        contents=contents,
        served={move.version: service.find_first_served(move.version) for move in moves},
    )
    placement = check_placement(writes, contents, list_stays(heard.records))
    return run.with_failover(figures, placement)
