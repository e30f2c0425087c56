"""After uninstall the audit file is closed, whatever the application still holds."""

from __future__ import annotations

import os
from pathlib import Path

from pymilvus import MilvusClient

import milvus_lifecycle as ml
from tests.servers import FakeMilvus


def test_a_client_that_is_kept_keeps_no_file_open(server: FakeMilvus, tmp_path: Path) -> None:
    """A closed client keeps its manager; the file of the audit log is closed all the same."""
    audit = tmp_path / "audit.jsonl"
    ml.install(audit=str(audit))
    client = MilvusClient(server.uri)
    client.close()
    ml.uninstall()
    assert audit.read_text()
    names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    assert str(audit) not in [os.readlink(name) for name in names if os.path.islink(name)]
    del client
