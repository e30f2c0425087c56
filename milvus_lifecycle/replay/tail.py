"""One record on one line, for people who watch; and which records they want to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase

from ..cli.colour import Paint
from ..diagram.drawing import show_seconds
from ..table import State
from .decoding import clean, decode_or_explain
from .problems import Kind
from .records import Created, Record, RecordsLost, Refused, Transition, Waiting

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_STYLES = {
    str(State.IDLE): "dim",
    str(State.ACTIVE): "green",
    str(State.PROBING): "blue",
    str(State.RECOVERING): "yellow",
    str(State.CLOSED): "bold",
}
_ALARMS = frozenset({"give_up", "probe_failed"})
_STATE_WIDTH = max(len(state) for state in _STYLES)


def parse_since(text: str, now: datetime) -> datetime:
    """A moment: ISO 8601 (without a zone: UTC), or an age such as 90s, 15m, 2h, 1d.

    Raises ValueError that says what is accepted.
    """
    if text[:-1].replace(".", "", 1).isdigit() and text[-1:] in _UNITS:
        return now - timedelta(seconds=float(text[:-1]) * _UNITS[text[-1]])
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither an age (90s, 15m, 2h, 1d) nor a time (2026-03-01T09:00:00Z)"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


@dataclass(frozen=True)
class Wanted:
    """Which records to show; an empty condition lets everything pass.

    ``addresses`` are substrings or globs, ``connections`` beginnings of an id.
    """

    addresses: Sequence[str] = ()
    connections: Sequence[str] = ()
    triggers: Sequence[str] = ()
    since: datetime | None = None

    @property
    def everything(self) -> bool:
        """No condition at all."""
        return not (self.addresses or self.connections or self.triggers or self.since)

    def admits(self, record: Record) -> bool:
        """Does ``record`` meet every condition?"""
        if self.since is not None and record.ts < self.since:
            return False
        if isinstance(record, RecordsLost):
            return not (self.addresses or self.connections or self.triggers)
        if self.triggers and record.trigger not in self.triggers:
            return False
        if self.connections and not record.connection_id.startswith(tuple(self.connections)):
            return False
        return not self.addresses or any(
            wish in record.address or fnmatchcase(record.address, wish) for wish in self.addresses
        )


@dataclass(frozen=True)
class Shown:
    """A line of the log that is wanted: its record, or what is wrong with it."""

    raw: bytes
    record: Record | None
    trouble: str = ""


def look_at(line: bytes, wanted: Wanted) -> Shown | None:
    """What to show of ``line``; None if nothing. Foreign lines are only shown without filters."""
    records, findings = decode_or_explain(line)
    if records:
        record = records[-1]
        return Shown(line, record) if wanted.admits(record) else None
    troubles = [message for kind, message in findings if kind is not Kind.FOREIGN_LINE]
    if troubles and wanted.everything:
        return Shown(line, None, "; ".join(troubles))
    return None


class LineWriter:
    """Turns records into lines; says the day when it changes."""

    def __init__(self, paint: Paint, width: int | None = None) -> None:
        self._paint = paint
        self._width = width
        self._day = ""

    def lines(self, shown: Shown) -> list[str]:
        """One line, after one for the day if that is a new one. Times are UTC."""
        record = shown.record
        if record is None:
            return [self._paint(f"--- {clean(shown.trouble, 200)}", "red")]
        moment = record.ts.astimezone(timezone.utc)
        day = f"{moment:%A %Y-%m-%d} (UTC)"
        lines = [] if day == self._day else [self._paint(day, "bold")]
        self._day = day
        clock = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03d}"
        return [*lines, self._fit([(clock, "dim"), *self._parts(record)])]

    def _fit(self, parts: list[tuple[str, str]]) -> str:
        """Join the parts, cut at the width of the terminal."""
        left = self._width
        words = []
        for text, style in parts:
            if left is not None:
                if left <= 0:
                    break
                text = text if len(text) <= left else text[: max(0, left - 1)] + "…"
                left -= len(text) + 2
            words.append(self._paint(text, style) if style else text)
        return "  ".join(words).rstrip()

    def _parts(self, record: Record) -> list[tuple[str, str]]:
        if isinstance(record, RecordsLost):
            whose = f" of {clean(record.connection_id)}" if record.connection_id else ""
            return [(f"{record.count:,} records{whose} were lost by the sink", "red")]
        if isinstance(record, Transition):
            source, trigger, dest = record.source, record.trigger, record.dest
        elif isinstance(record, Created):
            source, trigger, dest = "", "created", record.dest
        elif isinstance(record, Waiting):
            source, trigger, dest = record.source, record.trigger, record.source
        else:
            source, trigger, dest = record.source, f"{record.trigger} refused", record.source
        style = "alarm" if trigger in _ALARMS else _STYLES.get(dest, "")
        return [
            (f"{clean(source):>{_STATE_WIDTH}} → {clean(dest):<{_STATE_WIDTH}}", style),
            (f"{clean(trigger):<12}", "alarm" if trigger in _ALARMS else ""),
            (f"{_dwell(record):>8}", "dim"),
            (clean(record.address), "blue"),
            (f"{clean(record.connection_id)[:8]} #{_number(record)}", "dim"),
            (_details(record), ""),
        ]


def _number(record: Transition | Created | Refused | Waiting) -> str:
    return "-" if record.seq is None else str(record.seq)


def _dwell(record: Transition | Created | Refused | Waiting) -> str:
    if not isinstance(record, (Transition, Waiting)) or record.dwell_s is None:
        return ""
    return show_seconds(record.dwell_s)


def _details(record: Transition | Created | Refused | Waiting) -> str:
    details = [f"g{record.generation}"]
    if record.attempt:
        details.append(f"try {record.attempt}")
    if record.error_code and record.error_code not in record.reason:
        details.append(clean(record.error_code))
    return " ".join([*details, clean(record.reason, 200)])
