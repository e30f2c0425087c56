"""What is done to the program: its server is killed and comes back, or its primary moves and dies.

A scenario is played on a Session and waits by it only: each wait keeps the live view's status,
notices a process that ended by itself, and ends the demo when a signal came.

Failovers are what a topology service and two independent Milvus Lite servers can play: the old
primary of a planned switch lives on and would take any write (Milvus Lite refuses none), so that
only the client keeps writes off it. A server that was killed is started again, as the next
stand-by.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import final

from milvus_lifecycle.demo import DemoError, Interrupted
from milvus_lifecycle.demo.child import Workload
from milvus_lifecycle.demo.figures import Move, Outage, Seen, find_landing
from milvus_lifecycle.demo.screen import View
from milvus_lifecycle.demo.servers import MilvusLite, TopologyService

#: Seconds of regular work before a kill, whose rate is measured; and between a switch and a death
#: (from a death to the next switch it is the start of the server).
STEADY_S = 2.0
_SETTLE_S = 1.0

#: Seconds that a server may take until it listens; about 1 is usual.
_START_LIMIT = 30.0

#: Seconds that the program may take to start and to be answered for the first time.
_BEGIN_LIMIT = 30.0

#: Seconds a frozen server is given to collect a call of every worker.
_FREEZE_LIMIT = 3.0

#: A call that has been unanswered for so long was not just about to return when the server froze.
_IN_FLIGHT_AGE = 0.05

#: Seconds, beside an outage's own length, that the program is given to be answered again; and to
#: move, of which pymilvus makes no use.
_RETURN_LIMIT = 10.0
_MOVE_LIMIT = 5.0

#: Seconds that the program may take to end its calls, and then its process.
_STOP_LIMIT = 10.0
_EXIT_LIMIT = 5.0

_PULSE_GAP = 0.02

# Windows has no SIGHUP.
_ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@final
class Signals:
    """Context manager: notes SIGINT, SIGTERM and SIGHUP; later ones during clean-up are ignored.

    A handler that raises could strike between "the server was started" and "its process is noted",
    and leave a process behind. So the handler only notes; the demo's main thread never blocks for
    longer than a pulse and asks `check` at each.
    """

    def __init__(self) -> None:
        self._noted: int | None = None
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> Signals:
        for signum in _ENDING:
            # nohup has SIGHUP ignored on purpose: keep it so.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            if handler is not None:  # None: not set by Python, so Python cannot put it back
                signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._noted is None:
            self._noted = signum

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._noted is not None:
            raise Interrupted(self._noted)


@dataclass(frozen=True)
class Session:
    """The servers, the program that calls them, and who watches both."""

    servers: Sequence[MilvusLite]
    workload: Workload
    workers: int
    view: View
    signals: Signals

    def wait_until(self, met: Callable[[], bool], limit: float, status: str) -> bool:
        """Wait until `met`, at most `limit` seconds; says whether it was met.

        Raises Interrupted or DemoError.
        """
        deadline = time.monotonic() + limit
        while not met():
            self.signals.check()
            for server in self.servers:
                server.check()
            self.workload.check()
            self.view.show(status)
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PULSE_GAP)
        return True

    def wait(self, seconds: float, status: str) -> None:
        """Wait for some seconds."""
        self.wait_until(lambda: False, seconds, status)

    def wait_until_listening(self, server: MilvusLite) -> float:
        """Wait until a server that was started listens; returns since when."""
        status = "a server starts"
        if not self.wait_until(lambda: server.listens_at is not None, _START_LIMIT, status):
            limit = f"within {_START_LIMIT:.0f} s"
            raise server.fail(f"Milvus Lite did not listen on {server.uri} {limit}")
        # A process that lost the port to another may die after something answered on it.
        server.check()
        assert server.listens_at is not None  # wait_until said so
        return server.listens_at

    def start_servers(self) -> None:
        """Start every server and wait until each listens."""
        for server in self.servers:
            server.start()
        for server in self.servers:
            self.wait_until_listening(server)
            self.view.say(f"Milvus Lite listens on {server.uri}")

    def begin_work(self, uri: str) -> float:
        """Start the program and wait until every worker has been answered once, and some more;
        returns when work began."""
        self.workload.start(uri)
        if not self._wait_for_answers(0.0, _BEGIN_LIMIT, "the program starts"):
            raise DemoError(
                f"not every worker of the client program was answered within {_BEGIN_LIMIT:.0f} s"
            )
        began = time.monotonic()
        self.view.say(f"{self.workers} workers insert, search and list")
        self.wait(STEADY_S, "regular work")
        return began

    def kill_under_load(self, server: MilvusLite) -> tuple[float, float]:
        """Kill a server when every worker has a call in flight: (frozen when, killed when).

        It is frozen first: whether every worker has a call in flight at the kill must not be left
        to chance. To a client the freeze is a server that is slow for some 60 ms.
        """
        frozen_at = server.freeze()
        self.wait_until(self._all_in_flight, _FREEZE_LIMIT, "the server is frozen")
        return frozen_at, server.kill()

    def expect_answers(self, since: float, limit: float) -> None:
        """Give every worker time for a good call that ended after `since`, and say who had one."""
        status = "waiting for every worker's first good call"
        if self._wait_for_answers(since, limit, status):
            self.view.say("every worker is answered again")
        else:
            self.view.say("some workers are still not answered")

    def end_work(self, began: float) -> Seen:
        """Let the program end, and its process; returns what it reported."""
        ended = time.monotonic()
        workload, heard = self.workload, self.workload.heard
        workload.ask_stop()
        if self.wait_until(lambda: heard.done, _STOP_LIMIT, "the program ends"):
            self.wait_until(workload.ended, _EXIT_LIMIT, "the program's process ends")
            clean = workload.close()
        else:
            open_calls = workload.ask_in_flight(limit=1.0)
            workload.close()
            heard.calls.extend(open_calls)
            clean = False
        return Seen(
            self.workers, began, ended, heard.calls, heard.channels, heard.records, clean_exit=clean
        )

    def _wait_for_answers(self, since: float, limit: float, status: str) -> bool:
        heard = self.workload.heard
        return self.wait_until(lambda: heard.count_good_since(since) >= self.workers, limit, status)

    def _all_in_flight(self) -> bool:
        calls = self.workload.ask_in_flight(limit=1.0)
        latest = time.monotonic() - _IN_FLIGHT_AGE
        return sum(1 for call in calls if call.start <= latest) >= self.workers


def play_outages(session: Session, lengths: Sequence[float]) -> Seen:
    """Play one outage of each length, in seconds from the kill to the new start."""
    began = session.begin_work(session.servers[0].uri)
    outages = [_play_outage(session, length) for length in lengths]
    return replace(session.end_work(began), outages=outages)


def _play_outage(session: Session, length: float) -> Outage:
    (server,) = session.servers
    frozen_at, killed_at = session.kill_under_load(server)
    session.view.say(f"server killed (SIGKILL) under {session.workers} workers, for {length:g} s")
    session.wait(length, "the server is down")
    server.start()
    listens_at = session.wait_until_listening(server)
    session.view.say(f"server listens again, {listens_at - killed_at:.2f} s after the kill")
    session.expect_answers(listens_at, _RETURN_LIMIT + length)
    session.wait(STEADY_S, "regular work")
    return Outage(length, frozen_at, killed_at, listens_at)


def play_failovers(session: Session, lengths: Sequence[float]) -> Seen:
    """For each length: a planned switch, then the new primary's death.

    The length is the time in seconds from the death until the topology names the other server.
    Both databases are read afterwards.
    """
    from milvus_lifecycle.demo import program, workload  # pymilvus is slow to import

    workload.silence("pymilvus")
    first, second = session.servers
    with _explain("the collection could not be created"):
        for server in session.servers:
            program.create_collection(server.uri)
    moves = []
    with contextlib.closing(TopologyService([first.uri, second.uri])) as service:
        began = session.begin_work(service.uri)
        for length in lengths:
            moves.append(_switch(session, service, first, second))
            moves.append(_lose(session, service, second, first, length))
        seen = session.end_work(began)
    with _explain("a database could not be read"):
        contents = {
            server.address: program.read_ids(server.uri, session.workers)
            for server in session.servers
        }
    session.view.say("both databases have been read")
    return replace(
        seen,
        moves=moves,
        contents=contents,
        first_ids={worker: program.first_id(worker) for worker in range(session.workers)},
        served={move.version: service.find_first_served(move.version) for move in moves},
    )


@contextlib.contextmanager
def _explain(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise DemoError(f"{what}: {error}") from error


def _switch(session: Session, service: TopologyService, old: MilvusLite, new: MilvusLite) -> Move:
    named_at = service.name_primary(new.uri)
    session.view.say(f"planned switch: the topology names {new.uri}; {old.uri} lives on")
    move = Move("switch", old.address, new.address, service.version, named_at)
    records = session.workload.heard.records
    moved = session.wait_until(
        lambda: find_landing(records, move) is not None, _MOVE_LIMIT, "the program moves"
    )
    session.view.say(f"the program's connection has {'' if moved else 'not '}moved")
    session.wait(_SETTLE_S, "regular work")
    return move


def _lose(
    session: Session, service: TopologyService, old: MilvusLite, new: MilvusLite, length: float
) -> Move:
    view = session.view
    _, killed_at = session.kill_under_load(old)
    view.say(f"primary {old.uri} killed (SIGKILL) under {session.workers} workers")
    session.wait(length, "the primary is dead, and the topology does not say so yet")
    named_at = service.name_primary(new.uri)
    view.say(f"the topology names {new.uri}, {named_at - killed_at:.2f} s after the kill")
    session.expect_answers(named_at, _RETURN_LIMIT)
    old.start()
    began = time.monotonic()
    listens_at = session.wait_until_listening(old)
    view.say(f"{old.uri} is back as a secondary after {listens_at - began:.1f} s")
    return Move("death", old.address, new.address, service.version, named_at, killed_at)
