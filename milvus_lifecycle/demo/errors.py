"""Why a demo run ended early.

DemoError            could not be carried out: exit code 2
├── ServerFailed     Milvus Lite did not start, or ended by itself
└── WorkloadFailed   the client program's process ended by itself, or never got going
Interrupted          Ctrl-C, SIGTERM or SIGHUP: exit code 128 + signal
"""

from __future__ import annotations


class DemoError(Exception):
    """The demo could not be carried out; the text says what happened and what to do."""


class ServerFailed(DemoError):
    """Milvus Lite did not start, did not listen in time, or ended by itself."""


class WorkloadFailed(DemoError):
    """The process that runs the client program ended by itself or never got going."""


class Interrupted(Exception):
    """A signal asked the demo to end; `signum` says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum
