"""How fast and in how much memory logs are verified: ``python -m tests.benchmarks.replay_speed``.

Makes a log (5,000,000 records take two minutes and 2.3 GB below ``--folder``), verifies it in a
process of its own, and prints records a second, by the clock and by CPU time, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.made_up import synthetic_records

VERIFY = """
import json, resource, sys, time
from milvus_lifecycle.replay.verify import verify_logs

def peak():
    # Not ru_maxrss, where it can be helped: Linux hands the parent's on to its children.
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

if __name__ == "__main__":
    began = time.process_time()
    verdict = verify_logs([sys.argv[1]], jobs=int(sys.argv[2]))
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({
        "exit_code": verdict.exit_code,
        "records": verdict.records,
        "seconds": verdict.seconds,
        "cpu_seconds": time.process_time() - began + children.ru_utime + children.ru_stime,
        "peak_mb": peak() / 1024,
        "peak_mb_of_a_worker": children.ru_maxrss / 1024,
    }))
"""


def make_log(path: Path, count: int, connections: int, seed: int = 2) -> None:
    """Write a legal log of ``count`` records."""
    with path.open("w", encoding="utf-8") as file:
        for record in synthetic_records(count, seed=seed, connections=connections, addresses=8):
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


def measure(path: Path, jobs: int = 1) -> dict[str, float]:
    """Verify ``path`` in a process of its own."""
    script = path.with_name("verify_speed.py")  # a file: worker processes import it again
    script.write_text(VERIFY, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(path), str(jobs)],
        capture_output=True,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=5_000_000)
    parser.add_argument("--connections", type=int, default=20_000, help="alive at the same time")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", help="for the log (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "audit.jsonl"
        make_log(path, options.records, options.connections)
        figures = measure(path, options.jobs)
    records = figures["records"]
    print(f"{records:,.0f} records, exit code {figures['exit_code']:.0f}")
    print(f"{records / figures['seconds']:,.0f} records/s by the clock")
    print(f"{records / figures['cpu_seconds']:,.0f} records/s by CPU time")
    print(f"{figures['peak_mb']:.0f} MB at most, {figures['peak_mb_of_a_worker']:.0f} in a worker")


if __name__ == "__main__":
    main()
