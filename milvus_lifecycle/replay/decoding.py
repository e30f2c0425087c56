"""One line into records, and where that fails: what is wrong with it, and what can be saved.

The fast decoder handles sound lines. Everything else comes here, once, at leisure.
"""

from __future__ import annotations

import json
from json import JSONDecodeError

from .problems import Kind
from .records import EVENTS, Record, convert, decode

#: Where loggers that do not know structlog's ``event`` put the message.
_ALIASES = ("message", "msg")
#: How many starts of an object to try in a line that holds more than one.
_TRIES = 8

Finding = tuple[Kind, str]


def decode_or_explain(line: bytes, complete: bool = True) -> tuple[list[Record], list[Finding]]:
    """The records in ``line`` (mostly one, of a damaged line perhaps none), and what is wrong.

    ``complete`` is False for a last line without a newline. An empty line is neither.
    """
    try:
        return [decode(line)], []
    except (ValueError, RecursionError):
        pass
    findings: list[Finding] = []
    if b"\0" in line:
        findings.append((Kind.NUL_BYTES, f"{line.count(0)} NUL bytes in the line"))
        line = line.replace(b"\0", b"")
    if not line.strip():
        return [], findings
    records, problem = _examine(line, complete)
    if problem is not None:
        findings.append(problem)
    return records, findings


def _examine(line: bytes, complete: bool) -> tuple[list[Record], Finding | None]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return [], (Kind.BROKEN_LINE, f"not UTF-8 (byte {error.start + 1} of the line)")
    try:
        value = json.loads(text)
    except JSONDecodeError as error:
        return _salvage(text, error, complete)
    except RecursionError:
        return [], (Kind.FOREIGN_LINE, "JSON nested too deeply to be an audit record")
    if not isinstance(value, dict):
        return [], (Kind.FOREIGN_LINE, f"not an audit record: JSON, but {_kind(value)}")
    return _convert(value)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _convert(values: dict[str, object]) -> tuple[list[Record], Finding | None]:
    event = values.get("event")
    if event not in EVENTS:
        alias = next((name for name in _ALIASES if values.get(name) in EVENTS), None)
        if alias is None:
            return [], (Kind.FOREIGN_LINE, _foreign(event))
        values = {**values, "event": values[alias]}
    try:
        return [convert(values)], None
    except ValueError as error:
        return [], (Kind.BAD_RECORD, f"a {values['event']} record with a fault: {error}")


def _foreign(event: object) -> str:
    if event is None:
        return "not an audit record: JSON without an event name"
    return f"not an audit record: event {clean(str(event))!r}"


def _salvage(
    text: str, error: JSONDecodeError, complete: bool
) -> tuple[list[Record], Finding | None]:
    """Not JSON as a whole: two records on one line, or a cut record with the next one behind it."""
    if not text.lstrip().startswith("{"):
        return [], (Kind.FOREIGN_LINE, f"not JSON: {clean(text)!r}")
    records: list[Record] = []
    whole = True
    starts = [index for index in range(len(text)) if text.startswith('{"', index)]
    decoder = json.JSONDecoder()
    end = 0
    for start in starts[:_TRIES]:
        if start < end:
            continue
        try:
            value, stop = decoder.raw_decode(text, start)
        except (JSONDecodeError, RecursionError):
            whole = False
            continue
        found, problem = _convert(value)
        if problem is None:
            records += found
            end = stop
    if records and whole and not text[end:].strip():
        return records, (Kind.BROKEN_LINE, f"{len(records)} records on one line")
    if not complete:
        return records, (Kind.CUT_LINE, f"the last line is cut off after {len(text):,} characters")
    saved = f"; {len(records)} whole record on the same line was read" if records else ""
    detail = f"{error.msg.lower()}, column {error.colno}"
    return records, (Kind.BROKEN_LINE, f"broken JSON ({detail}){saved}")


def clean(text: str, width: int = 60) -> str:
    """``text`` without control characters (a terminal would obey them), shortened."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"
