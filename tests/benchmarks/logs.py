"""Made-up logs, and what it costs a process of its own to verify one or to report on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.made_up import synthetic_records

SCRIPT = """
import json, resource, sys, time

def peak():
    # Not ru_maxrss, where it can be helped: Linux hands the parent's on to its children.
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

if __name__ == "__main__":
    command, path = sys.argv[1:]
    figures = {}
    if command == "verify":
        from milvus_lifecycle.replay.verify import verify_logs
        verdict = verify_logs([path], jobs=1)
        figures = {"exit_code": verdict.exit_code, "records": verdict.records}
    elif command == "report":
        from milvus_lifecycle.cli import main
        sys.stdout = sys.stderr
        main(["audit", "report", path, "-o", path + ".html"])
        sys.stdout = sys.__stdout__
    else:
        with open(path, "rb") as log:
            for line in log:
                json.loads(line)
    print(json.dumps({**figures, "seconds": time.process_time(), "peak_mb": peak() / 1024}))
"""


def make_log(path: Path, count: int, connections: int, seed: int = 2) -> None:
    """Write a legal log of ``count`` records."""
    with path.open("w", encoding="utf-8") as file:
        for record in synthetic_records(count, seed=seed, connections=connections, addresses=8):
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


def measure(path: Path, command: str = "verify") -> dict[str, float]:
    """CPU seconds and peak memory (MB) of a process that verifies ``path``, or does ``command``:
    "report", or "parse" for nothing but ``json.loads`` of each line."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, command, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
