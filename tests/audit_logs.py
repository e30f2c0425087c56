"""Audit logs made by hand: a connection's story, step by step, with times that tests can add up."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path

from milvus_lifecycle.replay.records import Record, convert
from tests.corruption import Fields, encode, join

START = datetime(2026, 3, 1, 9, 0, tzinfo=timezone.utc)


class Story:
    """The records of one connection; each step says how long its source state lasted."""

    def __init__(
        self, connection_id: str = "c1", address: str = "a:19530", began: float = 0.0
    ) -> None:
        self.connection_id = connection_id
        self.address = address
        self.moment = START + timedelta(seconds=began)
        self.state = "IDLE"
        self.generation = 0
        self.seq = 0
        self.records: list[Fields] = []
        self._write("connection.created", trigger=None, source=None)

    def step(self, trigger: str, dest: str, dwell: float, **fields: object) -> Story:
        """``trigger`` comes after ``dwell`` seconds in the current state, and leads to ``dest``."""
        self.moment += timedelta(seconds=dwell)
        source, self.state = self.state, dest
        self.seq += 1
        self.generation += trigger == "recovered"
        step = {"trigger": trigger, "source": source, "dwell_s": dwell, **fields}
        self._write("connection.transition", **step)
        return self

    def connect(self) -> Story:
        """The first connect: 1 s IDLE, 2 s PROBING."""
        return self.step("acquire", "PROBING", 1.0).step("probe_passed", "ACTIVE", 2.0)

    def outage(self, healthy: float, *attempts: float) -> Story:
        """After ``healthy`` seconds the server fails; attempts fail after so long, the last not."""
        self.step("fail", "RECOVERING", healthy, error_code="UNAVAILABLE")
        for number, length in enumerate(attempts[:-1], 1):
            self.step("retry", "RECOVERING", length, attempt=number, error_code="UNAVAILABLE")
        return self.step("recovered", "ACTIVE", attempts[-1])

    def wait(self, news: str, seconds: float = 0.0) -> Story:
        """What happened to a wait for a collection, which has lasted for ``seconds``."""
        fields = {"trigger": news, "source": self.state, "dwell_s": seconds, "seq": None}
        self._write("connection.waiting", **fields)
        return self

    def _write(self, event: str, **fields: object) -> None:
        record: Fields = {
            "event": event,
            "ts": self.moment.isoformat(timespec="microseconds"),
            "seq": self.seq,
            "connection_id": self.connection_id,
            "address": self.address,
            "strategy": "regular",
            "flavour": "threads",
            "dest": self.state,
            "reason": "as told",
            "error_code": None,
            "generation": self.generation,
            "attempt": 0,
            "clients": 1,
            "in_flight": 0,
            "dwell_s": 0.0,
            "topology_version": None,
            "pid": 4711,
            "thread_name": "MainThread",
            "schema": 1,
        }
        self.records.append({**record, **fields})


def merged(*stories: Story) -> list[Fields]:
    """The records of several connections in the order of time."""
    everything = [record for story in stories for record in story.records]
    return sorted(everything, key=lambda record: str(record["ts"]))


def decoded(*stories: Story) -> list[Record]:
    """The same, as the reader gives them."""
    return [convert(record) for record in merged(*stories)]


def write_log(path: Path, records: list[Fields]) -> str:
    """A file of these records; returns its name."""
    path.write_bytes(join([encode(record) for record in records]))
    return str(path)
