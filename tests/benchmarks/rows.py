"""The rows of the benchmark: each arranges one side, and returns what measures it once.

A row's docstring has a line for each of its figures: title | unit | budget, if there is one
("1.0 x": of the ratio). A figure is CPU time unless its title says "wall" or it is a count.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.benchmarks.logs import make_log, measure
from tests.network import BlackHole, TcpProxy
from tests.processes import FakeMilvusProcess

Work = Callable[[], object]
Measure = Callable[[], tuple[float, ...]]


class Client:
    """Who holds a connection."""


@dataclass
class Bench:
    """One side ("engine", "pymilvus", "limit" or another pool's name) and its server."""

    side: str
    uri: str
    quick: bool
    #: what has to be ended, or to live, as long as the row does
    stack: ExitStack
    keep: Any = None

    @property
    def address(self) -> str:
        return self.uri.removeprefix("http://")

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def managers(self) -> tuple[Any, Any]:
        """The manager's and the configuration's class of this side."""
        ours = self.side == "engine"
        module = import_module("milvus_lifecycle" if ours else "pymilvus.client.connection_manager")
        return module.ConnectionManager, module.ConnectionConfig

    def crowd(self, count: int) -> tuple[Any, list[tuple[Any, Client]]]:
        """A manager with so many connections that need no network, and who holds them."""
        kind, config = self.managers()
        if self.side == "engine":
            from milvus_lifecycle.testing import Script

            script: Any = Script()
            script.operations = script.channels = deque(maxlen=0)  # it would remember everything
            manager = kind(transport=script.threads())
        else:
            manager, ready = kind(), {"_wait_for_channel_ready": lambda self, timeout: None}
            handler, nothing = type("Handler", (), ready), lambda connection: None
            strategy = SimpleNamespace(create_handler=lambda config: handler(), close=nothing)
            manager._get_strategy = lambda config: strategy
        held = []
        for number in range(count):
            client = Client()
            made = config.from_uri(f"http://host{number}:19530", token="user:password")
            held.append((manager.get_or_create(made, client=client), client))
        return manager, held


@dataclass(frozen=True)
class Row:
    """Figures that one measurement gives, on each side."""

    sides: tuple[str, ...]
    #: (title, unit, budget)
    figures: list[tuple[str, str, str]]
    body: Callable[[Bench], Measure]
    #: wall time, and what else differs from run to run, is shown and not judged
    judged: bool
    #: so often is each side measured in a whole run
    rounds: int


ROWS: dict[str, Row] = {}


def row(
    sides: str, *, judged: bool = True, rounds: int = 9, name: str = ""
) -> Callable[[Callable[[Bench], Measure]], Callable[[Bench], Measure]]:
    """Register a body that has its figures in its docstring."""

    def register(body: Callable[[Bench], Measure]) -> Callable[[Bench], Measure]:
        lines = [[*line.split("|"), "", ""] for line in (body.__doc__ or "").splitlines()]
        figures = [
            (title.strip(), unit.strip(), budget.strip()) for title, unit, budget, *_ in lines
        ]
        known = name or body.__name__.replace("_", "-")
        ROWS[known] = Row(tuple(sides.split()), figures, body, judged, rounds)
        return body

    return register


def timed(count: int, work: Work, clock: Callable[[], float] = time.thread_time) -> tuple[float]:
    """Microseconds for each of ``count`` calls."""
    began = clock()
    for _ in range(count):
        work()
    return ((clock() - began) / count * 1e6,)


def together(threads: int, count: int, work: Work) -> tuple[float]:
    """Microseconds of CPU time for each of ``count`` calls, by so many threads at once."""
    each = count // threads
    with ThreadPoolExecutor(threads) as crowd:
        share = [each] * threads
        (spent,) = timed(
            1, lambda: list(crowd.map(timed, share, [work] * threads)), time.process_time
        )
    return (spent / (each * threads),)


# -- clients and leases ----------------------------------------------------------------------------


@row("engine pymilvus")
def client(bench: Bench) -> Measure:
    """MilvusClient + close, another holds it | us | 1.0 x"""
    from pymilvus import MilvusClient

    bench.keep = MilvusClient(bench.uri)
    return lambda: timed(bench.size(2000, 300), lambda: MilvusClient(bench.uri).close())


@row("engine pymilvus")
def only_client(bench: Bench) -> Measure:
    """MilvusClient + close, the only one | us | 35"""
    from pymilvus import MilvusClient

    def work() -> None:
        MilvusClient(bench.uri).close()

    work()
    return lambda: timed(bench.size(1000, 200), work, time.process_time)


@row("engine pymilvus limit", judged=False)
def new_connection(bench: Bench) -> Measure:
    """a connection of its own, made and closed (wall; limit: TCP) | us"""
    from pymilvus import MilvusClient

    host, _, port = bench.address.partition(":")

    def make() -> Any:
        if bench.side == "limit":
            return socket.create_connection((host, int(port)))
        return MilvusClient(bench.uri, dedicated=True)

    return lambda: timed(20, lambda: make().close(), time.perf_counter)


POOLS = "engine pymilvus limit SQLAlchemy psycopg_pool"


def pool_of(bench: Bench) -> tuple[Work, Work]:
    """Take the one connection and give it back; take it again (with the others, the same)."""
    if bench.side == "limit":
        known = {"key": object()}
        return (lambda: known.get("key"),) * 2
    if bench.side == "SQLAlchemy":
        ready = SimpleNamespace(rollback=lambda: None, close=lambda: None)
        queue = import_module("sqlalchemy.pool").QueuePool(lambda: ready, pool_size=8)
        return (lambda: queue.connect().close(),) * 2
    if bench.side == "psycopg_pool":
        idle = SimpleNamespace(transaction_status=import_module("psycopg.pq").TransactionStatus(0))
        kind = type("Connection", (), {"pgconn": idle, "closed": False, "close": lambda self: None})
        kind.connect = classmethod(lambda cls, *args, **kwargs: cls())  # type: ignore[attr-defined]
        pool = import_module("psycopg_pool").ConnectionPool("", connection_class=kind, min_size=8)
        bench.stack.callback(pool.close)
        return (lambda: pool.putconn(pool.getconn()),) * 2
    manager, bench.keep = bench.crowd(1)
    config = bench.managers()[1].from_uri("http://host0:19530", token="user:password")

    def take_and_give() -> None:
        client = Client()
        manager.release(manager.get_or_create(config, client=client), client=client)

    mine = Client()
    return take_and_give, lambda: manager.get_or_create(config, client=mine)


@row(POOLS)
def lease(bench: Bench) -> Measure:
    """get_or_create + release (limit: a dict lookup) | us | 1.0 x"""
    work, _ = pool_of(bench)
    return lambda: timed(bench.size(20000, 3000), work)


@row(POOLS)
def hit(bench: Bench) -> Measure:
    """get_or_create again (limit: a dict lookup) | us"""
    _, work = pool_of(bench)
    return lambda: timed(bench.size(50000, 5000), work)


@row(POOLS)
def hit_8(bench: Bench) -> Measure:
    """the same, 8 threads at once | us | 0.2 x"""
    _, work = pool_of(bench)
    return lambda: together(8, bench.size(200000, 40000), work)


@row("engine pymilvus")
def vanish(bench: Bench) -> Measure:
    """get_or_create, then the client vanishes | us | 1.5 x"""
    manager, bench.keep = bench.crowd(1)
    config = bench.managers()[1].from_uri("http://host0:19530", token="user:password")

    def work() -> None:
        manager.get_or_create(config, client=Client())

    return lambda: timed(bench.size(20000, 3000), work)


@row("engine pymilvus", rounds=5)
def memory(bench: Bench) -> Measure:
    """memory of a pooled connection, configuration included | bytes | 1.2 x"""
    bench.crowd(20)

    def weigh() -> tuple[float]:
        tracemalloc.start()
        _, held = bench.crowd(bench.size(1000, 200))
        time.sleep(0.5)  # threads that have opened them end
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return (size / len(held),)

    return weigh


@row("engine pymilvus limit")
def lookup(bench: Bench) -> Measure:
    """whose handler is it, among 10,000 (limit: a dict lookup) | us"""
    if bench.side == "limit":
        known = dict.fromkeys(range(10000))
        return lambda: timed(10000, lambda: known.get(9999))
    manager, bench.keep = bench.crowd(bench.size(10000, 1000))
    handler = bench.keep[-1][0]
    if bench.side == "pymilvus":
        return lambda: timed(20, lambda: manager._get_managed(handler))
    return lambda: timed(10000, lambda: manager._pool.find_face(handler))


@row("engine pymilvus", rounds=3)
def everybody(bench: Bench) -> Measure:
    """get_stats of 10,000, for each | us
    close_all of 10,000, for each | us"""

    def once() -> tuple[float, ...]:
        manager, held = bench.crowd(bench.size(10000, 500))
        spent = timed(1, manager.get_stats) + timed(1, manager.close_all, time.process_time)
        return tuple(each / len(held) for each in spent)

    return once


# -- RPCs ------------------------------------------------------------------------------------------


#: a connection of the row's own: pymilvus's of an earlier row was idle for too long
FRESH = "user:password"


def bare_call(bench: Bench, make: Callable[[str], Any]) -> Callable[[], Any]:
    from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

    stub = milvus_pb2_grpc.MilvusServiceStub(make(bench.address))
    return lambda: stub.GetVersion(milvus_pb2.GetVersionRequest())


@row("engine pymilvus limit")
def rpc(bench: Bench) -> Measure:
    """an RPC (limit: a bare gRPC call) | us
    an RPC, 8 threads | us"""
    import grpc
    from pymilvus import MilvusClient

    bare, count = bench.side == "limit", bench.size(1000, 200)
    work: Work = (
        bare_call(bench, grpc.insecure_channel)
        if bare
        else (MilvusClient(bench.uri, token=FRESH).get_server_version)
    )
    return lambda: timed(count, work, time.process_time) + together(8, count, work)


@row("engine pymilvus limit")
def rpc_64(bench: Bench) -> Measure:
    """an RPC, 64 tasks | us"""
    import grpc.aio
    from pymilvus import AsyncMilvusClient

    loop, each = asyncio.new_event_loop(), bench.size(30, 6)
    calls: list[Any] = []

    async def many() -> None:
        if not calls:
            bare = bench.side == "limit"
            calls.append(
                bare_call(bench, grpc.aio.insecure_channel)
                if bare
                else AsyncMilvusClient(bench.uri).get_server_version
            )
        for _ in range(each):
            await calls[0]()

    async def tasks() -> None:
        await asyncio.gather(*(many() for _ in range(64)))

    def work() -> None:
        loop.run_until_complete(tasks())

    work()
    return lambda: (timed(1, work, time.process_time)[0] / (64 * each),)


@row("engine pymilvus", judged=False)
def stall(bench: Bench) -> Measure:
    """loop stall while 50 AsyncMilvusClients are made (wall, worst) | ms"""
    from pymilvus import AsyncMilvusClient

    async def one() -> None:
        client = AsyncMilvusClient(bench.uri, dedicated=True)
        await client.get_server_version()
        await client.close()

    async def watch() -> float:
        worst, users = 0.0, asyncio.gather(*(one() for _ in range(50)))
        while not users.done():
            began = time.perf_counter()
            await asyncio.sleep(0)
            worst = max(worst, time.perf_counter() - began)
        await users
        return worst * 1e3

    return lambda: (asyncio.run(watch()),)


@row("engine pymilvus", judged=False, rounds=3)
def hanging(bench: Bench) -> Measure:
    """a checkout while 100 endpoints hang (wall; 2 of pymilvus's, for 2 s each) | ms"""
    kind, config = bench.managers()
    count = bench.size(100, 20) if bench.side == "engine" else 2

    def once() -> tuple[float]:
        manager, healthy = kind(), config.from_uri(bench.uri)
        with BlackHole() as hole, ThreadPoolExecutor(count) as crowd:

            def hang(number: int) -> None:
                endpoint = config.from_uri(hole.uri, token=f"user{number}:password")
                with suppress(Exception):
                    manager.get_or_create(endpoint, timeout=2.0)

            for number in range(count):
                crowd.submit(hang, number)
            time.sleep(0.2)
            (spent,) = timed(1, lambda: manager.get_or_create(healthy), time.perf_counter)
        manager.close_all()
        return (spent / 1e3,)

    return once


# -- steps, imports, logs --------------------------------------------------------------------------


def transition(bench: Bench, sink: str) -> Measure:
    """The last client goes, and one comes: two transitions (the bare library's do nothing)."""
    count = bench.size(2000, 500)
    flush: Callable[[float], object] = float
    if bench.side == "limit":
        moves = [["there", "a", "b"], ["back", "b", "a"]]
        machine = import_module("transitions").Machine(
            states=["a", "b"], transitions=moves, initial="a"
        )

        def work() -> None:
            machine.there()
            machine.back()

    else:
        import structlog

        from milvus_lifecycle import ConnectionConfig, ConnectionManager
        from milvus_lifecycle.audit.jsonl import JsonLines
        from milvus_lifecycle.audit.logs import ApplicationLog
        from milvus_lifecycle.table import Trigger
        from milvus_lifecycle.testing import Script

        folder = bench.stack.enter_context(tempfile.TemporaryDirectory())
        if sink == "structlog":
            log = bench.stack.enter_context(Path(folder, "log").open("w"))  # noqa: SIM115
            stamp, render = structlog.processors.TimeStamper(), structlog.processors.JSONRenderer()
            structlog.configure(
                [structlog.processors.add_log_level, stamp, render],
                logger_factory=structlog.WriteLoggerFactory(log),
            )
            bench.stack.callback(structlog.reset_defaults)
        reader = JsonLines(f"{folder}/audit") if sink == "json" else ApplicationLog()
        manager: Any = ConnectionManager(transport=Script().threads(), sinks=(reader,))
        pool, client = manager._pool, Client()
        manager.get_or_create(ConnectionConfig.from_uri("http://home:19530"), client=client)
        (connection,), flush = pool.registry.all(), pool.audit.flush

        def work() -> None:
            pool.give_back(connection, client)
            connection.lease(client)
            pool.step(connection, Trigger.ACQUIRE)

    def burst() -> None:
        for _ in range(count):
            work()
        flush(10.0)

    return lambda: (timed(1, burst, time.process_time)[0] / count / 2,)


@row("engine limit")
def step(bench: Bench) -> Measure:
    """a transition, no reader (limit: the bare library's) | us | 10"""
    return transition(bench, "none")


@row("engine limit")
def step_json(bench: Bench) -> Measure:
    """a transition, to JSON lines | us | 25"""
    return transition(bench, "json")


@row("engine limit")
def step_structlog(bench: Bench) -> Measure:
    """a transition, to a file by structlog | us | 30"""
    return transition(bench, "structlog")


@row("engine pymilvus", rounds=3, name="import")
def importing(bench: Bench) -> Measure:
    """import and install, after pymilvus's import | ms | 40"""
    ours = bench.side == "engine"
    first, then = (
        ("pymilvus, ", "milvus_lifecycle; milvus_lifecycle.install()") if ours else ("", "pymilvus")
    )
    program = f"import {first}time; t = time.process_time(); import {then};"
    program += "print(time.process_time() - t)"

    def once() -> tuple[float]:
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        return (float(said.stdout) * 1e3,)

    return once


@row("engine limit", rounds=3)
def logs(bench: Bench) -> Measure:
    """audit verify, 100,000 records (limit: json.loads) | s
    audit report, 100,000 records (limit: json.loads) | s | 2.5
    its memory at most | MB"""
    path = Path(bench.stack.enter_context(tempfile.TemporaryDirectory())) / "audit.jsonl"
    make_log(path, bench.size(100_000, 5_000), connections=200)
    commands = ("verify", "report") if bench.side == "engine" else ("parse", "parse")

    def once() -> tuple[float, ...]:
        verified, reported = (measure(path, command) for command in commands)
        return verified["seconds"], reported["seconds"], reported["peak_mb"]

    return once


# -- outages ---------------------------------------------------------------------------------------


def after_outage(bench: Bench, seconds: float) -> Measure:
    """How long after the server's return the last of 8 threads that go on calling is served."""
    from pymilvus import MilvusClient

    def once() -> tuple[float]:
        over, good = threading.Event(), dict.fromkeys(range(8), 0.0)
        with TcpProxy(int(bench.uri.rpartition(":")[2])) as proxy:
            client = MilvusClient(proxy.uri)

            def call(number: int) -> None:
                while not over.is_set():
                    with suppress(Exception):
                        client.get_server_version()
                        good[number] = good[number] or time.monotonic()
                    over.wait(0.02)

            for number in good:
                threading.Thread(target=call, args=(number,), daemon=True).start()
            time.sleep(0.5)
            proxy.set_mode("refuse", cut=True)
            time.sleep(seconds)
            good.update(dict.fromkeys(good, 0.0))
            proxy.set_mode("pass")
            back = time.monotonic()
            while not all(good.values()) and time.monotonic() < back + 90:
                time.sleep(0.005)
            over.set()
            client.close()
        return ((max(good.values()) if all(good.values()) else math.inf) - back,)

    return once


@row("engine pymilvus", judged=False, rounds=3)
def outage_12(bench: Bench) -> Measure:
    """the slowest of 8 threads is served again, after 12 s (wall) | s | 0.3"""
    return after_outage(bench, bench.size(12, 1))


@row("engine pymilvus", judged=False, rounds=2)
def outage_30(bench: Bench) -> Measure:
    """... after 30 s (wall) | s | 0.6"""
    return after_outage(bench, bench.size(30, 1))


@row("engine", judged=False, rounds=2)
def outage_45(bench: Bench) -> Measure:
    """... after 45 s (wall) | s | 0.9"""
    return after_outage(bench, bench.size(45, 1))


class Attempts(set[object]):
    """Which Connect calls are under way, and how many there were at most."""

    most = 0

    def add(self, call: object) -> None:
        super().add(call)
        self.most = max(self.most, len(self))


@row("engine", judged=False, rounds=1)
def storm(bench: Bench) -> Measure:
    """1,000 connections lose a server: attempts at once | count | 8
    ... threads of the engine | count | 12
    ... CPU meanwhile, of one core | % | 10
    ... all ACTIVE again after its return (wall) | s | 1
    ... a healthy endpoint's slowest RPC meanwhile (wall) | ms | 50"""
    from milvus_lifecycle import ConnectionConfig, ConnectionManager
    from milvus_lifecycle.drivers.pymilvus import ThreadsTransport

    asked, from_uri = Attempts(), ConnectionConfig.from_uri

    class Counting(ThreadsTransport):
        def register(self, *args: Any, **kwargs: Any) -> str:
            asked.add(call := object())
            try:
                return super().register(*args, **kwargs)
            finally:
                asked.discard(call)

    def once() -> tuple[float, ...]:
        count, threads, slowest = bench.size(1000, 60), 0, 0.0
        manager, clients = ConnectionManager(transport=Counting()), [Client() for _ in range(count)]
        healthy = manager.get_or_create(from_uri(bench.uri), client=clients[0])

        def all_active() -> bool:
            nonlocal threads, slowest
            names = [thread.name for thread in threading.enumerate()]
            threads = max(threads, sum(name.startswith("milvus-lifecycle") for name in names))
            slowest = max(slowest, *timed(1, healthy.get_server_version, time.perf_counter))
            states = [each["state"] for each in manager.get_stats()["connections"]]
            return states.count("ACTIVE") == count + 1

        def fail(handler: Any) -> None:
            with suppress(Exception):
                handler.get_server_version(timeout=0.02)

        with FakeMilvusProcess() as server, ThreadPoolExecutor(16) as crowd:
            configs = [from_uri(server.uri, token=f"user{n}:password") for n in range(count)]
            made = crowd.map(
                lambda n: manager.get_or_create(configs[n], client=clients[n]), range(count)
            )
            handlers = list(made)
            server.kill()
            asked.most = 0
            list(crowd.map(fail, handlers))
            before, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
            while time.monotonic() < began + bench.size(20, 2):
                time.sleep(0.2)
                all_active()
            after, spell = resource.getrusage(resource.RUSAGE_SELF), time.monotonic() - began
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            server.start()
            back = time.monotonic()
            while not all_active() and time.monotonic() < back + 60:
                time.sleep(0.01)
            served = time.monotonic() - back
        manager.close_all()
        return asked.most, threads, cpu / spell * 100, served, slowest / 1e3

    return once


def serve(side: str, uri: str, quick: bool, pipe: Any) -> None:
    """A side's process: arranges the rows it is told the names of, and measures when it is told."""
    logging.disable()  # pymilvus logs every call that fails
    if side == "engine":
        import_module("milvus_lifecycle").install()
    while name := pipe.recv():
        with ExitStack() as stack:
            bench = Bench(side, uri, quick, stack)
            if side in ("engine", "pymilvus"):
                # A channel of pymilvus's that is idle for a minute is told off by its server.
                stack.callback(bench.managers()[0].get_instance().close_all)
            try:
                once = ROWS[name].body(bench)
            except ImportError as error:  # a pool that is not installed
                pipe.send(str(error))
                continue
            pipe.send("")
            while pipe.recv():
                pipe.send(once())
