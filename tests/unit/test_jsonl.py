"""JSON lines: one file for several processes, rotation, a full disk, and what cannot be a file."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from milvus_lifecycle import ConnectionConfig, ConnectionManager
from milvus_lifecycle.audit.jsonl import ENVIRONMENT, JsonLines, _quick, audit_path, encode_record
from milvus_lifecycle.audit.records import DEBUG, TransitionRecord
from milvus_lifecycle.audit.stream import end
from milvus_lifecycle.errors import ConfigError
from milvus_lifecycle.testing import CapturedAudit, FakeClock, Script
from tests.processes import REPOSITORY

CONFIG = ConnectionConfig.from_uri("http://127.0.0.1:19530")
PROCESSES, LINES = 4, 500


def a_record() -> TransitionRecord:
    """A record as the engine makes them."""
    manager = ConnectionManager(transport=Script().threads(), seams=FakeClock().seams())
    audit = CapturedAudit(manager)
    manager.get_or_create(CONFIG)
    record = audit.wait_for("probe_passed")
    manager.close_all()
    return record


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a log."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_line_a_record(tmp_path: Path) -> None:
    """Each record is one line with every field of the schema."""
    record, path = a_record(), tmp_path / "audit.jsonl"
    sink = JsonLines(str(path))
    for _ in range(3):
        sink.write(record, DEBUG)
    assert read(path) == [record.as_dict()] * 3
    assert set(record.as_dict()) == set(TransitionRecord.__dataclass_fields__)


def _write_many(path: str, record: TransitionRecord) -> None:
    sink = JsonLines(path)
    for _ in range(LINES):
        sink.write(record, DEBUG)


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    """Lines of processes that write at the same time are all there, and none is torn."""
    record, path = a_record(), tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write_many, args=(str(path), record)) for _ in range(PROCESSES)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * PROCESSES
    assert read(path) == [record.as_dict()] * (PROCESSES * LINES)


def test_a_rotated_file_is_opened_anew(tmp_path: Path) -> None:
    """After a rename or a removal records go to a new file of the old name."""
    record, path = a_record(), tmp_path / "audit.jsonl"
    sink = JsonLines(str(path))
    sink.write(record, DEBUG)
    path.rename(tmp_path / "audit.jsonl.1")
    sink.write(record, DEBUG)
    path.unlink()
    sink.write(record, DEBUG)
    sink.write(record, DEBUG)
    assert len(read(tmp_path / "audit.jsonl.1")) == 1
    assert len(read(path)) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_costs_records_and_says_how_many(tmp_path: Path) -> None:
    """What a full disk refuses is counted, and declared first once writing works again."""
    record, path = a_record(), tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    sink = JsonLines(str(path))
    for _ in range(3):
        sink.write(record, DEBUG)
    assert sink.lost == 3
    path.unlink()
    sink.write(record, DEBUG)
    confession, written = read(path)
    assert (confession["event"], confession["count"]) == ("connection.records_lost", 3)
    assert written == record.as_dict()
    assert sink.lost == 0


_SHORT = """
import os, resource, sys
from milvus_lifecycle.audit.records import DEBUG
from milvus_lifecycle.audit.jsonl import JsonLines
from tests.unit.test_jsonl import a_record
record, sink, path = a_record(), JsonLines(sys.argv[1]), sys.argv[1]
sink.write(record, DEBUG)
one = os.stat(path).st_size
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2 * one + one // 2, hard))
for _ in range(4):
    sink.write(record, DEBUG)
print(sink.lost)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
sink.write(record, DEBUG)
"""


@pytest.mark.skipif(find_spec("resource") is None, reason="needs a POSIX system")
def test_a_line_that_the_disk_cuts_short_becomes_an_empty_one(tmp_path: Path) -> None:
    """What fits of a line on a full disk is no broken line in the log, only a loss on record."""
    path = tmp_path / "audit.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", _SHORT, str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n"
    lines = path.read_text().splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    assert len(lines) == len(records) + 1
    assert [record["event"] for record in records].index("connection.records_lost") == 2
    assert records[2]["count"] == 3
    assert len(records) == 4


def test_a_folder_that_goes_away_harms_nobody(tmp_path: Path) -> None:
    """Without a folder to write into, records are lost and counted, not raised."""
    folder = tmp_path / "logs"
    folder.mkdir()
    sink = JsonLines(str(folder / "audit.jsonl"))
    folder.rmdir()
    sink.write(a_record(), DEBUG)
    assert sink.lost == 1


def test_the_path_is_checked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is missing, a folder itself, or no path at all: an error that names it."""
    for bad in (str(tmp_path / "missing" / "a.jsonl"), str(tmp_path), 7, ""):
        with pytest.raises(ConfigError, match="audit"):
            audit_path(bad)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "env.jsonl"))
    assert audit_path(None) == str(tmp_path / "env.jsonl")
    assert audit_path(tmp_path / "own.jsonl") == str(tmp_path / "own.jsonl")
    monkeypatch.delenv(ENVIRONMENT)
    assert audit_path(None) is None


def test_an_ended_sink_writes_late_records_and_stays_closed(tmp_path: Path) -> None:
    """A record that comes after the end is kept, and no file is open after it."""
    record, path = a_record(), tmp_path / "audit.jsonl"
    sink = JsonLines(str(path))
    sink.write(record, DEBUG)
    end(sink, 20)
    before = len(os.listdir("/proc/self/fd"))
    sink.write(record, DEBUG)
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(read(path)) == 2


@pytest.mark.parametrize("missing", [(), ("msgspec.json",), ("msgspec.json", "orjson")])
def test_every_encoder_writes_the_same(
    missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is installed. What is no Unicode is escaped, and costs no record."""
    _quick.cache_clear()
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    record = a_record()
    for reason in ("plain", "\u00fcber \u2028 \U0001f600", "half \ud83d a character"):
        told = replace(record, reason=reason)
        assert json.loads(encode_record(told)) == told.as_dict()
    monkeypatch.undo()
    _quick.cache_clear()
