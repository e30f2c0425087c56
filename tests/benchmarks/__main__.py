"""The engine beside pymilvus: ``python -m tests.benchmarks [--quick] [--only NAME] [--json FILE]``.

Each side has a process of its own, and they measure in turn, so that both meet the same machine;
figures are medians, ratios those of the medians. ``--quick`` measures less than the titles say,
shows that every row works, and fails for a ratio more than twice as bad as the one in
``record.json``. It looks at no absolute time; what is marked "wall" it does not judge at all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.rows import ROWS, serve
from tests.processes import FakeMilvusProcess

RECORD = Path(__file__).with_name("record.json")
#: so much worse than on record is worse
FACTOR = 2.0
#: in a quick run the same as another one
LONG = ("outage-30", "outage-45")
OTHERS = ("SQLAlchemy", "psycopg_pool")

Result = dict[str, float]


class Side:
    """A process that measures one side of any row."""

    def __init__(self, name: str, uri: str, quick: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, uri, quick, theirs), daemon=True)
        self.process.start()

    def ask(self, what: object) -> Any:
        self.pipe.send(what)
        return self.pipe.recv()


@contextmanager
def sides(names: Sequence[str], quick: bool) -> Iterator[dict[str, Side]]:
    """The processes, and one fake Milvus for all of them."""
    with FakeMilvusProcess() as server:
        made = {name: Side(name, server.uri, quick) for name in names}
        yield made
        for side in made.values():
            side.pipe.send("")
            side.process.join(5)
            side.process.kill()


def measure(row_name: str, processes: dict[str, Side], rounds: int) -> dict[str, Result]:
    """For each figure of a row, by its title: what it is on each side."""
    row = ROWS[row_name]
    figures: dict[str, list[tuple[float, ...]]] = {}
    for name in row.sides:
        if not processes[name].ask(row_name):
            figures[name] = []  # else it is not installed
    for number in range(rounds):
        order = list(figures)
        for name in order if number % 2 else reversed(order):
            figures[name].append(processes[name].ask(True))
    for name in figures:
        processes[name].pipe.send(False)
    results = {}
    for index, (title, _, _) in enumerate(row.figures):
        of_side = {name: median(each[index] for each in got) for name, got in figures.items()}
        compared = of_side.get("pymilvus", of_side.get("limit", 1.0))
        results[title] = {**of_side, "ratio": of_side["engine"] / compared}
    return results


def worse(results: dict[str, Result], record: dict[str, Result]) -> list[str]:
    """Which ratios are more than twice as bad as on record."""
    return [
        f"{title}: {got['ratio']:.2f} instead of {record[title]['ratio']:.2f}"
        for title, got in results.items()
        if title in record and got["ratio"] > FACTOR * record[title]["ratio"]
    ]


def shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(title: str, unit: str, budget: str, got: Result) -> list[str]:
    """A line of the table."""
    met = ""
    if budget:
        figure = got["ratio"] if budget.endswith("x") else got["engine"]
        met = "yes" if figure <= float(budget.rstrip(" x")) else "no"
    return [
        title,
        f"{shown(got['engine'])} {unit}",
        shown(got.get("pymilvus")),
        shown(got.get("limit")),
        "" if set(got) == {"engine", "ratio"} else f"{got['ratio']:.2f}",
        budget,
        met,
        ", ".join(f"{name} {shown(got[name])}" for name in OTHERS if name in got),
    ]


def table(lines: list[list[str]]) -> str:
    """A table in Markdown, as docs/performance.md has it."""
    head = ["what", "engine", "pymilvus", "limit", "ratio", "budget", "met", "others"]
    every = [head, *lines]
    widths = [max(len(each[index]) for each in every) for index in range(len(head))]
    rule = ["-" * width for width in widths]
    padded = ([cell.ljust(width) for cell, width in zip(each, widths, strict=True)]
              for each in (head, rule, *lines))  # fmt: skip
    return "\n".join(f"| {' | '.join(each)} |" for each in padded)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything, then judge")
    parser.add_argument("--only", metavar="NAME", action="append", choices=sorted(ROWS))
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    wanted = options.only or [name for name in ROWS if not (options.quick and name in LONG)]
    record: dict[str, Result] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    results: dict[str, Result] = {}
    lines: list[list[str]] = []
    failed: list[str] = []
    with sides(sorted({side for name in wanted for side in ROWS[name].sides}), options.quick) as on:
        for name in wanted:
            row, began = ROWS[name], time.monotonic()
            rounds = row.rounds if not options.quick else 3 if row.rounds > 3 else 1
            for attempt in (rounds, 3 * rounds):  # what looks worse is measured again, for longer
                got = measure(name, on, attempt)
                bad = worse(got, record) if options.quick and row.judged else []
                if not bad:
                    break
            print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
            failed += bad
            results.update(got)
            lines += [line(*figure, got[figure[0]]) for figure in row.figures]
    print(table(lines))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    for each in failed:
        print(f"more than {FACTOR:.0f} times worse than on record: {each}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
