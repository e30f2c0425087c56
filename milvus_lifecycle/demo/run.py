"""Plays the demo: once on the engine and, to compare, once on pymilvus's own manager.

The program's server is killed and comes back, or its primary moves and dies. A session is what
that is played on, and waits: each wait keeps the live view's status, notices a process that ended
by itself, and ends the demo when a signal came.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from milvus_lifecycle.demo import DemoError
from milvus_lifecycle.demo.figures import Blow, Run, Seen, find_landing, take_figures
from milvus_lifecycle.demo.processes import HOST, MilvusLite, TopologyService, Workload
from milvus_lifecycle.demo.screen import View, print_summary

_JSON_OPTIONS = ("outages", "threads", "asyncio", "failover", "compare")

#: Seconds of regular work before a kill; and between a switch and a death (from a death to the
#: next switch it is the start of the server).
STEADY_S = 2.0
_SETTLE_S = 1.0

#: Seconds that a server may take until it listens, and the program until it is answered for the
#: first time; about 1 is usual.
_START_LIMIT = 30.0

#: Seconds after which a frozen server's last answers have been told, and that it is given to
#: collect a call of every worker.
_FREEZE_S = 0.1
_FREEZE_LIMIT = 3.0

#: Seconds, beside an outage's own length, that the program is given to be answered again; and to
#: move, of which pymilvus makes no use.
_RETURN_LIMIT = 10.0
_MOVE_LIMIT = 5.0

#: Seconds that the program may take to end.
_STOP_LIMIT = 10.0

_PULSE_GAP = 0.01


@contextlib.contextmanager
def noted_signals() -> Iterator[Callable[[], None]]:
    """Note SIGINT, SIGTERM and SIGHUP; yields what raises SystemExit if one came.

    A handler that raises could strike between "the server was started" and "its process is noted",
    and leave a process behind. So the handler only notes, and the demo's main thread, which never
    blocks for longer than a pulse, asks at each. Further ones during clean-up are ignored.
    """
    noted: list[int] = []

    def check() -> None:
        if noted:
            print("milvus-lifecycle demo: interrupted", file=sys.stderr)
            raise SystemExit(128 + noted[0])

    before = {
        signum: signal.signal(signum, lambda signum, frame: noted.append(signum))
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(signum) is not signal.SIG_IGN  # nohup ignores on purpose: keep it so
    }
    try:
        yield check
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def play_demo(options: argparse.Namespace, console: Console) -> bool:
    """Run the demo and print its summary; says whether the engine's run was without fault.

    Raises DemoError, and SystemExit after a signal. Whatever happens, no process and no file is
    left behind.
    """
    began = time.monotonic()
    # The servers are on this machine. (gRPC reads the lower-case name.)
    os.environ["no_grpc_proxy"] = HOST  # noqa: SIM112
    with noted_signals() as check:
        # pymilvus second: the demo is about the engine, and what it proves is known early.
        runs = [_play_run(options, console, check, stock=False)]
        if options.compare:
            runs.append(_play_run(options, console, check, stock=True))
    print_summary(console, runs)
    seconds = time.monotonic() - began
    console.print(f"{seconds:.0f} s in all", style="dim", highlight=False)
    good = not runs[0].faults
    if options.json is not None:
        content = {
            "schema": 2,
            "options": {name: getattr(options, name) for name in _JSON_OPTIONS},
            "runs": [run.as_json() for run in runs],
            "ok": good,
            "seconds": seconds,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return good


def _play_run(
    options: argparse.Namespace, console: Console, check: Callable[[], None], *, stock: bool
) -> Run:
    title = "pymilvus alone" if stock else "with the engine"
    client = "AsyncMilvusClient" if options.asyncio else "MilvusClient"
    worker = "task" if options.asyncio else "thread"
    arguments = [f"--workers={options.threads}", *["--asyncio"] * options.asyncio]
    arguments += ["--stock"] * stock
    if options.audit is not None and not stock:
        arguments.append(f"--audit={options.audit}")
    seen = Seen(options.threads)
    with contextlib.ExitStack() as stack:
        prefix = "milvus-lifecycle-demo-"
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix)))
        servers = []
        for name in ("a", "b") if options.failover else ("a",):
            servers.append(MilvusLite(folder / name, durable=options.failover))
            stack.callback(servers[-1].close)
        workload = Workload(arguments, folder / "program.log", seen)
        stack.callback(workload.close)
        view = View(console, f"{title}: {client}, {options.threads} {worker}s", seen)
        stack.enter_context(view.live())
        session = Session(servers, workload, seen, view, check)
        session.start_servers()
        play = play_failovers if options.failover else play_outages
        play(session, options.outages)
    return take_figures(title, seen)


@dataclass(frozen=True)
class Session:
    """The servers, the program that calls them, and who watches both."""

    servers: Sequence[MilvusLite]
    workload: Workload
    seen: Seen
    view: View
    check: Callable[[], None]

    def wait_until(self, met: Callable[[], bool], limit: float, status: str) -> bool:
        """Wait until `met`, at most `limit` seconds: was it? Raises SystemExit or DemoError."""
        deadline = time.monotonic() + limit
        while not met():
            self.check()
            for child in (*self.servers, self.workload):
                child.check()
            self.view.show(status)
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PULSE_GAP)
        return True

    def wait(self, seconds: float, status: str) -> None:
        """Wait for some seconds."""
        self.wait_until(lambda: False, seconds, status)

    def wait_until_listening(self, server: MilvusLite) -> float:
        """Wait until a server that was started listens; returns when (time.monotonic())."""
        if not self.wait_until(server.listens, _START_LIMIT, "a server starts"):
            limit = f"within {_START_LIMIT:.0f} s"
            raise server.fail(f"Milvus Lite did not listen on {server.uri} {limit}")
        moment = time.monotonic()
        # A process that lost the port to another may die after something answered on it.
        server.check()
        return moment

    def start_servers(self) -> None:
        """Start every server and wait until each listens."""
        for server in self.servers:
            server.start()
        for server in self.servers:
            self.wait_until_listening(server)
            self.view.say(f"Milvus Lite listens on {server.uri}")

    def begin_work(self, uri: str) -> None:
        """Start the program and wait until every worker has been answered once, and some more."""
        self.workload.start(uri)
        seen, limit = self.seen, _START_LIMIT
        if not self.wait_until(lambda: seen.all_good_since(0.0), limit, "the program starts"):
            slow = f"not every worker of the client program was answered within {limit:.0f} s"
            raise self.workload.fail(slow)
        began = time.monotonic()
        self.view.say(f"{seen.workers} workers insert, search and list")
        self.wait(STEADY_S, "regular work")
        seen.steady = (began, time.monotonic())

    def kill_under_load(self, server: MilvusLite) -> float:
        """Kill a server when every worker has a call in flight; returns when.

        It is frozen first: whether every worker has a call in flight at the kill must not be left
        to chance. To a client the freeze is a server that is slow for some 100 ms.
        """
        seen, status = self.seen, "the server is frozen"
        server.send(signal.SIGSTOP)
        self.wait(_FREEZE_S, status)
        self.wait_until(lambda: len(seen.in_flight) >= seen.workers, _FREEZE_LIMIT, status)
        moment = server.kill()
        self.view.say(f"{server.uri} killed (SIGKILL) under {seen.workers} workers")
        return moment

    def expect_answers(self, since: float, limit: float) -> None:
        """Give every worker time for a good call that ended after `since`, and say who had one."""
        status = "waiting for every worker's first good call"
        if self.wait_until(lambda: self.seen.all_good_since(since), limit, status):
            self.view.say("every worker is answered again")
        else:
            self.view.say("some workers are still not answered")

    def end_work(self) -> None:
        """Let the program end, and its process."""
        workload = self.workload
        workload.stop()
        self.wait_until(lambda: workload.exit_code() == 0, _STOP_LIMIT, "the program ends")
        self.seen.clean_exit = workload.close()


def play_outages(session: Session, lengths: Sequence[float]) -> None:
    """Play one outage of each length, in seconds from the kill to the new start."""
    (server,) = session.servers
    view = session.view
    session.begin_work(server.uri)
    for number, length in enumerate(lengths, 1):
        killed_at = session.kill_under_load(server)
        session.wait(length, f"the server is down, for {length:g} s")
        server.start()
        listens_at = session.wait_until_listening(server)
        view.say(f"server listens again, {listens_at - killed_at:.2f} s after the kill")
        session.expect_answers(listens_at, _RETURN_LIMIT + length)
        session.wait(STEADY_S, "regular work")
        text = f"killed, started again after {length:g} s"
        session.seen.blows.append(Blow(f"outage {number}", text, listens_at, killed_at))
    session.end_work()


def play_failovers(session: Session, lengths: Sequence[float]) -> None:
    """For each length: a planned switch, then the new primary's death.

    The length is the time in seconds from the death until the topology names the other server.
    Both databases are read afterwards. The old primary of a planned switch lives on and would take
    any write (Milvus Lite refuses none), so that only the client keeps writes off it. A server that
    was killed is started again, as the next stand-by.
    """
    from milvus_lifecycle.demo import program  # pymilvus is slow to import

    logging.disable()  # pymilvus's, which would go to the terminal
    first, second = session.servers
    seen = session.seen
    with _explain("the collection could not be created"):
        for server in session.servers:
            program.create_collection(server.uri)
    with contextlib.closing(TopologyService([first.uri, second.uri])) as service:
        session.begin_work(service.uri)
        for number, length in enumerate(lengths, 1):
            seen.blows.append(_switch(session, service, first, second, f"switch {number}"))
            seen.blows.append(_lose(session, service, second, first, f"death {number}", length))
        session.end_work()
    with _explain("a database could not be read"):
        seen.contents = {
            server.address: program.read_ids(server.uri, seen.workers) for server in session.servers
        }
    session.view.say("both databases have been read")


@contextlib.contextmanager
def _explain(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise DemoError(f"{what}: {error}") from error


def _switch(
    session: Session, service: TopologyService, old: MilvusLite, new: MilvusLite, name: str
) -> Blow:
    view, records = session.view, session.seen.records
    naming = service.name_primary(new.uri)
    view.say(f"planned switch: the topology names {new.uri}; {old.uri} lives on")
    moved = session.wait_until(
        lambda: find_landing(records, new.address, naming.at) is not None,
        _MOVE_LIMIT,
        "the program moves",
    )
    view.say(f"the program's connection has {'' if moved else 'not '}moved")
    session.wait(_SETTLE_S, "regular work")
    text = "the other server becomes primary, the old one lives on"
    return Blow(name, text, naming.at, None, old.address, new.address, naming.told_at)


def _lose(
    session: Session,
    service: TopologyService,
    old: MilvusLite,
    new: MilvusLite,
    name: str,
    length: float,
) -> Blow:
    view = session.view
    killed_at = session.kill_under_load(old)
    session.wait(length, "the primary is dead, and the topology does not say so yet")
    naming = service.name_primary(new.uri)
    view.say(f"the topology names {new.uri}, {naming.at - killed_at:.2f} s after the kill")
    session.expect_answers(naming.at, _RETURN_LIMIT)
    old.start()
    session.wait_until_listening(old)
    view.say(f"{old.uri} is back as a secondary")
    text = f"the primary dies, the other one is named after {length:g} s"
    return Blow(name, text, naming.at, killed_at, old.address, new.address, naming.told_at)
