"""``milvus-lifecycle audit tail``: which records to show, how, and following a growing log."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from time import sleep

from ..diagram.drawing import show_seconds
from ..replay.files import STDIN, Follower, decode_or_explain, last_matches, why
from ..replay.findings import Kind, clean
from ..replay.records import Created, Notice, Record, RecordsLost, Refused, Transition, Waiting
from ..table import State

#: Puts a text into a style.
Paint = Callable[[str, str], str]

#: Seconds between two looks at the file.
PAUSE = 0.2
_STYLES: dict[str, str] = {
    State.IDLE: "dim",
    State.ACTIVE: "green",
    State.PROBING: "blue",
    State.RECOVERING: "yellow",
    State.CLOSED: "bold",
}
_ALARMS = frozenset({"give_up", "probe_failed"})


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

    def __init__(self, paint: Paint, width: int = sys.maxsize) -> None:
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
            if left <= 0:
                break
            text = text if len(text) <= left else text[: left - 1] + "…"
            left -= len(text) + 2
            words.append(self._paint(text, style) if style else text)
        return "  ".join(words).rstrip()

    def _parts(self, record: Record) -> list[tuple[str, str]]:
        if isinstance(record, RecordsLost):
            return [(f"{record.count:,} records were lost by the sink", "red")]
        trigger = record.trigger or "created"
        if isinstance(record, Refused):
            trigger += " refused"
        source, dest = record.source or "", record.dest or record.source or ""
        lasted = record.dwell_s if isinstance(record, (Transition, Waiting, Notice)) else None
        number = "-" if record.seq is None else record.seq
        alarm = "alarm" if trigger in _ALARMS or isinstance(record, Notice) else ""
        return [
            (f"{clean(source):>10} → {clean(dest):<10}", alarm or _STYLES.get(dest, "")),
            (f"{clean(trigger):<12}", alarm),
            (f"{'' if lasted is None else show_seconds(lasted):>8}", "dim"),
            (clean(record.address), "blue"),
            (f"{clean(record.connection_id)[:8]} #{number}", "dim"),
            (_details(record), ""),
        ]


def _details(record: Transition | Created | Refused | Waiting | Notice) -> str:
    details = [f"g{record.generation}"]
    if record.attempt:
        details.append(f"try {record.attempt}")
    if record.error_code and record.error_code not in record.reason:
        details.append(clean(record.error_code))
    return " ".join([*details, clean(record.reason, 200)])


# -- the command ---------------------------------------------------------------------------------


def show_tail(options: argparse.Namespace, paint: Paint) -> int:
    """Show the last lines, and follow if asked; returns the exit code. Ctrl-C is raised."""
    wanted = Wanted(options.address, options.connection, options.trigger, options.since)
    out = sys.stdout
    writer = LineWriter(paint, shutil.get_terminal_size().columns if out.isatty() else sys.maxsize)
    foreign = False

    def match(line: bytes) -> Shown | None:
        nonlocal foreign
        shown = look_at(line, wanted)
        foreign = foreign or (shown is None and bool(line.strip()))
        return shown

    def show(found: Iterable[Shown]) -> None:
        for shown in found:
            raw = [shown.raw.decode("utf-8", "replace")]
            print(*(raw if options.json else writer.lines(shown)), sep="\n")
        out.flush()

    follower, end = None, None
    try:
        if options.follow and options.log != STDIN:
            follower = Follower(options.log)
            end = follower.seek_end()
        found = last_matches(options.log, options.lines, match, end)
        show(found)
    except OSError as error:
        print(f"{options.log}: cannot be opened: {why(error)}", file=sys.stderr)
        return 2
    if foreign and not found and wanted.everything and follower is None and options.lines:
        print(f"{options.log}: no audit record in it; audit verify says why", file=sys.stderr)
        return 2
    if follower is None:
        return 0
    with closing(follower):
        while True:
            show(shown for line in follower.poll() if (shown := match(line)))
            sleep(PAUSE)
