"""``audit tail``: one line for a record, the right ones, across rotation and truncation."""

from __future__ import annotations

import argparse
import gzip
import os
import re
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from milvus_lifecycle.cli.audit import Paint, parse_since
from milvus_lifecycle.cli.tail import LineWriter, Shown, Wanted, look_at
from milvus_lifecycle.replay.files import Follower, last_matches
from milvus_lifecycle.replay.records import convert
from tests.audit_logs import START, Story, decoded, merged, write_log
from tests.corruption import Fields, encode, join

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)


def text(*stories: Story, colour: bool = False, width: int = sys.maxsize) -> list[str]:
    writer = LineWriter(Paint(colour), width)
    return [line for record in decoded(*stories) for line in writer.lines(Shown(b"", record))]


# -- one line ----------------------------------------------------------------------------------


def test_a_transition_is_one_line_with_all_that_matters() -> None:
    """When, from where to where, why, how long, whose, which generation and attempt."""
    lines = text(Story("abcdef0123").connect().outage(2.5, 0.5, 1.0))
    assert lines[0] == "Sunday 2026-03-01 (UTC)"
    retry = next(line for line in lines if "retry" in line)
    for part in ("09:00:06.000", "RECOVERING → RECOVERING", "500 ms", "a:19530", "abcdef01 #4"):
        assert part in retry
    assert "try 1 UNAVAILABLE as told" in retry
    assert len(lines) == 1 + 6


def test_the_day_is_said_when_it_changes() -> None:
    """A log over midnight stays readable with times of day only."""
    lines = text(
        Story(began=15 * 3600 - 1.5)
        .step("acquire", "PROBING", 1.0)
        .step("probe_passed", "ACTIVE", 1.0)
    )
    days = [line for line in lines if "(UTC)" in line]
    assert days == ["Sunday 2026-03-01 (UTC)", "Monday 2026-03-02 (UTC)"]


def test_colour_is_added_and_nothing_else() -> None:
    """Without the escape codes a coloured line is the plain one."""
    story = Story().connect().outage(1.0, 1.0, 2.0)
    plain = text(story)
    coloured = text(story, colour=True)
    assert coloured != plain
    assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in coloured] == plain


def test_a_line_fits_the_terminal() -> None:
    """One line each, however long the reason."""
    story = Story().connect().step("fail", "RECOVERING", 1.0, reason="because " * 90)
    assert max(len(line) for line in text(story, width=100)) <= 100


def test_control_characters_do_not_reach_the_terminal() -> None:
    """A server's error text cannot move the cursor or set the window's title."""
    story = Story("id\x1b[2J").connect().step("fail", "RECOVERING", 1.0, reason="\x1b]0;pwned\x07x")
    assert not any("\x1b" in line or "\x07" in line for line in text(story))


def test_every_kind_of_record_has_a_line() -> None:
    """Creations, refusals and losses are shown as what they are."""
    fields: Fields = {"ts": START.isoformat(), "connection_id": "c9"}
    refused = {**fields, "event": "connection.refused", "trigger": "acquire", "source": "CLOSED"}
    lost = {**fields, "event": "connection.records_lost", "count": 1200}
    writer = LineWriter(Paint(False))
    lines = [writer.lines(Shown(b"", convert(record)))[-1] for record in (refused, lost)]
    assert "acquire refused" in lines[0]
    assert "1,200 records were lost" in lines[1]
    assert "created" in text(Story())[1]
    waited = text(Story().connect().wait("loaded", 26.5))[-1]
    assert re.search(r"ACTIVE → ACTIVE +loaded +26 s .* #- ", waited)


# -- which lines -------------------------------------------------------------------------------


def chosen(wanted: Wanted, *stories: Story) -> list[tuple[str, str | None]]:
    found = [look_at(encode(record), wanted) for record in merged(*stories)]
    records = [one.record for one in found if one is not None and one.record is not None]
    return [(str(record.connection_id), getattr(record, "trigger", None)) for record in records]


def test_filters_choose_by_address_connection_trigger_and_time() -> None:
    """Each filter alone, and all of them together."""
    stories = Story("aa1", "one:1").connect(), Story("bb2", "two:1").connect().outage(1.0, 1.0)
    assert {one for one, _ in chosen(Wanted(addresses=["two"]), *stories)} == {"bb2"}
    assert {one for one, _ in chosen(Wanted(addresses=["o*:1"]), *stories)} == {"aa1"}
    assert {one for one, _ in chosen(Wanted(connections=["aa"]), *stories)} == {"aa1"}
    assert chosen(Wanted(triggers=["recovered"]), *stories) == [("bb2", "recovered")]
    late = Wanted(since=START + timedelta(seconds=4))
    assert chosen(late, *stories) == [("bb2", "fail"), ("bb2", "recovered")]
    assert chosen(Wanted(["one"], ["bb"], ["fail"]), *stories) == []


def test_broken_lines_are_shown_unless_one_looks_for_something() -> None:
    """Damage is worth a line; foreign lines are somebody else's."""
    broken = look_at(b'{"event": "connection.tr', Wanted())
    assert broken is not None
    assert "broken JSON" in LineWriter(Paint(False)).lines(broken)[0]
    assert look_at(b'{"event": "connection.tr', Wanted(triggers=["fail"])) is None
    assert look_at(b'{"event": "request"}', Wanted()) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("15m", NOW - timedelta(minutes=15)),
        ("1.5h", NOW - timedelta(hours=1.5)),
        ("2d", NOW - timedelta(days=2)),
        ("2026-03-01T09:00:00Z", NOW - timedelta(hours=3)),
        ("2026-03-01T10:00:00+01:00", NOW - timedelta(hours=3)),
        ("2026-03-01 09:00", NOW - timedelta(hours=3)),
    ],
)
def test_since_is_an_age_or_a_time(given: str, expected: datetime) -> None:
    """Both are what people type; a time without a zone is UTC, as in the log."""
    assert parse_since(given, NOW) == expected


@pytest.mark.parametrize("given", ["", "yesterday", "5", "m", "5 minutes"])
def test_any_other_since_is_explained(given: str) -> None:
    """The error says what is accepted."""
    with pytest.raises(argparse.ArgumentTypeError, match="neither an age"):
        parse_since(given, NOW)


# -- the end of a log --------------------------------------------------------------------------


def whole(line: bytes) -> bytes | None:
    return line or None


def test_the_last_lines_are_found_without_reading_the_rest(tmp_path: Path) -> None:
    """However long the lines and the log, and wherever a window begins."""
    path = tmp_path / "audit.jsonl"
    lines = [b"%d %s" % (n, b"x" * (n % 1000)) for n in range(3000)]
    path.write_bytes(join(lines))
    for wanted in (1, 7, 600, 2999, 3000, 5000):
        assert last_matches(str(path), wanted, whole) == lines[-wanted:]
    assert last_matches(str(path), sys.maxsize, whole) == lines
    assert last_matches(str(path), 2, lambda line: line if b"x" not in line else None) == [
        b"1000 ",
        b"2000 ",
    ]


def test_the_last_lines_of_a_gzip_are_found(tmp_path: Path) -> None:
    """A rotated log can be looked at as well."""
    path = tmp_path / "audit.jsonl.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\nthree\n"))
    assert last_matches(str(path), 2, whole) == [b"two", b"three"]


def test_added_lines_are_followed_whole(tmp_path: Path) -> None:
    """A line that is half written comes when it is complete."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"old\nhal")
    follower = Follower(str(path))
    assert follower.seek_end() == 4
    assert follower.poll() == []
    with path.open("ab") as log:
        log.write(b"f\nnew\npart")
    assert follower.poll() == [b"half", b"new"]
    with path.open("ab") as log:
        log.write(b"ly\n")
    assert follower.poll() == [b"partly"]
    follower.close()


def test_a_rotated_log_is_followed(tmp_path: Path) -> None:
    """What was written before the rotation comes first, then the new file from its start."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"old\n")
    follower = Follower(str(path))
    follower.seek_end()
    with path.open("ab") as log:
        log.write(b"last\n")
    os.rename(path, tmp_path / "audit.jsonl.1")
    assert follower.poll() == [b"last"]
    path.write_bytes(b"first\n")
    assert follower.poll() == [b"first"]
    follower.close()


def test_a_truncated_log_is_followed_from_its_start(tmp_path: Path) -> None:
    """copytruncate, or a restart that empties the file."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"one\ntwo\nthree\n")
    follower = Follower(str(path))
    follower.seek_end()
    path.write_bytes(b"new\n")
    assert follower.poll() == [b"new"]
    follower.close()


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """Nothing comes until the file does."""
    path = tmp_path / "audit.jsonl"
    follower = Follower(str(path))
    assert follower.poll() == []
    path.write_bytes(b"first\n")
    assert follower.poll() == [b"first"]
    follower.close()


def test_a_story_can_be_tailed_from_a_file(tmp_path: Path) -> None:
    """The pieces together: the last two transitions of a log."""
    path = write_log(tmp_path / "audit.jsonl", merged(Story().connect().outage(1.0, 1.0)))
    found = last_matches(path, 2, lambda line: look_at(line, Wanted()))
    triggers = [getattr(shown.record, "trigger", None) for shown in found]
    assert triggers == ["fail", "recovered"]
