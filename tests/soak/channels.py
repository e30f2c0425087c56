"""What a channel leaves in memory when it is closed: the engine's, and as a control gRPC's own.

By hand: `python -m tests.faults.alone tests.soak.channels:leave_nothing threads FOLDER`.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import grpc
from pymilvus import MilvusClient
from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

from tests.faults.scene import engine
from tests.processes import FakeMilvusProcess
from tests.soak.levels import malloced

_THREADS, _ROUNDS = 100, 10
#: bytes for each channel
_LIMIT = 200.0


def leave_nothing(flavour: str, folder: Path) -> str:
    """Threads that live on open a channel each, make a call and close it, round after round."""
    with FakeMilvusProcess() as server:
        bare = _bytes_each(partial(_use_channel, server.address))
        with engine(folder / "audit.jsonl"):
            ours = _bytes_each(partial(_use_client, server.uri))
    figures = f"bytes left by each channel: gRPC's {bare:.0f}, the engine's {ours:.0f}"
    assert max(bare, ours) < _LIMIT, figures
    return figures


def _use_channel(address: str) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = milvus_pb2_grpc.MilvusServiceStub(channel)
        stub.ShowCollections(milvus_pb2.ShowCollectionsRequest())


def _use_client(uri: str) -> None:
    with closing(MilvusClient(uri, dedicated=True)) as client:
        client.list_collections()


def _bytes_each(use: Callable[[], object]) -> float:
    """By how much memory in use grows with each channel in the second half of the rounds."""
    begin, held = threading.Barrier(_THREADS), []

    def work(_: int) -> None:
        begin.wait()  # so that each thread has one
        use()

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in range(_ROUNDS):
            list(pool.map(work, range(_THREADS)))
            time.sleep(1.0)  # gRPC's threads close sockets
            gc.collect()
            held.append(malloced())
    half = _ROUNDS // 2
    return (held[-1] - held[half - 1]) / (half * _THREADS)
