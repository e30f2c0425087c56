"""``audit verify``: what is legal passes, what is not is found where it is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milvus_lifecycle.replay.findings import NOTES, Kind, Problem
from milvus_lifecycle.replay.verify import Verdict, plan_pieces, verify_logs
from tests.audit_logs import Story
from tests.corruption import CORRUPTIONS, Fields, Victim, encode, join
from tests.made_up import synthetic_records


def write(path: Path, records: list[Fields]) -> str:
    path.write_bytes(join([encode(record) for record in records]))
    return str(path)


def violations(verdict: Verdict) -> list[Problem]:
    return [problem for problem in verdict.problems.kept if problem.kind not in NOTES]


def kinds(verdict: Verdict) -> list[tuple[Kind, int]]:
    return [(problem.kind, problem.line) for problem in verdict.problems.kept]


def told(verdict: Verdict) -> list[tuple[Kind, str, int, str, str | None]]:
    return [
        (one.kind, one.file, one.line, one.message, one.connection_id)
        for one in verdict.problems.kept
    ]


def loss(record: Fields, count: int, **fields: Any) -> Fields:
    confession = {"event": "connection.records_lost", "connection_id": None, "schema": 1}
    return {**confession, "ts": record["ts"], "pid": record["pid"], "count": count, **fields}


@pytest.fixture
def log() -> list[Fields]:
    return list(synthetic_records(600, seed=11, connections=12))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_what_the_table_allows_is_legal(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A log whose every step is a row of the table verifies clean, whatever the walk."""
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    verdict = verify_logs([write(path, list(synthetic_records(500, seed=seed)))])
    assert kinds(verdict) == []
    assert (verdict.exit_code, verdict.records) == (0, 500)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_kind_of_corruption_is_found(name: str, seed: int, tmp_path: Path) -> None:
    """Each seeded kind of damage is a violation, told with the right file and line."""
    path = tmp_path / "audit.jsonl"
    damage = CORRUPTIONS[name](Victim(seed))
    path.write_bytes(damage.data)
    verdict = verify_logs([str(path)])
    assert verdict.exit_code == 1
    found = [problem for problem in violations(verdict) if problem.kind is damage.kind]
    assert (str(path), damage.line) in [(problem.file, problem.line) for problem in found], (
        f"{name}, seed {seed}: expected {damage.kind} in line {damage.line}, found {kinds(verdict)}"
    )


def test_there_are_more_than_twenty_kinds_of_corruption() -> None:
    """The proof covers what it claims: at least 20 kinds, and every kind of finding about lines."""
    assert len(CORRUPTIONS) >= 20
    promised = {CORRUPTIONS[name](Victim(1)).kind for name in CORRUPTIONS}
    assert promised == {*Kind} - NOTES - {Kind.UNREADABLE, Kind.CUT_FILE}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_rest_is_still_read(name: str, tmp_path: Path) -> None:
    """Damage costs at most the records that it hit: all others are read and judged."""
    path = tmp_path / "audit.jsonl"
    victim = Victim(5)
    path.write_bytes(CORRUPTIONS[name](victim).data)
    verdict = verify_logs([str(path)])
    assert verdict.records >= len(victim.records) - 2


def test_a_confessed_gap_is_no_violation(log: list[Fields], tmp_path: Path) -> None:
    """What ``records_lost`` covers is told as a note."""
    index = next(i for i in range(300, 600) if log[i]["seq"] > 2)
    victim = log.pop(index)
    log.insert(index + 1, loss(victim, 1))
    verdict = verify_logs([write(tmp_path / "audit.jsonl", log)])
    assert verdict.exit_code == 0, violations(verdict)
    assert verdict.lost_records == 1
    assert {kind for kind, _ in kinds(verdict)} <= {Kind.RECORDS_LOST, Kind.COVERED_GAP}


def test_a_confession_of_another_process_covers_nothing(log: list[Fields], tmp_path: Path) -> None:
    """A process can only speak for its own connections."""
    ids = [record["connection_id"] for record in log]
    index = next(i for i in range(100, 600) if log[i]["seq"] > 2 and ids[i] in ids[i + 1 :])
    victim = log.pop(index)
    verdict = verify_logs(
        [write(tmp_path / "audit.jsonl", [*log, loss(victim, 1, pid=victim["pid"] + 1)])]
    )
    assert [problem.kind for problem in violations(verdict)] == [Kind.SEQ_GAP]


def test_a_log_that_starts_late_is_no_violation(log: list[Fields], tmp_path: Path) -> None:
    """Rotation may have taken the beginning: that is noted, once for each connection."""
    verdict = verify_logs([write(tmp_path / "audit.jsonl", log[200:])])
    assert verdict.exit_code == 0
    late = [problem for problem in verdict.problems.kept if problem.kind is Kind.STARTS_LATE]
    ids = {record["connection_id"] for record in log[:200] if record["dest"] != "CLOSED"}
    assert 0 < len(late) <= len(ids)


def test_a_clock_that_goes_back_is_noted(log: list[Fields], tmp_path: Path) -> None:
    """Wall-clock time is for people: a clock that was set is no violation."""
    index = next(i for i in range(100, 600) if log[i]["seq"] > 2)
    log[index]["ts"] = "2026-03-01T00:00:00+00:00"
    verdict = verify_logs([write(tmp_path / "audit.jsonl", log)])
    assert kinds(verdict) == [(Kind.CLOCK_BACK, index + 1)]
    assert verdict.exit_code == 0


def test_two_files_are_read_as_one_log_oldest_first(log: list[Fields], tmp_path: Path) -> None:
    """Rotated logs are one log, in the order of time and not of names; .gz is read as it is."""
    write(tmp_path / "audit.jsonl", log[400:])
    write(tmp_path / "audit.jsonl.1", log[200:400])
    packed = tmp_path / "audit.jsonl.2.gz"
    packed.write_bytes(gzip.compress(join([encode(record) for record in log[:200]])))
    verdict = verify_logs([str(tmp_path / "audit.jsonl*")])
    assert kinds(verdict) == []
    assert [Path(name).name for name in verdict.files] == [
        "audit.jsonl.2.gz",
        "audit.jsonl.1",
        "audit.jsonl",
    ]


def test_a_file_that_is_named_twice_is_read_once(log: list[Fields], tmp_path: Path) -> None:
    """A glob that overlaps with a name does not make every record a repeat."""
    path = write(tmp_path / "audit.jsonl", log)
    (tmp_path / "link.jsonl").symlink_to(path)
    verdict = verify_logs([path, str(tmp_path / "*.jsonl")])
    assert (verdict.exit_code, verdict.records) == (0, len(log))


def test_what_cannot_be_opened_is_told_and_the_rest_is_read(
    log: list[Fields], tmp_path: Path
) -> None:
    """A missing file, a directory, a pattern without a match: exit code 2, the rest is read."""
    good = write(tmp_path / "audit.jsonl", log)
    (tmp_path / "folder").mkdir()
    names = [str(tmp_path / name) for name in ("missing.jsonl", "folder", "none-*.jsonl")]
    verdict = verify_logs([*names, good])
    assert (verdict.exit_code, verdict.records) == (2, len(log))
    messages = {problem.file: problem.message for problem in verdict.problems.kept}
    assert "No such file" in messages[names[0]]
    assert "is a directory; name the files in it" in messages[names[1]]
    assert "no file matches" in messages[names[2]]


def test_no_permission_is_told(
    log: list[Fields], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that may not be read is exit code 2 and names the file."""
    path = write(tmp_path / "audit.jsonl", log)
    real = open

    def refuse(name: Any, *rest: Any, **options: Any) -> Any:
        if name == path:  # root may read everything: chmod would not do
            raise PermissionError(13, "Permission denied", name)
        return real(name, *rest, **options)

    monkeypatch.setattr("builtins.open", refuse)
    verdict = verify_logs([path])
    assert verdict.exit_code == 2
    assert "Permission denied" in verdict.problems.kept[0].message


def test_an_empty_file_is_no_proof(tmp_path: Path) -> None:
    """Nothing to verify is said, and no verdict; beside a file with records it is a mere note."""
    (tmp_path / "audit.jsonl").touch()
    verdict = verify_logs([str(tmp_path / "audit.jsonl")])
    assert kinds(verdict) == [(Kind.EMPTY_FILE, 0)]
    assert (verdict.legal, verdict.exit_code) == (None, 2)
    write(tmp_path / "audit.jsonl.1", list(synthetic_records(10)))
    verdict = verify_logs([str(tmp_path / "audit.jsonl*")])
    assert kinds(verdict) == [(Kind.EMPTY_FILE, 0)]
    assert (verdict.legal, verdict.exit_code) == (True, 0)


def test_a_cut_gzip_is_a_violation_after_what_could_be_read(
    log: list[Fields], tmp_path: Path
) -> None:
    """A .gz that was not written to its end is read as far as it goes."""
    path = tmp_path / "audit.jsonl.gz"
    packed = gzip.compress(join([encode(record) for record in log]))
    path.write_bytes(packed[: len(packed) // 2])
    verdict = verify_logs([str(path)])
    assert verdict.exit_code == 1
    assert Kind.CUT_FILE in verdict.problems.counts
    assert 0 < verdict.records < len(log)


def test_windows_line_ends_blank_lines_and_a_byte_order_mark_do_no_harm(
    log: list[Fields], tmp_path: Path
) -> None:
    """What editors and shippers do to text files is not damage."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([encode(one) for one in log] + [b"", b""]))
    verdict = verify_logs([str(path)])
    assert kinds(verdict) == []
    assert verdict.records == len(log)


def test_records_of_a_logging_formatter_are_read(log: list[Fields], tmp_path: Path) -> None:
    """A formatter that calls the event ``message`` and adds fields of its own is understood."""
    renamed = [
        {"level": "INFO", "request_id": "r-1", "message": record["event"], **record}
        for record in log
    ]
    for record in renamed:
        del record["event"]
    verdict = verify_logs([write(tmp_path / "audit.jsonl", renamed)])
    assert (verdict.exit_code, verdict.records) == (0, len(log))


def test_a_refused_acquire_after_closed_is_legal(log: list[Fields], tmp_path: Path) -> None:
    """CLOSED refuses an acquire and says so in a record without a number."""
    index = next(i for i, record in enumerate(log) if record["dest"] == "CLOSED")
    refusal = {**log[index], "event": "connection.refused", "seq": None, "trigger": "acquire"}
    refusal.update(source="CLOSED", dest="CLOSED")
    log.insert(index + 1, refusal)
    assert verify_logs([write(tmp_path / "audit.jsonl", log)]).exit_code == 0


def test_a_wait_is_legal_and_changes_nothing(tmp_path: Path) -> None:
    """Its record has no number, and stands between those that have one."""
    story = Story().connect().wait("loading").outage(1.0, 1.0).wait("loaded", 3.0)
    verdict = verify_logs([write(tmp_path / "audit.jsonl", story.records)])
    assert (verdict.exit_code, verdict.records) == (0, len(story.records))


def test_ignored_kinds_are_dropped(log: list[Fields], tmp_path: Path) -> None:
    """An application that logs to the same file is fine where one says so."""
    path = tmp_path / "audit.jsonl"
    lines = [encode(record) for record in log]
    path.write_bytes(join([*lines[:300], b'{"event":"request"}', b"text", *lines[300:]]))
    assert verify_logs([str(path)]).exit_code == 1
    assert verify_logs([str(path)], ignore=[Kind.FOREIGN_LINE]).exit_code == 0


def test_the_limit_bounds_what_is_kept_and_not_what_is_counted(
    log: list[Fields], tmp_path: Path
) -> None:
    """A ruined log cannot fill the memory, and its findings are still counted."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(join([b"rubbish"] * 500))
    verdict = verify_logs([str(path)], limit=7)
    assert len(verdict.problems.kept) == 7
    assert verdict.problems.counts[Kind.FOREIGN_LINE] == 500


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_several_jobs_find_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of a log that are read apart and joined give what one process finds."""
    from concurrent.futures import Future

    from milvus_lifecycle.replay import verify

    class Inline:
        """The pool's interface without processes: the joining is what is tested here."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Inline:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, work: Any, *arguments: Any) -> Future[Any]:
            done: Future[Any] = Future()
            done.set_result(work(*arguments))
            return done

    path = tmp_path / "audit.jsonl"
    path.write_bytes(CORRUPTIONS[name](Victim(7)).data)
    alone = verify_logs([str(path)])
    monkeypatch.setattr(verify, "ProcessPoolExecutor", Inline)
    monkeypatch.setattr(
        verify, "plan_pieces", lambda paths, _: plan_pieces(paths, 2, smallest=20_000)
    )
    joined = verify_logs([str(path)], jobs=2)
    assert told(joined) == told(alone)
    assert joined.problems.counts == alone.problems.counts
    figures = ("records", "lines", "connections", "lost_records")
    assert [getattr(joined, one) for one in figures] == [getattr(alone, one) for one in figures]


def test_real_worker_processes_find_the_same(tmp_path: Path) -> None:
    """``--jobs 2`` starts processes that read ranges of the file, and reports their progress."""
    records = list(synthetic_records(12_000, seed=3))
    records[9_000]["dest"] = "LIMBO"
    path = write(tmp_path / "audit.jsonl", records)
    sizes: list[int] = []
    joined = verify_logs([path], jobs=2, on_progress=sizes.append)
    alone = verify_logs([path])
    assert joined.problems.kept == alone.problems.kept
    assert (joined.records, joined.lines, joined.connections) == (
        alone.records,
        alone.lines,
        alone.connections,
    )
    assert sum(sizes) == Path(path).stat().st_size


def test_memory_stays_flat_when_connections_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that nobody heard of for long make room: said, and no violation."""
    from milvus_lifecycle.replay import rules

    monkeypatch.setattr(rules, "CAPACITY", 50)
    path = write(tmp_path / "audit.jsonl", list(synthetic_records(20_000, seed=4, connections=9)))
    verdict = verify_logs([path])
    assert verdict.exit_code == 0
    assert verdict.problems.counts[Kind.FORGOTTEN] == 1


def test_the_verdict_is_json(log: list[Fields], tmp_path: Path) -> None:
    """``--json`` holds everything that the text output says."""
    log[300]["schema"] = 9
    verdict = verify_logs([write(tmp_path / "audit.jsonl", log)])
    told = json.loads(json.dumps(verdict.as_dict()))
    assert told["legal"] is False
    assert told["counts"] == {"unknown-schema": 1}
    assert told["problems"][0]["line"] == 301
