"""One fault from its beginning to its end, with everything that is checked after each of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

import milvus_lifecycle as ml
from milvus_lifecycle.replay.verify import Verdict, verify_logs
from tests.faults.leftovers import nothing_left
from tests.faults.load import Flavour, Load, find_ids, make_collection
from tests.faults.servers import Server
from tests.network import TcpProxy
from tests.observe import came_true, wait_until

#: Seconds that the load runs before the fault and after everybody is served again.
_CALM_S = 1.0


@contextlib.contextmanager
def engine(audit: Path, **policy: Any) -> Iterator[None]:
    """The engine installed with an audit log; afterwards nothing is left and the log verifies."""
    with nothing_left():
        ml.install(policy=ml.LifecyclePolicy(**policy), audit=str(audit))
        try:
            yield
        finally:
            ml.uninstall()
    verify(audit)


def verify(audit: Path) -> Verdict:
    """The verdict on a log, which must be legal and not empty."""
    verdict = verify_logs([str(audit)])
    assert verdict.exit_code == 0, [problem.text for problem in verdict.problems.kept][:20]
    assert verdict.records > 0
    return verdict


@dataclass
class Scene:
    """What a fault works on."""

    server: Server
    proxy: TcpProxy
    load: Load


@dataclass(frozen=True)
class Fault:
    """What is done to a server or its network; `strike` returns when it is over.

    `breaks`: whether it costs the connection; None if that depends on what gRPC notices first.
    `unwell`: a server may answer calls with errors of its own while it goes through it; these are
    the caller's to see. `reloads`: a server that loads collections does so again after it, and
    searches wait for that. `budget` is the `recovery_budget` of the clients, in seconds, which has
    to outlast it.
    """

    name: str
    strike: Callable[[Scene], object]
    breaks: bool | None = True
    unwell: bool = False
    reloads: bool = False
    budget: float = 60.0
    idle_threshold: float = 30.0

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """What came of it; durations in seconds."""

    calls: int
    failed: list[str]
    refused: list[str]
    acknowledged: int
    missing: int
    lasted: float
    served_after: float
    longest: float
    recovered: int
    #: waits for the collection to be loaded again that ended well
    waits: int

    def __str__(self) -> str:
        refused = f" ({len(self.refused)} answered with an error)" if self.refused else ""
        return (
            f"{len(self.failed)} of {self.calls:,} calls failed{refused}; "
            f"{self.acknowledged:,} inserts acknowledged, {self.missing} missing; "
            f"lasted {self.lasted:.1f} s, all served {self.served_after:.1f} s after it; "
            f"longest call {self.longest:.1f} s; {self.recovered} recoveries, {self.waits} waits"
        )


def play(fault: Fault, server: Server, flavour: Flavour, audit: Path) -> Outcome:
    """Run the load, strike, wait until all are served again, and look for every row."""
    with engine(audit, recovery_budget=fault.budget, idle_threshold=fault.idle_threshold):
        keeper = MilvusClient(server.uri_at(server.port), timeout=60, **server.options)
        # A server that was frozen or killed a moment ago may not be able to at once.
        wait_until(lambda: _make_collection(keeper, server), 120, every=1.0)
        with TcpProxy(server.port) as proxy:
            uri = server.uri_at(proxy.port)
            with Load(flavour, uri, **server.options) as load:
                assert load.served_again(60) is not None, load.tally.failed[:3]
                time.sleep(_CALM_S)
                began = time.monotonic()
                fault.strike(Scene(server, proxy, load))
                lasted = time.monotonic() - began
                served_after = load.served_again(fault.budget + 60)
                time.sleep(_CALM_S)
                assert load.stop(fault.budget + 30), "a call never ended"
        assert load.complaints == []
        tally = load.tally
        found: set[int] = set()

        def everything_is_there() -> bool:
            with contextlib.suppress(Exception):
                found.update(find_ids(keeper, load.workers))
            return tally.acknowledged <= found

        came_true(everything_is_there, 60, every=1.0)  # what is not is counted
        keeper.close()
    assert served_after is not None, f"not served again; {tally.failed[:3]}"
    return Outcome(
        tally.calls,
        tally.failed,
        tally.refused,
        len(tally.acknowledged),
        len(tally.acknowledged - found),
        lasted,
        served_after,
        tally.longest,
        count(audit, "recovered", f":{proxy.port}"),
        count(audit, "loaded", f":{proxy.port}"),
    )


def _make_collection(client: MilvusClient, server: Server) -> bool:
    with contextlib.suppress(MilvusException):
        make_collection(client, indexed=server.indexed)
        return True
    return False


def count(audit: Path, trigger: str, address: str = "") -> int:
    """How many lines of a log have this trigger."""
    lines: list[Any] = audit.read_text().splitlines()
    return sum(f'"trigger":"{trigger}"' in line and address in line for line in lines)
