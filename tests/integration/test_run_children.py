"""Processes that a program under `milvus-lifecycle run` starts are on the engine as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import REPOSITORY
from tests.servers import FakeMilvus

_PROGRAM = """
import asyncio, multiprocessing, os, subprocess, sys
from concurrent.futures import ProcessPoolExecutor
from pymilvus import AsyncMilvusClient, MilvusClient
from pymilvus.client.connection_manager import ConnectionManager

#: as early as a child can make a client: while it imports its parent's program
at_import = ConnectionManager.get_instance()

async def work_in_a_loop(uri):
    async with AsyncMilvusClient(uri) as client:
        return await client.list_collections()

def work(uri):
    assert MilvusClient(uri).list_collections() == ["demo"]
    assert asyncio.run(work_in_a_loop(uri)) == ["demo"]
    pool = getattr(at_import, "_pool", None)
    print(os.getpid(), type(at_import).__module__, pool and pool.policy.recovery_budget, flush=True)

if __name__ == "__main__":
    uri, *budget = sys.argv[1:]
    if budget:
        import milvus_lifecycle as ml
        ml.install(policy=ml.LifecyclePolicy(recovery_budget=float(budget[0])))
        at_import = ConnectionManager.get_instance()
    for method in "fork", "forkserver":
        child = multiprocessing.get_context(method).Process(target=work, args=(uri,))
        child.start()
        child.join()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(work, uri).result()
    os.chdir("elsewhere")
    code = "import sys; sys.path.insert(0, '..'); import app; app.work(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, uri], check=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("by_the_program", [False, True], ids=["environment", "own-install"])
def test_children_are_on_the_engine(
    server: FakeMilvus, tmp_path: Path, by_the_program: bool
) -> None:
    """Forked, of a fork server, spawned, any Python: its policy, and their records in its file."""
    server.collections = ["demo"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "app.py").write_text(_PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "milvus_lifecycle", "run", "--audit", "audit.jsonl", "app.py"]
    command.append(server.uri)
    if by_the_program:
        command.append("7.5")
    else:
        environment["MILVUS_LIFECYCLE_POLICY"] = '{"recovery_budget": 7.5, "linger": null}'
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    children = [line.split() for line in done.stdout.splitlines()]
    assert [words[1:] for words in children] == [["milvus_lifecycle.managers", "7.5"]] * 4
    records = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert {record["pid"] for record in records} == {int(words[0]) for words in children}
