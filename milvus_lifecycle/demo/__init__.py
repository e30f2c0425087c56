"""The demo: real Milvus Lite servers are killed under an unmodified MilvusClient program.

program     what a user would write: plain pymilvus
workload    the process that runs it, and notes what happens to it
processes   the demo's end of that process; servers that can be killed, a topology service
run         what is done to them, outages or failovers, and all of it together
figures     what was seen, as numbers
screen      the numbers as a user sees them
"""

from __future__ import annotations


class DemoError(Exception):
    """The demo could not be carried out; the text says what happened. Exit code 2."""
