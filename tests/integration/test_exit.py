"""Calls from an ``atexit`` function that was registered before the engine was imported.

It runs after the engine has closed everything. Python 3.12 starts no thread then: that is imitated
on others. grpc.aio needs one: there no event loop can use it at exit, with or without the engine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flavours import FLAVOURS
from tests.processes import REPOSITORY, FakeMilvusProcess

pytestmark = pytest.mark.timeout(120)

_LEAVE = """
import asyncio, atexit, sys, threading
flavour, uri, path = sys.argv[1:]

def refuse(thread):
    raise RuntimeError("can't create new thread at interpreter shutdown")

def at_exit():
    try:
        if flavour == "threads":
            threading.Thread.start = refuse
            flush()
        else:
            asyncio.run(aflush())
        print("flushed", flush=True)
    except BaseException as error:
        print(repr(error), flush=True)

atexit.register(at_exit)
import milvus_lifecycle as ml
ml.install(audit=path)
from pymilvus import AsyncMilvusClient, MilvusClient

def flush():
    client.create_alias("demo", "one")
    client.create_alias("demo", "two")

async def connect():
    client = AsyncMilvusClient(uri)
    await client.list_collections()
    return client

async def aflush():
    client = await connect()
    await client.create_alias("demo", "one")
    await client.create_alias("demo", "two")

if flavour == "threads":
    client = MilvusClient(uri)
    client.list_collections()
else:
    client = asyncio.run(connect())
print("connected", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_flush_at_exit_is_served(flavour: str, tmp_path: Path) -> None:
    """The server was restarted meanwhile: the client is revived, and all of it is on record."""
    if flavour == "asyncio" and sys.version_info[:2] == (3, 12):
        pytest.skip("grpc.aio crashes, or can start no thread, at the exit of Python 3.12")
    path = tmp_path / "audit.jsonl"
    with FakeMilvusProcess(flaky=["CreateAlias"]) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", _LEAVE, flavour, server.uri, str(path)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "connected\n"
            server.kill()
            server.start()
            said, errors = process.communicate("go on\n", timeout=60)
        finally:
            process.kill()
    assert (said, "Traceback" in errors) == ("flushed\n", False), errors
    records = [json.loads(line) for line in path.read_text().splitlines()]
    told = [record["trigger"] for record in records]
    assert told[told.index("fail") :][:4] == ["fail", "recovered", "fail", "recovered"]
