"""A program that flushes as it exits, after the engine has closed everything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.processes import REPOSITORY, FakeMilvusProcess

pytestmark = pytest.mark.timeout(120)


@contextmanager
def program(source: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program of Python; each line that it is told lets it go on, each it says is waited for."""
    process = subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str], line: str) -> None:
    """Wait for a line."""
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said == f"{line}\n", (said, *process.communicate(timeout=60))


def tell(process: subprocess.Popen[str]) -> None:
    """Let the program go on."""
    assert process.stdin is not None
    process.stdin.write("go on\n")
    process.stdin.flush()


_FLUSH = """
import asyncio, atexit, sys, threading
name, uri = sys.argv[1:]
def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")
def flush():
    if name == "threads":
        threading.Thread.start = refuse
        print("flushed", client.list_collections(), flush=True)
    else:
        print("flushed", asyncio.run(lists()), flush=True)
async def lists():
    client = AsyncMilvusClient(uri)
    return await client.list_collections()
atexit.register(flush)
import milvus_lifecycle as ml
ml.install()
from pymilvus import AsyncMilvusClient, MilvusClient
if name == "threads":
    client = MilvusClient(uri)
    client.list_collections()
else:
    asyncio.run(lists())
print("connected", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("restart", [False, True], ids=["up", "restarted"])
@pytest.mark.parametrize("name", ["threads", "asyncio"])
def test_a_flush_at_exit(name: str, restart: bool) -> None:
    """It was registered before the engine was imported, so the engine has closed all before it.

    Python 3.12 starts no thread any more by then: imitated on others, but for asyncio.
    """
    if name == "asyncio" and sys.version_info[:2] == (3, 12):
        pytest.skip("grpc.aio can start no thread at the exit of Python 3.12")
    with FakeMilvusProcess() as server, program(_FLUSH, name, server.uri) as process:
        says(process, "connected")
        if restart:
            server.kill()
            server.start()
        tell(process)
        says(process, "flushed ['demo']")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors
