"""The five kinds of audit record, as typed objects, and how one line becomes one of them.

The fields are those of the audit schema (``docs/audit.md``); a line may carry more, such as
the application's own context, and they are left alone. The event's name decides the kind.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, TypeAlias

from .structs import FAST, Meta, Struct

#: The version of the schema that this reader knows.
SCHEMA = 1

#: A moment with its time zone: two moments without one could not be compared safely.
Moment = Annotated[datetime, Meta(tz=True)]


class _OfConnection(Struct, tag_field="event", kw_only=True, gc=False):
    """What every record about one connection says besides its own step."""

    ts: Moment
    connection_id: str
    address: str = ""
    strategy: str = ""
    flavour: str = ""
    reason: str = ""
    error_code: str | None = None
    generation: int = 0
    attempt: int | None = None
    clients: int | None = None
    in_flight: int | None = None
    dwell_s: float | None = None
    topology_version: int | None = None
    pid: int | None = None
    thread_name: str | None = None
    schema: int = SCHEMA


class Transition(_OfConnection, tag="connection.transition", kw_only=True, gc=False):
    """One state change. ``seq`` counts a connection's changes from 1 without gaps."""

    seq: int
    trigger: str
    source: str
    dest: str


class Created(_OfConnection, tag="connection.created", kw_only=True, gc=False):
    """A connection came to be, in IDLE. Its ``seq`` is 0 and counts as no change."""

    seq: int | None = None
    trigger: str | None = None
    source: str | None = None
    dest: str = "IDLE"


class Refused(_OfConnection, tag="connection.refused", kw_only=True, gc=False):
    """A trigger was refused: nothing changed, hence no ``seq``."""

    trigger: str
    source: str
    seq: int | None = None
    dest: str | None = None


class Waiting(_OfConnection, tag="connection.waiting", kw_only=True, gc=False):
    """Calls wait for a collection to be loaded again, or have waited ``dwell_s``: no change."""

    trigger: str
    source: str
    seq: int | None = None
    dest: str | None = None


class RecordsLost(Struct, tag_field="event", tag="connection.records_lost", kw_only=True, gc=False):
    """The sink could not write ``count`` records: of one connection, or of a whole process."""

    ts: Moment
    count: int
    connection_id: str | None = None
    pid: int | None = None
    schema: int = SCHEMA


Record: TypeAlias = Transition | Created | Refused | Waiting | RecordsLost
KINDS: tuple[type[Transition], type[Created], type[Refused], type[Waiting], type[RecordsLost]] = (
    Transition,
    Created,
    Refused,
    Waiting,
    RecordsLost,
)

#: Event names that are ours.
EVENTS = (
    "connection.transition",
    "connection.created",
    "connection.refused",
    "connection.waiting",
    "connection.records_lost",
)


def _fast_decoders() -> tuple[Callable[[bytes], Record], Callable[[dict[str, object]], Record]]:
    import msgspec

    # The annotation: mypy cannot see a union of types as a type argument.
    parse: Callable[[bytes], Record] = msgspec.json.Decoder(Record).decode

    def decode(line: bytes) -> Record:
        if not line.isascii():
            line.decode()  # msgspec does not look at the text of fields that it skips
        return parse(line)

    return decode, lambda values: msgspec.convert(values, Record)


def _plain_decoders() -> tuple[Callable[[bytes], Record], Callable[[dict[str, object]], Record]]:
    from . import plain

    return plain.decoders(KINDS)


#: ``decode(line)`` and ``convert(values)`` give a record or raise a ValueError (of a kind that
#: depends on the decoder); ``lines.py`` finds out what is wrong and says it in plain words.
decode, convert = _fast_decoders() if FAST else _plain_decoders()
