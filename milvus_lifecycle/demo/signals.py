"""Signals that end the demo, noted when they arrive and raised only where it is safe.

A handler that raises could strike between "the server was started" and "its process is noted",
and leave a process behind. So the handler only notes; the demo's main thread never blocks for
longer than a pulse and asks `check` at each.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import final

from milvus_lifecycle.demo.errors import Interrupted

# Windows has no SIGHUP.
_ENDING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)

_Handler = Callable[[int, "FrameType | None"], object] | int | None


@final
class Signals:
    """Context manager: notes SIGINT, SIGTERM and SIGHUP; later ones during clean-up are ignored."""

    def __init__(self) -> None:
        self._noted: int | None = None
        self._before: dict[signal.Signals, _Handler] = {}

    def __enter__(self) -> Signals:
        for signum in _ENDING:
            # nohup has SIGHUP ignored on purpose: keep it so.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            if handler is not None:  # None: not set by Python, so Python cannot put it back
                signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self._noted is None:
            self._noted = signum

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self._noted is not None:
            raise Interrupted(self._noted)
