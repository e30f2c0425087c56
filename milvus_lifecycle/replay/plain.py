"""Decoding a record with nothing but the standard library: where msgspec is not installed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from types import NoneType
from typing import Any, get_args, get_type_hints

_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(\.\d+)?(?:Z|([+-]\d\d):?(\d\d))", re.IGNORECASE
)
_WORDS = {str: "str", int: "int", float: "float", dict: "object", list: "array", NoneType: "null"}


def _moment(text: str) -> datetime:
    """RFC 3339 only, with a zone: what msgspec accepts, on every supported Python."""
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise ValueError("Invalid RFC3339 encoded datetime - at `$.ts`")
    day, clock, fraction, hours, minutes = match.groups()
    zone = "+00:00" if hours is None else f"{hours}:{minutes}"
    micros = round(float(fraction) * 1e6) if fraction else 0
    return datetime.fromisoformat(f"{day}T{clock}{zone}") + timedelta(microseconds=micros)


def _check(name: str, value: object, allowed: tuple[type, ...]) -> object:
    """``value`` as its field wants it; ValueError in msgspec's words where it does not fit."""
    kind = type(value)
    if kind in allowed:
        return value
    if kind is str and datetime in allowed:
        return _moment(str(value))
    if kind is int and float in allowed:
        return float(str(value))
    wanted = " | ".join(_WORDS.get(one, one.__name__) for one in allowed)
    raise ValueError(
        f"Expected `{wanted}`, got `{_WORDS.get(kind, kind.__name__)}` - at `$.{name}`"
    )


class _Shape:
    """The fields of one kind of record: their types and defaults, read off its declarations."""

    def __init__(self, kind: type[Any]) -> None:
        self.kind = kind
        self.types: dict[str, tuple[type, ...]] = {}
        self.defaults: dict[str, object] = {}
        for name, hint in get_type_hints(kind).items():
            if name.startswith("_"):
                continue
            self.types[name] = get_args(hint) or (hint,)
            if hasattr(kind, name):
                self.defaults[name] = getattr(kind, name)

    def build(self, values: dict[str, object]) -> Any:
        fields = dict(self.defaults)
        for name, allowed in self.types.items():
            if name in values:
                fields[name] = _check(name, values[name], allowed)
            elif name not in fields:
                raise ValueError(f"Object missing required field `{name}`")
        return self.kind(**fields)


def decoders(
    kinds: Iterable[type[Any]],
) -> tuple[Callable[[bytes], Any], Callable[[dict[str, object]], Any]]:
    """``decode`` and ``convert`` as ``records.py`` declares them, over the given kinds."""
    shapes = {kind.__struct_tag__: _Shape(kind) for kind in kinds}

    def convert(values: dict[str, object]) -> Any:
        event = values.get("event")
        shape = shapes.get(event) if isinstance(event, str) else None
        if shape is None:
            raise ValueError(f"Invalid value {event!r} - at `$.event`")
        return shape.build(values)

    def decode(line: bytes) -> Any:
        values = json.loads(line)
        if not isinstance(values, dict):
            raise ValueError("Expected `object`")
        return convert(values)

    return decode, convert
