"""What a fault must not leave behind: threads, processes, sockets and file descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
from pymilvus.grpc_gen import milvus_pb2, milvus_pb2_grpc

from tests.observe import came_true
from tests.servers import FakeMilvus

#: Seconds until everything has to be gone. An unanswered HTTP/2 handshake keeps its TCP
#: connection about 20 s after gRPC closed the channel.
LIMIT = 60.0


#: As long as one channel object is alive, gRPC keeps its pollers. Without it, a client that is
#: closed and not yet collected would look as if it held them.
_KEPT: list[grpc.Channel] = []


def child_processes() -> set[int]:
    """The pids of this process's children, those that ended and were not waited for included."""
    own, found = str(os.getpid()), set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name in brackets may hold anything, a bracket too; after it: state, parent.
                stat = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                if stat[1] == own:
                    found.add(int(entry))
    return found


def descriptors() -> Counter[str]:
    """How many file descriptors are open: "socket", "pipe", ... or the file's name."""
    kinds: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            kinds[re.sub(r":\[\d+\]", "", target)] += 1
    return kinds


class Inventory:
    """What this process holds at one moment."""

    def __init__(self) -> None:
        self.threads = {thread.ident: thread.name for thread in threading.enumerate()}
        self.processes = len(child_processes())
        self.descriptors = descriptors()

    def more(self) -> list[str]:
        """What there is now and was not then."""
        gc.collect()
        now = Inventory()
        found = [
            f"thread {name}" for ident, name in now.threads.items() if ident not in self.threads
        ]
        if now.processes > self.processes:
            found.append(f"{now.processes - self.processes} processes")
        grown = now.descriptors - self.descriptors
        return found + [f"{count} of {kind}" for kind, count in sorted(grown.items())]


def warm_up() -> None:
    """Let gRPC open what it keeps for the life of the process: pollers, event engines.

    By gRPC's own channels: pymilvus's manager would keep one, and then no forked child can use
    grpc.aio.
    """
    request = milvus_pb2.ShowCollectionsRequest()
    _KEPT.append(grpc.insecure_channel("127.0.0.1:9"))
    with FakeMilvus() as server:
        with grpc.insecure_channel(server.address) as channel:
            milvus_pb2_grpc.MilvusServiceStub(channel).ShowCollections(request)

        async def once() -> None:
            async with grpc.aio.insecure_channel(server.address) as aio_channel:
                await milvus_pb2_grpc.MilvusServiceStub(aio_channel).ShowCollections(request)

        asyncio.run(once())


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if the body leaves more behind than there was; it is given LIMIT seconds."""
    before = Inventory()
    yield
    began = time.monotonic()
    gone = came_true(lambda: not before.more(), LIMIT, every=0.1)
    assert gone, f"left over after {time.monotonic() - began:.0f} s: {before.more()}"
