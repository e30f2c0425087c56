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


def _is(**wanted: object) -> Callable[[Victim, int], bool]:
    return lambda log, i: wanted.items() <= log.records[i].items()


def _any(log: Victim, index: int) -> bool:
    return log.inner(index)


def edited(
    name: str,
    kind: Kind,
    changes: Fields | Callable[[Victim, Fields], Fields],
    fits: Callable[[Victim, int], bool] = _any,
) -> None:
    """Register: ``changes`` are made to the fields of an inner step for which ``fits``."""

    def make(log: Victim) -> Damage:
        index = log.pick(lambda i: log.inner(i) and fits(log, i))
        fields = changes(log, log.records[index]) if callable(changes) else changes
        log.edit(index, **fields)
        return log.damage(kind, index)

    CORRUPTIONS[name] = make


def inserted(name: str, kind: Kind, line: Callable[[Victim, Fields], bytes], after: int) -> None:
    """Register: a line beside a step's (``after`` it: 1, before it: 0)."""

    def make(log: Victim) -> Damage:
        index = log.step()
        log.lines.insert(index + after, line(log, log.records[index]))
        return log.damage(kind, index + after)

    CORRUPTIONS[name] = make


def mangled(
    name: str, kind: Kind, mangle: Callable[[Victim, bytes, bytes], bytes], *, both: bool = False
) -> None:
    """Register: other bytes for the line of a step (``both``: for it and the next line)."""

    def make(log: Victim) -> Damage:
        index = log.step()
        changed = mangle(log, log.lines[index], log.lines[index + 1])
        log.lines[index : index + 1 + both] = [changed]
        return log.damage(kind, index)

    CORRUPTIONS[name] = make


# -- the log contradicts the table or a law ----------------------------------------------------

_ILLEGAL = Kind.ILLEGAL_TRANSITION
edited("illegal_destination", _ILLEGAL, {"dest": "PROBING"}, _is(trigger="release"))
edited("illegal_trigger", _ILLEGAL, {"trigger": "recovered"}, _is(source="IDLE"))
edited("unknown_trigger", _ILLEGAL, {"trigger": "explode"})
edited("unknown_state", _ILLEGAL, {"dest": "LIMBO"})
edited("lower_case_state", _ILLEGAL, lambda log, record: {"dest": record["dest"].lower()})
edited(
    "another_source",  # a legal row by itself, but the connection was not left in IDLE
    Kind.SOURCE_MISMATCH,
    {"source": "IDLE", "trigger": "acquire", "dest": "PROBING"},
    _is(source="ACTIVE"),
)
edited("seq_falls_to_zero", Kind.SEQ_REPEAT, {"seq": 0})
edited(
    "generation_falls",
    Kind.GENERATION_FALLS,
    {"generation": 0},
    lambda log, i: log.records[log.previous_of(i) or 0]["generation"] > 0,
)
edited(
    "topology_falls",
    Kind.TOPOLOGY_FALLS,
    {"topology_version": 0},
    lambda log, i: log.records[i]["topology_version"] is not None,
)
edited(
    "another_process_with_the_id",
    Kind.SHARED_ID,
    lambda log, record: {"pid": record["pid"] + 1},
)
edited("another_flavour_with_the_id", Kind.SHARED_ID, {"flavour": "trio"})
inserted(
    "refused_while_alive",
    Kind.ILLEGAL_REFUSAL,
    lambda log, record: encode(
        {
            **record,
            "event": "connection.refused",
            "seq": None,
            "trigger": "acquire",
            "source": "IDLE",
            "dest": "IDLE",
        }
    ),
    after=1,
)


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
def created_twice(log: Victim) -> Damage:
    index = log.pick(lambda i: log.records[i]["event"] == "connection.created")
    after = log.next_of(index)
    assert after is not None
    log.lines.insert(after + 1, log.lines[index])
    return log.damage(Kind.SHARED_ID, after + 1)


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
def record_after_closed(log: Victim) -> Damage:
    index = log.pick(lambda i: log.is_step(i) and log.records[i]["dest"] == "CLOSED")
    back = {**log.records[index], "seq": log.records[index]["seq"] + 1}
    back.update(source="IDLE", trigger="acquire", dest="ACTIVE")
    log.lines.insert(index + 1, encode(back))
    return log.damage(Kind.AFTER_CLOSED, index + 1)


@corruption
def losses_confessed_too_few(log: Victim) -> Damage:
    index = log.pick(lambda i: log.inner(i) and log.inner(log.next_of(i) or i))
    dropped = [index, log.next_of(index)]
    after = log.next_of(dropped[1] or 0)
    assert after is not None
    record = log.records[after]
    confession = {"event": "connection.records_lost", "connection_id": None, "count": 1}
    log.lines.insert(after, encode({**confession, "ts": record["ts"], "pid": record["pid"]}))
    for gone in sorted((one for one in dropped if one is not None), reverse=True):
        del log.lines[gone]
    return log.damage(Kind.SEQ_GAP, after - 1)


# -- the log itself is damaged -----------------------------------------------------------------

_BROKEN, _FOREIGN = Kind.BROKEN_LINE, Kind.FOREIGN_LINE
mangled("cut_line_in_the_middle", _BROKEN, lambda log, a, _: a[: log.chance.randint(1, 200)])
mangled("next_record_glued_to_a_cut_one", _BROKEN, lambda log, a, b: a[:99] + b, both=True)
mangled("two_records_on_one_line", _BROKEN, lambda log, a, b: a + b, both=True)
# A quotation mark becomes an asterisk.
mangled("flipped_bit", _BROKEN, lambda log, a, _: a.replace(b'":', b"*:", 1))
mangled("not_utf8", _BROKEN, lambda log, a, _: a.replace(b'"reason":"', b'"reason":"\xff\xfe'))
mangled("hole_of_nul_bytes", Kind.NUL_BYTES, lambda log, a, _: bytes(4096) + a)
inserted("line_of_ten_megabytes", Kind.LONG_LINE, lambda *_: b"x" * 10_000_000, after=0)
inserted("foreign_event", _FOREIGN, lambda *_: b'{"event": "request served", "ms": 12}', after=0)
inserted("foreign_text", _FOREIGN, lambda *_: b"Traceback (most recent call last):", after=0)
inserted(
    "json_that_is_no_object",
    _FOREIGN,
    lambda log, _: log.chance.choice((b"[1, 2]", b"17", b'"text"', b"null", b"true")),
    after=0,
)
inserted("json_that_is_too_deep", _FOREIGN, lambda *_: b"[" * 100_000, after=0)
edited("schema_of_tomorrow", Kind.UNKNOWN_SCHEMA, {"schema": 2})
edited(
    "missing_field",
    Kind.BAD_RECORD,
    lambda log, _: {log.chance.choice(("seq", "trigger", "source", "dest", "ts")): ...},
)
edited(
    "field_of_another_type",
    Kind.BAD_RECORD,
    lambda log, _: dict(
        [
            log.chance.choice(
                (("seq", "7"), ("generation", None), ("dest", 3), ("pid", "1"), ("clients", 1.5))
            )
        ]
    ),
)
edited(
    "no_moment",
    Kind.BAD_RECORD,
    lambda log, _: {
        "ts": log.chance.choice(
            ("yesterday", "2026-03-01T09:00:00", "2026-13-41T09:00:00Z", "1772355600")
        )
    },
)


@corruption
def nul_bytes_in_a_line(log: Victim) -> Damage:
    index = log.step()
    at = log.chance.randrange(1, len(log.lines[index]))
    log.lines[index] = log.lines[index][:at] + b"\0\0\0" + log.lines[index][at:]
    return log.damage(Kind.NUL_BYTES, index)


@corruption
def cut_last_line(log: Victim) -> Damage:
    last = len(log.lines) - 1
    data = join(log.lines)[: -log.chance.randint(20, 200)]
    return Damage(data, Kind.CUT_LINE, last + 1)
