"""What a checkout is given: a client that can hold a lease, and a timeout."""

from __future__ import annotations

import weakref
from typing import cast

from .errors import ConfigError


def check_client(client: object | None) -> None:
    """Raise ConfigError for a client whose lease could never end by itself."""
    if client is None:
        return
    try:
        weakref.ref(client)
    except TypeError:
        raise ConfigError(
            f"client of type {type(client).__name__} cannot be weakly referenced, so its lease "
            "could never end by itself; pass an instance of an ordinary class (with __weakref__)",
            field="client",
        ) from None


def check_timeout(timeout: object) -> None:
    """Raise ConfigError for anything but None or a positive number of seconds."""
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if timeout is not None and not (number and cast(float, timeout) > 0):
        raise ConfigError(
            f"timeout={timeout!r} is not a number of seconds greater than 0, or None",
            field="timeout",
        )
