"""A method of a permanent channel, in both flavours: resolves to the channel of the moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from ..core.face import Start

AnyFace = TypeVar("AnyFace")


class Method(Generic[AnyFace]):
    """What a stub holds. The multi-callable of the channel in use is cached with that channel."""

    __slots__ = ("_args", "_face", "_kind", "_kwargs", "_method")

    def __init__(self, face: AnyFace, kind: str, method: str, args: Any, kwargs: Any) -> None:
        self._face = face
        self._kind = kind
        self._method = method
        self._args = args
        self._kwargs = kwargs

    def target(self, start: Start) -> Any:
        """The multi-callable that ``start`` is to use."""
        methods = start.binding.wire.methods
        target = methods.get(self._method)
        if target is None:
            make = getattr(start.binding.wire.channel, self._kind)
            target = methods[self._method] = make(self._method, *self._args, **self._kwargs)
        return target
