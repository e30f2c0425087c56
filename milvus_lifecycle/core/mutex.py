"""The mutex of a connection: a plain RLock, and what this thread knows of those that it holds.

The collector may run a finalizer wherever Python code runs, inside a critical section too. If the
finalizer gives back a lease of *another* connection, that one must not be stepped right there: two
threads that do so the other way round would wait for each other for ever.

A signal handler may raise wherever Python code runs, too. So the lock itself is taken by ``with
lock``, which is all C, and what is noted beside it may be left behind: a note counts only while
its lock is really held by this thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any


class _Here(threading.local):
    """The locks of the critical sections that this thread is inside of, the innermost last."""

    def __init__(self) -> None:
        # RLock has no type of its own in typeshed that knows _is_owned.
        self.locks: list[Any] = []


here = _Here()


class Reentered(RuntimeError):
    """A finalizer ran inside a critical section of this very thread: do the work later instead."""


def inside() -> bool:
    """Is this thread inside a connection's critical section?"""
    locks = here.locks
    while locks and not locks[-1]._is_owned():
        locks.pop()  # its section was interrupted before it could say that it was over
    return bool(locks)


def check_outside() -> None:
    """Raise Reentered if this thread is inside a connection's critical section."""
    if here.locks and inside():
        raise Reentered


@dataclass(slots=True)
class Section:
    """Notes that this thread is inside: ``with connection._lock, connection._section:``.

    On the hit path, where a call of Python code counts, ``here.locks`` is kept by hand.
    """

    lock: Any

    def __enter__(self) -> None:
        here.locks.append(self.lock)

    def __exit__(self, *raised: object) -> None:
        here.locks.pop()
