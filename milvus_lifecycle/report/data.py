"""The report's data as the page reads it: columns of small integers, packed into text.

A stay is a row over all columns of ``stays``; lanes name their first stay. Texts are numbered
in one table. The whole is JSON, compressed, in base64: 50,000 stays take about 1 MB.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from datetime import datetime

from ..replay.records import Transition
from ..table import State
from .timeline import Lane, Stay

#: The states in the order of their numbers in the data.
STATES = tuple(state.value for state in State)


class _Texts:
    """Numbers texts; 0 is no text."""

    def __init__(self) -> None:
        self.table: list[str] = [""]
        self._numbers: dict[str, int] = {"": 0}

    def __call__(self, text: str | None) -> int:
        if text is None:
            return 0
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.table)
            self.table.append(text)
        return number


def timeline_data(lanes: Sequence[Lane], since: datetime, until: datetime) -> dict[str, object]:
    """The columns. Times are milliseconds, of stays since ``since``, and of that since 1970."""
    texts = _Texts()
    lane_columns: dict[str, list[object]] = {name: [] for name in _LANE_COLUMNS}
    stay_columns: dict[str, list[object]] = {name: [] for name in _STAY_COLUMNS}
    for lane in lanes:
        row: tuple[object, ...] = (
            lane.life.connection_id,
            texts(lane.life.address),
            texts(lane.strategy),
            texts(lane.flavour),
            lane.pid,
            round(lane.life.outage_s, 3),
            lane.life.outages,
            lane.life.records,
            len(stay_columns["start"]),
        )
        _append(lane_columns, row)
        for stay in lane.stays:
            _append(stay_columns, _stay_row(stay, since, texts))
    return {
        "since": since.timestamp() * 1000,
        "span": max(1.0, (until - since).total_seconds() * 1000),
        "states": STATES,
        "texts": texts.table,
        "lanes": lane_columns,
        "stays": stay_columns,
    }


_LANE_COLUMNS = (
    "id",
    "address",
    "strategy",
    "flavour",
    "pid",
    "outage_s",
    "outages",
    "records",
    "first",
)
_STAY_COLUMNS = (
    "start",
    "state",
    "merged",
    "seq",
    "trigger",
    "source",
    "reason",
    "error_code",
    "address",
    "generation",
    "attempt",
    "clients",
    "in_flight",
    "dwell_s",
    "topology_version",
    "thread_name",
)


def _append(columns: dict[str, list[object]], row: tuple[object, ...]) -> None:
    for column, value in zip(columns.values(), row, strict=True):
        column.append(value)


def _stay_row(stay: Stay, since: datetime, texts: _Texts) -> tuple[object, ...]:
    state = STATES.index(stay.state) if stay.state in STATES else -1
    start = round((stay.start - since).total_seconds() * 1000, 3)
    record = stay.record
    if record is None:
        return (start, state, 0, None, *(0,) * 5, *(None,) * 6, 0)
    trigger = record.trigger if isinstance(record, Transition) else "created"
    return (
        start,
        state,
        stay.records,
        record.seq,
        texts(trigger),
        texts(record.source),
        texts(record.reason),
        texts(record.error_code),
        texts(record.address),
        record.generation,
        record.attempt,
        record.clients,
        record.in_flight,
        record.dwell_s,
        record.topology_version,
        texts(record.thread_name),
    )


def pack(data: object) -> str:
    """``data`` as compressed JSON in base64."""
    text = json.dumps(data, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(text, 6, mtime=0)).decode()
