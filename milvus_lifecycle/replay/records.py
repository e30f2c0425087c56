"""The six kinds of audit record, as typed objects, and how one line becomes one of them.

The fields are those of ``audit.records``, declared there and nowhere else. A reader is more
lenient than the writer: a log may lack what no law asks for, and may carry more (such as the
application's own context), which is left alone. The event's name decides the kind.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeAlias, get_type_hints

import msgspec

from ..audit import records as schema
from ..audit.records import RecordsLost as LossRecord

if TYPE_CHECKING:
    # What is made below, for type checkers. Numbers are None where a record lacks them.

    class _Step(schema.TransitionRecord):
        ts: datetime  # type: ignore[assignment]
        trigger: str
        source: str

    class Transition(_Step):
        """One state change. ``seq`` counts a connection's changes from 1 without gaps."""

        seq: int

    class Created(schema.TransitionRecord):
        """A connection came to be, in IDLE. Its ``seq`` is 0 and counts as no change."""

        ts: datetime  # type: ignore[assignment]

    class Refused(_Step):
        """A trigger was refused: nothing changed, hence no ``seq``."""

    class Waiting(_Step):
        """Calls wait for a collection to be loaded again, or have waited ``dwell_s``: no change."""

    class Notice(_Step):
        """What people were told of an outage of ``dwell_s``: no change."""

    class RecordsLost(LossRecord):
        """The sink of process ``pid`` could not write ``count`` records."""

        ts: datetime  # type: ignore[assignment]

else:
    #: What a record says that does not say it; for the rest that is None.
    _DEFAULTS = dict.fromkeys(("address", "strategy", "flavour", "reason"), "")
    _DEFAULTS |= {"generation": 0, "schema": schema.SCHEMA}

    def _struct(name: str, event: str, declared: type = schema.TransitionRecord, **needed: type):
        # A moment has its time zone: two moments without one could not be compared safely.
        needed["ts"] = Annotated[datetime, msgspec.Meta(tz=True)]
        fields = []
        for field, hint in get_type_hints(declared).items():
            if field in needed:
                fields.append((field, needed[field]))
            elif field in _DEFAULTS:
                fields.append((field, hint, _DEFAULTS[field]))
            elif field != "event":
                fields.append((field, hint | None, None))
        options = {"tag_field": "event", "tag": event, "kw_only": True, "gc": False}
        return msgspec.defstruct(name, fields, module=__name__, **options)

    _step = {"connection_id": str, "trigger": str, "source": str}
    Transition = _struct("Transition", schema.TRANSITION, **_step, seq=int, dest=str)
    Created = _struct("Created", schema.CREATED, connection_id=str, dest=str)
    Refused = _struct("Refused", schema.REFUSED, **_step)
    Waiting = _struct("Waiting", schema.WAITING, **_step)
    Notice = _struct("Notice", schema.OUTAGE, **_step)
    RecordsLost = _struct("RecordsLost", schema.RECORDS_LOST, LossRecord, count=int)

Record: TypeAlias = Transition | Created | Refused | Waiting | Notice | RecordsLost

# The annotation: mypy cannot see a union of types as a type argument.
_parse: Callable[[bytes], Record] = msgspec.json.Decoder(Record).decode


def decode(line: bytes) -> Record:
    """The record that ``line`` is. Raises a ValueError, or RecursionError, if it is none."""
    if not line.isascii():
        line.decode()  # msgspec does not look at the text of fields that it skips
    return _parse(line)


def convert(values: dict[str, object]) -> Record:
    """The record whose fields are ``values``. Raises a ValueError that names the one at fault."""
    record: Record = msgspec.convert(values, Record)
    return record
