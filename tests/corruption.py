"""Seeded damage to a legal audit log: over thirty kinds, each with the place of its finding."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from milvus_lifecycle.replay.findings import Kind
from tests.made_up import synthetic_records

Fields = dict[str, Any]
TRANSITION = "connection.transition"


@dataclass(frozen=True)
class Damage:
    """A damaged log, and the finding that it must give: ``kind`` at ``line``."""

    data: bytes
    kind: Kind
    line: int


def encode(fields: Fields) -> bytes:
    """A record as the line that the sink writes, without its newline."""
    return json.dumps(fields, separators=(",", ":")).encode()


def join(lines: list[bytes]) -> bytes:
    """A file of these lines."""
    return b"".join(line + b"\n" for line in lines)


class Victim:
    """A legal log in which a corruption looks for a place. Indices count from 0, lines from 1."""

    def __init__(self, seed: int, count: int = 400) -> None:
        self.chance = random.Random(seed)
        self.records: list[Fields] = list(synthetic_records(count, seed=seed, connections=12))
        self.lines = [encode(record) for record in self.records]

    def pick(self, fits: Callable[[int], bool]) -> int:
        """A random index for which ``fits``; the log is large enough to have one."""
        found = [index for index in range(len(self.records)) if fits(index)]
        assert found, "no record fits this corruption"
        return self.chance.choice(found)

    def is_step(self, index: int) -> bool:
        return bool(self.records[index]["event"] == TRANSITION)

    def next_of(self, index: int) -> int | None:
        """The next record of the same connection."""
        wanted = self.records[index]["connection_id"]
        rest = range(index + 1, len(self.records))
        return next((i for i in rest if self.records[i]["connection_id"] == wanted), None)

    def previous_of(self, index: int) -> int | None:
        """The record of the same connection before this one."""
        wanted = self.records[index]["connection_id"]
        before = range(index - 1, -1, -1)
        return next((i for i in before if self.records[i]["connection_id"] == wanted), None)

    def inner(self, index: int) -> bool:
        """A step with a step of the same connection before and after it."""
        before = self.previous_of(index)
        return (
            self.is_step(index)
            and before is not None
            and self.is_step(before)
            and self.next_of(index) is not None
        )

    def step(self) -> int:
        """Any inner step."""
        return self.pick(self.inner)

    def edit(self, index: int, **changes: Any) -> None:
        """Change fields of a record; a field set to ``...`` is removed."""
        fields = {**self.records[index], **changes}
        self.lines[index] = encode({k: v for k, v in fields.items() if v is not ...})

    def damage(self, kind: Kind, index: int) -> Damage:
        return Damage(join(self.lines), kind, index + 1)


Corruption = Callable[[Victim], Damage]
CORRUPTIONS: dict[str, Corruption] = {}


def corruption(make: Corruption) -> Corruption:
    """Register a kind of damage under its function's name."""
    CORRUPTIONS[make.__name__] = make
    return make


# -- the log contradicts the table or a law ----------------------------------------------------


@corruption
def illegal_destination(log: Victim) -> Damage:
    index = log.pick(lambda i: log.inner(i) and log.records[i]["trigger"] == "release")
    log.edit(index, dest="PROBING")
    return log.damage(Kind.ILLEGAL_TRANSITION, index)


@corruption
def illegal_trigger(log: Victim) -> Damage:
    index = log.pick(lambda i: log.inner(i) and log.records[i]["source"] == "IDLE")
    log.edit(index, trigger="recovered")
    return log.damage(Kind.ILLEGAL_TRANSITION, index)


@corruption
def unknown_trigger(log: Victim) -> Damage:
    index = log.step()
    log.edit(index, trigger="explode")
    return log.damage(Kind.ILLEGAL_TRANSITION, index)


@corruption
def unknown_state(log: Victim) -> Damage:
    index = log.step()
    log.edit(index, dest="LIMBO")
    return log.damage(Kind.ILLEGAL_TRANSITION, index)


@corruption
def lower_case_state(log: Victim) -> Damage:
    index = log.step()
    log.edit(index, dest=log.records[index]["dest"].lower())
    return log.damage(Kind.ILLEGAL_TRANSITION, index)


@corruption
def another_source(log: Victim) -> Damage:
    def fits(index: int) -> bool:
        return log.inner(index) and log.records[index]["source"] == "ACTIVE"

    index = log.pick(fits)
    # A legal row by itself, but the connection was not left in IDLE.
    log.edit(index, source="IDLE", trigger="acquire", dest="PROBING")
    return log.damage(Kind.SOURCE_MISMATCH, index)


@corruption
def starts_in_the_middle_of_life(log: Victim) -> Damage:
    index = log.pick(lambda i: log.records[i]["event"] == "connection.created")
    first = log.next_of(index)
    assert first is not None
    log.edit(first, source="ACTIVE", trigger="release", dest="IDLE")
    log.lines[index] = b""  # without the record of its creation
    return log.damage(Kind.BAD_START, first)


@corruption
def created_elsewhere(log: Victim) -> Damage:
    index = log.pick(lambda i: log.records[i]["event"] == "connection.created")
    log.edit(index, dest="ACTIVE")
    return log.damage(Kind.BAD_START, index)


@corruption
def dropped_line(log: Victim) -> Damage:
    index = log.step()
    after = log.next_of(index)
    assert after is not None
    del log.lines[index]
    return log.damage(Kind.SEQ_GAP, after - 1)


@corruption
def repeated_line(log: Victim) -> Damage:
    index = log.step()
    log.lines.insert(index + 1, log.lines[index])
    return log.damage(Kind.SEQ_REPEAT, index + 1)


@corruption
def swapped_lines(log: Victim) -> Damage:
    index = log.step()
    after = log.next_of(index)
    assert after is not None
    log.lines[index], log.lines[after] = log.lines[after], log.lines[index]
    return log.damage(Kind.SEQ_REPEAT, after)


@corruption
def seq_falls_to_zero(log: Victim) -> Damage:
    index = log.step()
    log.edit(index, seq=0)
    return log.damage(Kind.SEQ_REPEAT, index)


@corruption
def record_after_closed(log: Victim) -> Damage:
    index = log.pick(lambda i: log.is_step(i) and log.records[i]["dest"] == "CLOSED")
    back = {**log.records[index], "seq": log.records[index]["seq"] + 1}
    back.update(source="IDLE", trigger="acquire", dest="ACTIVE")
    log.lines.insert(index + 1, encode(back))
    return log.damage(Kind.AFTER_CLOSED, index + 1)


@corruption
def generation_falls(log: Victim) -> Damage:
    def fits(index: int) -> bool:
        before = log.previous_of(index)
        return log.inner(index) and before is not None and log.records[before]["generation"] > 0

    index = log.pick(fits)
    log.edit(index, generation=0)
    return log.damage(Kind.GENERATION_FALLS, index)


@corruption
def topology_falls(log: Victim) -> Damage:
    index = log.pick(lambda i: log.inner(i) and log.records[i]["topology_version"] is not None)
    log.edit(index, topology_version=0)
    return log.damage(Kind.TOPOLOGY_FALLS, index)


@corruption
def another_process_with_the_id(log: Victim) -> Damage:
    index = log.step()
    log.edit(index, pid=log.records[index]["pid"] + 1)
    return log.damage(Kind.SHARED_ID, index)


@corruption
def another_flavour_with_the_id(log: Victim) -> Damage:
    index = log.step()
    other = "asyncio" if log.records[index]["flavour"] == "threads" else "threads"
    log.edit(index, flavour=other)
    return log.damage(Kind.SHARED_ID, index)


@corruption
def created_twice(log: Victim) -> Damage:
    index = log.pick(lambda i: log.records[i]["event"] == "connection.created")
    after = log.next_of(index)
    assert after is not None
    log.lines.insert(after + 1, log.lines[index])
    return log.damage(Kind.SHARED_ID, after + 1)


@corruption
def refused_while_alive(log: Victim) -> Damage:
    index = log.step()
    fields = {**log.records[index], "event": "connection.refused", "seq": None}
    fields.update(source="IDLE", dest="IDLE", trigger="acquire")
    log.lines.insert(index + 1, encode(fields))
    return log.damage(Kind.ILLEGAL_REFUSAL, index + 1)


@corruption
def losses_confessed_too_few(log: Victim) -> Damage:
    index = log.pick(lambda i: log.inner(i) and log.inner(log.next_of(i) or i))
    dropped = [index, log.next_of(index)]
    after = log.next_of(dropped[1] or 0)
    assert after is not None
    ts = log.records[after]["ts"]
    confession = {"event": "connection.records_lost", "ts": ts, "connection_id": None, "count": 1}
    log.lines.insert(after, encode(confession))
    for gone in sorted((one for one in dropped if one is not None), reverse=True):
        del log.lines[gone]
    return log.damage(Kind.SEQ_GAP, after - 1)


# -- the log itself is damaged -----------------------------------------------------------------


@corruption
def cut_last_line(log: Victim) -> Damage:
    last = len(log.lines) - 1
    data = join(log.lines)[: -log.chance.randint(20, 200)]
    return Damage(data, Kind.CUT_LINE, last + 1)


@corruption
def cut_line_in_the_middle(log: Victim) -> Damage:
    index = log.step()
    log.lines[index] = log.lines[index][: log.chance.randint(1, 200)]
    return log.damage(Kind.BROKEN_LINE, index)


@corruption
def next_record_glued_to_a_cut_one(log: Victim) -> Damage:
    index = log.step()
    log.lines[index : index + 2] = [log.lines[index][:99] + log.lines[index + 1]]
    return log.damage(Kind.BROKEN_LINE, index)


@corruption
def two_records_on_one_line(log: Victim) -> Damage:
    index = log.step()
    log.lines[index : index + 2] = [log.lines[index] + log.lines[index + 1]]
    return log.damage(Kind.BROKEN_LINE, index)


@corruption
def flipped_bit(log: Victim) -> Damage:
    index = log.step()
    line = bytearray(log.lines[index])
    line[line.index(b'":')] ^= 0x08  # a quotation mark becomes an asterisk
    log.lines[index] = bytes(line)
    return log.damage(Kind.BROKEN_LINE, index)


@corruption
def not_utf8(log: Victim) -> Damage:
    index = log.step()
    log.lines[index] = log.lines[index].replace(b'"reason":"', b'"reason":"\xff\xfe')
    return log.damage(Kind.BROKEN_LINE, index)


@corruption
def nul_bytes_in_a_line(log: Victim) -> Damage:
    index = log.step()
    at = log.chance.randrange(1, len(log.lines[index]))
    log.lines[index] = log.lines[index][:at] + b"\0\0\0" + log.lines[index][at:]
    return log.damage(Kind.NUL_BYTES, index)


@corruption
def hole_of_nul_bytes(log: Victim) -> Damage:
    index = log.step()
    log.lines[index] = bytes(4096) + log.lines[index]
    return log.damage(Kind.NUL_BYTES, index)


@corruption
def line_of_ten_megabytes(log: Victim) -> Damage:
    index = log.step()
    log.lines.insert(index, b"x" * 10_000_000)
    return log.damage(Kind.LONG_LINE, index)


@corruption
def foreign_event(log: Victim) -> Damage:
    index = log.step()
    log.lines.insert(index, b'{"event": "request served", "path": "/search", "ms": 12}')
    return log.damage(Kind.FOREIGN_LINE, index)


@corruption
def foreign_text(log: Victim) -> Damage:
    index = log.step()
    log.lines.insert(index, b"Traceback (most recent call last):")
    return log.damage(Kind.FOREIGN_LINE, index)


@corruption
def json_that_is_no_object(log: Victim) -> Damage:
    index = log.step()
    log.lines.insert(index, log.chance.choice((b"[1, 2]", b"17", b'"text"', b"null", b"true")))
    return log.damage(Kind.FOREIGN_LINE, index)


@corruption
def schema_of_tomorrow(log: Victim) -> Damage:
    index = log.step()
    log.edit(index, schema=2)
    return log.damage(Kind.UNKNOWN_SCHEMA, index)


@corruption
def missing_field(log: Victim) -> Damage:
    index = log.step()
    log.edit(index, **{log.chance.choice(("seq", "trigger", "source", "dest", "ts")): ...})
    return log.damage(Kind.BAD_RECORD, index)


@corruption
def field_of_another_type(log: Victim) -> Damage:
    index = log.step()
    name, value = log.chance.choice(
        (("seq", "7"), ("generation", None), ("dest", 3), ("pid", "1"), ("clients", 1.5))
    )
    log.edit(index, **{name: value})
    return log.damage(Kind.BAD_RECORD, index)


@corruption
def no_moment(log: Victim) -> Damage:
    index = log.step()
    moments = ("yesterday", "2026-03-01T09:00:00", "2026-13-41T09:00:00Z", "1772355600")
    log.edit(index, ts=log.chance.choice(moments))
    return log.damage(Kind.BAD_RECORD, index)
