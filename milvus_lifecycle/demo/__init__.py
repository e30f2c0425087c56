"""The demo: real Milvus Lite servers are killed under an unmodified MilvusClient program.

program     what a user would write: plain pymilvus
workload    the process that runs it, and notes what happens to it
child       the demo's end of that process
servers     Milvus Lite in processes that can be killed, and a topology service
scenarios   what is done to them: outages, or failovers
figures     what was seen, as numbers
screen      the numbers as a user sees them
run         all of it together
"""

from __future__ import annotations


class DemoError(Exception):
    """The demo could not be carried out; the text says what happened. Exit code 2."""


class Interrupted(Exception):
    """A signal asked the demo to end; `signum` says which. Exit code 128 + signum."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum
