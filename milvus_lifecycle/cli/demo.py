"""`milvus-lifecycle demo`: its options and its exit code.

0 no call failed on the engine, 1 some did (or the run proves nothing, and it says why), 2 the demo
could not be run, 128 + n ended by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import socket
from pathlib import Path

from milvus_lifecycle.cli import Refused
from milvus_lifecycle.demo import DemoError

OUTAGE_RANGE_S = (0.1, 45.0)
OUTAGES_MOST = 10
THREADS_MOST = 64

_NEEDED_OF_THE_PLATFORM = ((os, "killpg"), (signal, "SIGSTOP"), (socket, "SO_REUSEPORT"))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options."""
    low, high = OUTAGE_RANGE_S
    parser.epilog = (
        "Starts a Milvus Lite server in a temporary folder, runs an unmodified pymilvus program "
        "against it (insert, search, list; no timeouts), kills the server with SIGKILL in the "
        "middle of its calls, shows the connections' states live, and ends with a summary. "
        "Exit code 0: no call failed on the engine (and, in a failover, every write is in the "
        "database of the server that was the primary)."
    )
    add = parser.add_argument
    outages = (
        f"seconds from each kill to the next start of the server: 1 to {OUTAGES_MOST} numbers from "
        f"{low:g} to {high:g} (default: 1,5)"
    )
    add("--outages", type=parse_outages, default="1,5", metavar="S,S,...", help=outages)
    threads = f"threads (with --asyncio: tasks) that call, 1 to {THREADS_MOST} (default: 8)"
    add("--threads", type=parse_threads, default=8, metavar="N", help=threads)
    add("--asyncio", action="store_true", help="AsyncMilvusClient and tasks instead of threads")
    failover = (
        "two servers behind a topology service instead of one: for each number of --outages the "
        "primary changes by plan, then the new one is killed, and so many seconds later the "
        "topology names the other one"
    )
    add("--failover", action="store_true", help=failover)
    compare = "the same run on pymilvus's own connection manager, both side by side"
    add("--compare", action="store_true", help=compare)
    add("--json", type=parse_json_file, metavar="FILE", help="write all figures to FILE as JSON")


def execute(options: argparse.Namespace) -> int:
    """Run the demo; returns the exit code."""
    problem = find_obstacle(failover=options.failover)
    if problem is not None:
        raise Refused(problem)
    from rich.console import Console

    from milvus_lifecycle.demo.run import play_demo

    try:
        return 0 if play_demo(options, Console()) else 1
    except (DemoError, OSError) as error:
        raise Refused(str(error)) from error


def find_obstacle(*, failover: bool = False) -> str | None:
    """What keeps the demo from running here; None if nothing does."""
    if not all(hasattr(module, name) for module, name in _NEEDED_OF_THE_PLATFORM):
        return "needs process groups, SIGSTOP and SO_REUSEPORT, that is, Linux or macOS"
    needed = ("pymilvus", "milvus_lite", "rich", *["httpx"] * failover)
    missing = [name.replace("_", "-") for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    extras = "demo,global" if failover else "demo"
    return f"{', '.join(missing)} missing; install with: pip install 'milvus-lifecycle[{extras}]'"


def parse_outages(text: str) -> tuple[float, ...]:
    """The argument of --outages: "1,5" is (1.0, 5.0)."""
    low, high = OUTAGE_RANGE_S
    with contextlib.suppress(ValueError):
        outages = tuple(map(float, text.split(",")))
        if len(outages) <= OUTAGES_MOST and all(low <= outage <= high for outage in outages):
            return outages
    accepted = f"1 to {OUTAGES_MOST} comma-separated seconds from {low:g} to {high:g}, e.g. 1,5"
    raise argparse.ArgumentTypeError(f"{text!r} is not {accepted}")


def parse_threads(text: str) -> int:
    """The argument of --threads."""
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= number <= THREADS_MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {THREADS_MOST}")
    return number


def parse_json_file(text: str) -> Path:
    """The argument of --json: a file that can be written, found out before the run."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is no file that can be written")
    return path
