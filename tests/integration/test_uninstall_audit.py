"""After uninstall the audit file is closed, whatever the application still holds."""

from __future__ import annotations

import os
from pathlib import Path

from pymilvus import MilvusClient

import milvus_lifecycle as ml
from tests.observe import wait_until
from tests.servers import FakeMilvus


def test_a_client_that_is_kept_keeps_no_file_open(server: FakeMilvus, tmp_path: Path) -> None:
    """A closed client keeps its manager; the file of the audit log is closed all the same."""
    audit = tmp_path / "audit.jsonl"
    ml.install(audit=str(audit))
    client = MilvusClient(server.uri)
    client.close()
    ml.uninstall()
    assert audit.read_text()
    # A record that is still on its way opens the file once more, and closes it.
    assert wait_until(lambda: str(audit) not in _open_files(), 10)
    del client


def _open_files() -> list[str]:
    names = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return [os.readlink(name) for name in names if os.path.islink(name)]
