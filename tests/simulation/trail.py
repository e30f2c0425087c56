"""The records of all connections, read as they come: each story has to be a legal one."""

from __future__ import annotations

from typing import Any

from milvus_lifecycle import TransitionRecord
from milvus_lifecycle.audit.records import CREATED, OUTAGE, REFUSED, TRANSITION
from milvus_lifecycle.table import TRANSITIONS
from milvus_lifecycle.testing import CapturedAudit

ROWS = {(row.trigger.value, row.source.value, row.dest.value) for row in TRANSITIONS}
#: what may leave a connection IDLE though somebody holds it
LOST = ("give_up", "abandoned")


class Trail:
    """What the records so far say of each connection."""

    def __init__(self, audit: CapturedAudit) -> None:
        self._audit = audit
        self._read = 0
        #: id of the connection -> its latest record of a change
        self._last: dict[str, TransitionRecord] = {}
        self._recoveries: dict[str, int] = {}
        #: addresses of which an outage was told that is not over
        self._down: set[str] = set()

    @property
    def ids(self) -> list[str]:
        """Every connection that there was, in the order of their creation."""
        return list(self._last)

    def generation(self, identity: str) -> int:
        """How often a channel was swapped in."""
        return self._last[identity].generation

    def read(self) -> None:
        """Go on to the newest record; each is a row of the table, and follows the one before."""
        records = self._audit.records  # every one so far
        for record in records[self._read :]:
            last = self._last.get(record.connection_id)
            if record.event == CREATED:
                assert (last, record.seq, record.dest) == (None, 0, "IDLE"), record
            elif record.event == REFUSED:
                assert (record.seq, record.source) == (None, "CLOSED"), record
                continue
            elif record.event == OUTAGE:
                assert (record.seq, record.source) == (None, record.dest), record
                assert (record.trigger == "down") is (record.address not in self._down), record
                self._down ^= {record.address}
                continue
            else:
                assert record.event == TRANSITION
                assert last is not None, record
                assert (record.seq, record.source) == ((last.seq or 0) + 1, last.dest), record
                assert (record.trigger, record.source, record.dest) in ROWS, record
                swapped = record.trigger in ("recovered", "probe_passed")
                grown = record.generation - last.generation
                assert grown == 0 or (swapped and grown == 1), record
                recovered = record.trigger == "recovered"
                count = self._recoveries.get(record.connection_id, 0) + recovered
                self._recoveries[record.connection_id] = count
            self._last[record.connection_id] = record
        self._read = len(records)

    def gave_up(self, row: dict[str, Any]) -> bool:
        """Is that the last that was heard of it?"""
        return self._last[row["id"]].trigger == "give_up"

    def check(self, row: dict[str, Any], *, calm: bool) -> None:
        """A row of ``get_stats`` tells the same; with a good server nothing is under way."""
        last, state = self._last[row["id"]], row["state"]
        told = (last.dest, last.generation, self._recoveries.get(row["id"], 0))
        assert told == (state, row["generation"], row["recoveries"]), (row, last)
        if state in ("PROBING", "RECOVERING"):
            assert not calm, f"{row} though its server is well"
        elif row["clients"]:
            assert state == "ACTIVE" or last.trigger in LOST, (row, last)
        else:
            assert state == "IDLE", (row, last)
