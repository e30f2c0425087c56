"""Faults of the program itself: forks, crowds, collections in odd places, nothing left to open."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pymilvus import MilvusClient
from pymilvus.exceptions import MilvusException

import milvus_lifecycle as ml
from milvus_lifecycle.replay.verify import verify_logs
from tests.faults.load import Flavour, Load, Tally, list_only, run_once
from tests.faults.scene import count, engine, verify
from tests.network import TcpProxy
from tests.observe import ChannelCount, came_true
from tests.processes import FakeMilvusProcess

_CHILDREN = 8


def _figures(tally: Tally, more: str) -> str:
    return f"{len(tally.failed)} of {tally.calls:,} calls failed; {more}"


@contextlib.contextmanager
def _behind_a_proxy(flavour: Flavour, workers: int = 8) -> Iterator[tuple[TcpProxy, Load]]:
    """A load on a fake Milvus in a process of its own that nothing has happened to yet."""
    with (
        FakeMilvusProcess() as server,
        TcpProxy(server.port) as proxy,
        Load(flavour, proxy.uri, workers=workers, operations=list_only) as load,
    ):
        assert load.served_again(60) is not None, load.tally.failed[:3]
        yield proxy, load
        assert load.stop(90), "a call never ended"
        assert load.complaints == []
        assert load.tally.failed == []


def _outage(proxy: TcpProxy, seconds: float) -> None:
    proxy.set_mode("refuse", cut=True)
    time.sleep(seconds)
    proxy.set_mode("pass")


# -- crowds ------------------------------------------------------------------------------------


def a_crowd_loses_its_server(flavour: Flavour, folder: Path) -> str:
    """200 threads or 2,000 coroutines ride through 3 s together: one flight, few channels."""
    workers = 200 if flavour == "threads" else 2000
    with engine(folder / "audit.jsonl"), _behind_a_proxy(flavour, workers) as (proxy, load):
        with ChannelCount() as channels:
            _outage(proxy, 3.0)
            served = load.served_again(60)
            assert served is not None, load.tally.failed[:3]
        assert len(channels) <= 12
    flights = count(folder / "audit.jsonl", "fail")
    assert flights <= 3, f"{flights} recoveries"
    more = f"{workers:,} at once, all served {served:.1f} s after 3 s without a server; "
    return _figures(load.tally, f"{more}{flights} recoveries, {len(channels)} channels")


# -- the garbage collector -----------------------------------------------------------------------


def the_collector_runs_everywhere(flavour: Flavour, folder: Path) -> str:
    """`gc.set_threshold(1)`: clients that vanish in cycles, finalized inside critical sections."""
    thresholds = gc.get_threshold()
    with engine(folder / "audit.jsonl"), _behind_a_proxy(flavour) as (proxy, load):
        vanished, until = 0, time.monotonic() + 8.0
        gc.set_threshold(1)
        try:
            struck = False
            while time.monotonic() < until:
                for dedicated in (False, True):
                    client: Any = MilvusClient(proxy.uri, dedicated=dedicated)
                    client.itself = client
                    client.list_collections()
                    del client
                    vanished += 1
                if not struck and until - time.monotonic() < 4.0:
                    struck = True
                    proxy.cut()
            served = load.served_again(60)
        finally:
            gc.set_threshold(*thresholds)
        assert served is not None, load.tally.failed[:3]
        gc.collect()
        left = 8 if flavour == "threads" else 0
        stats = ml.ConnectionManager.get_instance().get_stats()
        assert came_true(lambda: _leases() == left, 20), stats
    return _figures(load.tally, f"{vanished} clients vanished without close(), no lease is left")


def _leases() -> int:
    rows = ml.ConnectionManager.get_instance().get_stats()["connections"]
    return sum(row["clients"] for row in rows)


# -- forks ---------------------------------------------------------------------------------------


def forks_under_load(flavour: Flavour, folder: Path) -> str:
    """Eight children, forked one after the other under load, work with an inherited client.

    Asyncio: a process may not fork inside a loop with an open channel (docs/integration.md), so
    the load is that of threads, and each child runs a loop and a client of its own.
    """
    with engine(folder / "audit.jsonl"), _behind_a_proxy("threads") as (proxy, load):
        client: Any = MilvusClient(proxy.uri)
        client.list_collections()
        work = client.list_collections if flavour == "threads" else lambda: run_once(proxy.uri)
        said = ask_children(work, _CHILDREN, 30.0)
        assert said == ["['demo']"] * _CHILDREN, said
        assert load.served_again(30) is not None
        client.close()
    return _figures(load.tally, f"{_CHILDREN} children forked under it, all were answered")


def ask_children(work: Callable[[], object], children: int, limit: float) -> list[str]:
    """What forked children answer: the repr of work(), their error, their signal, or nothing."""
    asked = [_fork(work) for _ in range(children)]
    said = []
    for child, pipe in asked:
        readable, _, _ = select.select([pipe], [], [], limit)
        answer = os.read(pipe, 65536).decode() if readable else "nothing: it hangs"
        os.close(pipe)
        if not readable:
            os.kill(child, signal.SIGKILL)
        _, ended = os.waitpid(child, 0)
        said.append(answer or f"nothing: it died, wait status {ended}")
    return said


def _fork(work: Callable[[], object]) -> tuple[int, int]:
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            word = repr(work())
        except BaseException as error:
            word = f"{type(error).__name__}: {error}"
        os.write(theirs, word.encode())
        os._exit(0)
    os.close(theirs)
    return child, ours


# -- nothing left to open ------------------------------------------------------------------------


@contextlib.contextmanager
def _no_descriptor_left() -> Iterator[None]:
    """Not one more file, socket or pipe can be opened by this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        while True:
            try:
                taken.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def no_descriptor_is_left(flavour: Flavour, folder: Path) -> str:
    """A connection is lost while no socket can be had: its calls wait until one can be.

    A client that connects for the first time meanwhile gets an error at its timeout.
    """
    with engine(folder / "audit.jsonl"), FakeMilvusProcess() as server:
        with Load(flavour, server.uri, operations=list_only) as load:
            assert load.served_again(60) is not None, load.tally.failed[:3]
            began = time.monotonic()
            with _no_descriptor_left():
                server.pause()
                server.kill()
                refused = _connect_elsewhere()
                time.sleep(3.0)
            server.start()
            lasted = time.monotonic() - began
            served = load.served_again(60)
            assert served is not None, load.tally.failed[:3]
            assert load.stop(60), "a call never ended"
        assert load.complaints == []
        assert load.tally.failed == []
    return _figures(
        load.tally,
        f"no descriptor and no server for {lasted:.1f} s, all served {served:.1f} s after it; "
        f"a first connect meanwhile: {refused}",
    )


def _connect_elsewhere() -> str:
    try:
        MilvusClient("http://127.0.0.1:9", timeout=2)
    except MilvusException as error:
        return type(error).__name__
    raise AssertionError("it connected to nothing")


# -- a full disk ---------------------------------------------------------------------------------


def the_disk_is_full(flavour: Flavour, folder: Path) -> str:
    """The file of the audit log cannot grow during an outage: no call notices, the log says so.

    The limit falls into the middle of a line, as the end of a disk does.
    """
    audit = folder / "audit.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with engine(audit), _behind_a_proxy(flavour) as (proxy, load):
        resource.setrlimit(resource.RLIMIT_FSIZE, (audit.stat().st_size + 300, limits[1]))
        try:
            _outage(proxy, 2.0)
            assert load.served_again(60) is not None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        _outage(proxy, 1.0)
        assert load.served_again(60) is not None
    verdict = verify(audit)
    assert verdict.lost_records > 0
    assert verify_logs([str(audit)]).exit_code == 0
    more = f"{verdict.lost_records} records lost and declared, {verdict.records} kept"
    return _figures(load.tally, more)
