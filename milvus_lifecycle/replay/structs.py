"""The base class of decoded records: msgspec's Struct, or a plain stand-in where it is missing.

msgspec (extra ``audit``) decodes and type-checks a line in 1.3 us, six times faster than the
``json`` module alone. Without it everything still works, only slower: the stand-in keeps the
same declarations and the same checks. ``FAST`` says which of the two is in use.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

FAST = importlib.util.find_spec("msgspec") is not None

if TYPE_CHECKING or FAST:
    from msgspec import Meta, Struct
else:

    class Meta:
        """Stand-in of ``msgspec.Meta``: the checks of ``plain.py`` read its arguments."""

        def __init__(self, **constraints: object) -> None:
            self.constraints = constraints

    class Struct:
        """Stand-in of ``msgspec.Struct``: keyword arguments become attributes."""

        __struct_tag__ = ""

        def __init_subclass__(cls, tag: str = "", **_config: object) -> None:
            cls.__struct_tag__ = tag

        def __init__(self, **values: object) -> None:
            self.__dict__.update(values)

        def __eq__(self, other: object) -> bool:
            return type(other) is type(self) and other.__dict__ == self.__dict__

        def __repr__(self) -> str:
            return f"{type(self).__name__}({self.__dict__})"


__all__ = ["FAST", "Meta", "Struct"]
