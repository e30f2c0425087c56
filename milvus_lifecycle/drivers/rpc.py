"""A method of a permanent channel, in both flavours: resolves to the channel of the moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from ..core.face import Start

AnyFace = TypeVar("AnyFace")

#: gRPC's client interceptors, by flavour
INTERCEPTORS: dict[str, tuple[type, ...]] = {
    "threads": (
        grpc.UnaryUnaryClientInterceptor,
        grpc.UnaryStreamClientInterceptor,
        grpc.StreamUnaryClientInterceptor,
        grpc.StreamStreamClientInterceptor,
    ),
    "asyncio": (grpc.aio.ClientInterceptor,),
}


@dataclass(slots=True, eq=False, repr=False)
class Method(Generic[AnyFace]):
    """What a stub holds. The multi-callable of the channel in use is cached with that channel."""

    _face: AnyFace
    _kind: str
    _method: str
    _args: Any
    _kwargs: Any

    def prepare(self, start: Start, metadata: Any) -> tuple[Any, float | None, Any]:
        """For an RPC that has been let in: its multi-callable, timeout and metadata.

        The timeout is what is left of the call's; the metadata are the caller's with the
        identifier of the channel in use.
        """
        binding = start.binding
        target = binding.wire.methods.get(self._method)
        if target is None:
            make = getattr(binding.wire.channel, self._kind)
            target = make(self._method, *self._args, **self._kwargs)
            binding.wire.methods[self._method] = target
        timeout = None if start.until is None else max(0.0, start.until - start.at)
        if binding.identifier is not None:
            metadata = (*(metadata or ()), ("identifier", binding.identifier))
        return target, timeout, metadata
