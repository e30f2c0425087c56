"""Fork: managers are told before one, and in the child before anything else of the program runs.

A thread that is inside gRPC while another one forks does not exist in the child, but what it was
in the middle of does: timers and sockets of a channel that was connecting, half changed. A child
that uses gRPC then dies by a segmentation fault (68 of 130 forks during an outage). So the
engine's own I/O leaves gRPC before the fork and starts anew after it.

Everything in the package that has to hear of forks hears of them here. Where the platform cannot
fork (Windows), nobody ever does.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

#: A fork waits so long (seconds) for threads that are inside gRPC.
FORK_LIMIT = 0.5
#: What gRPC's own threads get (seconds) to be done with a channel that was closed before the fork:
#: without it 2 of 30 children waited for ever for a lock of theirs, on a busy machine, and 17 of
#: 2,160 that were forked right after an event loop had ended.
SETTLING = 0.05
_closed_at = float("-inf")


def note_closed_channel() -> None:
    """A channel has just been closed, for a fork, by its client or at the end of its loop."""
    global _closed_at
    _closed_at = time.monotonic()


class Forked(Protocol):
    """Something that has to be told in the child."""

    def fork_child(self) -> None:
        """Forget the parent's locks, threads and channels."""


class ForkGate:
    """Counts threads that are inside gRPC, and lets none in or out while the process forks."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Around I/O. Waits while a fork is under way, before and after."""
        with self._changed:
            self._changed.wait_for(self._is_open)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()
                self._changed.wait_for(self._is_open)

    def close(self) -> None:
        """A fork begins."""
        with self._changed:
            self._closed += 1

    def wait(self, until: float) -> None:
        """Return when nobody is inside, or at ``until`` (``time.monotonic()`` seconds)."""
        with self._changed:
            self._changed.wait_for(lambda: not self._inside, max(0.0, until - time.monotonic()))

    def _is_open(self) -> bool:
        return not self._closed

    def open(self) -> None:
        """The fork is over."""
        with self._changed:
            self._closed -= 1
            self._changed.notify_all()


class Forking(Protocol):
    """Something that does I/O on threads of its own, which is not to be cut by a fork."""

    #: where that I/O is done; it is opened again in the parent when the fork is over
    gate: ForkGate

    def fork_begins(self) -> None:
        """Close the gate, and end what can be started anew."""


_LEAKED: list[object] = []


def leak(*things: object) -> None:
    """In a forked child: hold ``things`` of the parent for the rest of the process.

    Closing an inherited gRPC channel would write to the parent's sockets. Dropping the last
    reference closes it too.
    """
    _LEAKED.extend(things)


#: Locks and counts of modules: renewed before any manager is told, for managers use them.
_RENEWED: list[Callable[[], object]] = []
_TOLD: weakref.WeakSet[Forked] = weakref.WeakSet()
#: Not a set: other threads may add to it while one that forks goes through it.
_ASKED: weakref.WeakValueDictionary[int, Forking] = weakref.WeakValueDictionary()


def renew_in_child(renew: Callable[[], object]) -> None:
    """Call ``renew`` in every forked child, for what a module has once for the whole process."""
    _RENEWED.append(renew)


def on_fork_in_child(manager: Forked) -> None:
    """Call ``manager.fork_child`` in every forked child, as long as ``manager`` lives."""
    _TOLD.add(manager)


def around_fork(manager: Forking) -> None:
    """Have ``manager`` keep out of gRPC during every fork, as long as it lives."""
    _ASKED[id(manager)] = manager


#: who was asked before the fork that is under way, in each thread that forks
_forking = threading.local()


def _before_fork() -> None:
    asked: list[Forking] = []
    _forking.asked = asked
    for ref in _ASKED.valuerefs():
        manager = ref()
        if manager is not None:
            asked.append(manager)  # first: whatever happens, it is told when the fork is over
            manager.fork_begins()
    until = time.monotonic() + FORK_LIMIT
    for manager in asked:
        manager.gate.wait(until)
    time.sleep(max(0.0, _closed_at + SETTLING - time.monotonic()))


def _after_fork_in_parent() -> None:
    for manager in _forking.__dict__.pop("asked", ()):
        manager.gate.open()


def _after_fork_in_child() -> None:
    _forking.__dict__.clear()
    for renew in _RENEWED:
        renew()
    for manager in list(_TOLD):
        manager.fork_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
