"""The mutex of a connection: re-entrant, and it knows whether this thread is inside any of them.

The collector may run a finalizer wherever Python code runs, inside a critical section too. If the
finalizer gives back a lease of *another* connection, that one must not be stepped right there: two
threads that do so the other way round would wait for each other for ever.
"""

from __future__ import annotations

import threading


class _Here(threading.local):
    """How many critical sections this thread is inside of."""

    depth = 0


here = _Here()


class Reentered(RuntimeError):
    """A finalizer ran inside a critical section of this very thread: do the work later instead."""


def inside() -> bool:
    """Is this thread inside a connection's critical section?"""
    return here.depth > 0


def check_outside() -> None:
    """Raise Reentered if this thread is inside a connection's critical section."""
    if here.depth:
        raise Reentered


class Mutex:
    """A ``threading.RLock`` that counts.

    On the hit path, where a call of Python code counts, ``lock`` is taken and ``here.depth`` kept
    by hand.
    """

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        self.lock.acquire()
        here.depth += 1

    def __exit__(self, *raised: object) -> None:
        here.depth -= 1
        self.lock.release()
