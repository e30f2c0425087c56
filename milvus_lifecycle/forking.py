"""Fork: in a child, every manager is told before anything else of the program runs."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """Something that has to be told in the child."""

    def fork_child(self) -> None:
        """Forget the parent's locks, threads and channels."""
        ...


_TOLD: weakref.WeakSet[Forked] = weakref.WeakSet()


def on_fork_in_child(manager: Forked) -> None:
    """Call ``manager.fork_child`` in every forked child, as long as ``manager`` lives."""
    _TOLD.add(manager)


def _after_fork_in_child() -> None:
    for manager in list(_TOLD):
        manager.fork_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
