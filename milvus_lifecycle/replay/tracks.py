"""What is remembered of each connection while a log is read: its last record."""

from __future__ import annotations

import sys
from datetime import datetime

from ..table import State
from .records import Created, Transition

#: One string object for each state, however many records name it.
STATES = {str(state): str(state) for state in State}

#: Who writes a connection's records: pid, flavour and strategy. They never change.
Identity = tuple[int | None, str, str]


def identity_of(record: Transition | Created) -> Identity:
    """The writer of ``record``."""
    return record.pid, record.flavour, record.strategy


class Track:
    """What the last record of one connection said."""

    __slots__ = (
        "connection_id",
        "file",
        "flavour",
        "generation",
        "line",
        "pid",
        "seq",
        "state",
        "strategy",
        "topology",
        "ts",
    )

    def __init__(self, record: Transition | Created, file: str, line: int) -> None:
        self.connection_id = record.connection_id
        self.pid = record.pid
        self.flavour = sys.intern(record.flavour)
        self.strategy = sys.intern(record.strategy)
        self.seq = record.seq or 0
        self.state = STATES.get(record.dest, record.dest)
        self.generation = record.generation
        self.topology = record.topology_version
        self.ts: datetime = record.ts
        self.file = file
        self.line = line

    @property
    def identity(self) -> Identity:
        """The connection's writer."""
        return self.pid, self.flavour, self.strategy

    def move(self, record: Transition, file: str, line: int) -> None:
        """Stand where ``record`` left the connection."""
        self.seq = record.seq
        self.state = STATES.get(record.dest, record.dest)
        self.generation = record.generation
        if record.topology_version is not None:
            self.topology = record.topology_version
        self.ts = record.ts
        self.file = file
        self.line = line


#: A connection's id; with the writer's identity for the second and later users of one id.
Key = str | tuple[str, Identity]
