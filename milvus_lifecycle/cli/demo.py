"""`milvus-lifecycle demo`: its options and its exit code.

0 no call failed on the engine, 1 some did (or the run proves nothing, and it says why), 2 the demo
could not be run (or its report not be written), 128 + n ended by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shlex
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from milvus_lifecycle.cli import PROGRAM, Refused
from milvus_lifecycle.demo import DemoError

if TYPE_CHECKING:
    from rich.console import Console

OUTAGE_RANGE_S = (0.1, 45.0)
OUTAGES_MOST = 10
THREADS_MOST = 64

_NEEDED_OF_THE_PLATFORM = ((os, "killpg"), (signal, "SIGSTOP"), (socket, "SO_REUSEPORT"))


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options."""
    low, high = OUTAGE_RANGE_S
    parser.epilog = f"""Starts a Milvus Lite server in a temporary folder, runs an unmodified
pymilvus program against it (insert, search, list; no timeouts), kills the server with SIGKILL
in the middle of its calls, shows the connections' states live, and ends with a summary.

examples:
  {PROGRAM} demo --compare
  {PROGRAM} demo --outages 2 --asyncio --audit demo.jsonl
  {PROGRAM} demo --failover --report demo.html

Exit code 0: no call failed on the engine (and, in a failover, every write is in the
database of the server that was the primary); 1: some did; 2: it could not be run; 128 + n:
ended by signal n."""
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
    add("--json", type=parse_file, metavar="FILE", help="write all figures to FILE as JSON")
    audit = "keep the engine's audit log in FILE, which must be new or empty"
    add("--audit", type=parse_new_file, metavar="FILE", help=audit)
    report = "write the page about it to FILE, as audit report does; replaces what is there"
    add("--report", type=parse_file, metavar="FILE", help=report)


def execute(options: argparse.Namespace) -> int:
    """Run the demo; returns the exit code."""
    problem = find_obstacle(failover=options.failover, report=options.report is not None)
    if problem is not None:
        raise Refused(problem)
    from rich.console import Console

    from milvus_lifecycle.demo.run import play_demo

    kept, console = options.audit, Console()
    with contextlib.ExitStack() as stack:
        if options.report is not None and kept is None:
            folder = tempfile.TemporaryDirectory(prefix="milvus-lifecycle-demo-")
            options.audit = Path(stack.enter_context(folder)) / "audit.jsonl"
        try:
            good = play_demo(options, console)
        except (DemoError, OSError) as error:
            raise Refused(str(error)) from error
        if options.report is not None:
            from .audit import write_report

            if write_report([str(options.audit)], str(options.report)):
                return 2
    _say_next(console, kept, options.report)
    return 0 if good else 1


def _say_next(console: Console, audit: Path | None, report: Path | None) -> None:
    """What the user can do now, with what was kept."""
    lines = []
    if audit is None and report is None:
        lines += ["next time, --audit FILE keeps the engine's log, --report FILE a page about it"]
    if report is not None:
        lines += [f"open {report} in a browser"]
    if audit is not None:
        log = shlex.quote(str(audit))
        lines += [f"{PROGRAM} audit stats {log}", f"{PROGRAM} diagram --audit {log} -o outage.svg"]
        if report is None:
            lines += [f"{PROGRAM} audit report {log} -o report.html"]
        if _missing("msgspec", "bokeh", "pygraphviz"):
            lines += ["(pip install 'milvus_lifecycle[report]' has what they need)"]
    for line in lines:
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


def _missing(*packages: str) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def find_obstacle(*, failover: bool = False, report: bool = False) -> str | None:
    """What keeps the demo from running here; None if nothing does."""
    if not all(hasattr(module, name) for module, name in _NEEDED_OF_THE_PLATFORM):
        return "needs process groups, SIGSTOP and SO_REUSEPORT, that is, Linux or macOS"
    needed = ["pymilvus", "milvus_lite", "rich", *["httpx"] * failover]
    needed += ["msgspec", "bokeh", "pygraphviz"] * report
    missing = [name.replace("_", "-") for name in _missing(*needed)]
    if not missing:
        return None
    extras = ",".join(["demo", *["global"] * failover, *["report"] * report])
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


def parse_new_file(text: str) -> Path:
    """The argument of --audit. A log is appended to, and this one is to tell of this run alone."""
    path = parse_file(text)
    if path.exists() and path.stat().st_size:
        raise argparse.ArgumentTypeError(f"{text!r} has something in it: name a new file")
    return path


def parse_file(text: str) -> Path:
    """The argument of --json and --report: what can be written, found out before the run."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is no file that can be written")
    return path
