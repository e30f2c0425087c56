"""``milvus-lifecycle audit stats``: its options, and the figures as tables or JSON."""

from __future__ import annotations

import argparse
import json
import sys

from ..replay.problems import Kind, Problems
from ..replay.reading import read_records
from ..replay.sources import Sources, find_sources, name_files
from ..replay.stats import LONGEST, fold_stats
from ..report.stats_tables import stats_tables
from ..report.tables import print_tables
from .colour import Paint, add_colour_option
from .progress import progress_bar
from .verify import describe

SUMMARY = "figures per endpoint: recoveries, time in each state, errors, outages"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``audit stats``."""
    parser.add_argument("logs", nargs="+", metavar="LOG", help="a file, a glob, .gz, or - (stdin)")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument(
        "--longest",
        type=int,
        default=LONGEST,
        metavar="N",
        help="how many outages and flapping connections to list (default: %(default)s)",
    )
    add_colour_option(parser)
    parser.epilog = (
        "Exit code: 0, or 2 if a file could not be opened, or if there are lines and none of them "
        "is a record."
    )


def execute(options: argparse.Namespace) -> int:
    """Print the figures; returns the exit code."""
    sources = find_sources(options.logs)
    problems = Problems(limit=10)
    with progress_bar(sources.size, what="reading") as on_progress:
        stats = fold_stats(read_records(sources, problems, on_progress), max(1, options.longest))
    if not stats.records and problems.counts:
        print(explain_nothing(sources, problems), file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(stats.as_dict(), indent=2))
    elif not stats.records:
        print("0 records")
    else:
        print_tables(stats_tables(stats))
        lost = f", {stats.lost_records:,} lost by the sink" if stats.lost_records else ""
        span = f", {stats.since:%Y-%m-%d %H:%M:%S}" if stats.since else ""
        span += f" to {stats.until:%Y-%m-%d %H:%M:%S} UTC" if stats.until else ""
        print(f"{stats.records:,} records{span}{lost}")
    complain(problems, options.color)
    return 2 if problems.unreadable else 0


def explain_nothing(sources: Sources, problems: Problems) -> str:
    """Why there is no record: a line for each file that could not be opened, or one for all."""
    unread = [one for one in problems.kept if one.kind is Kind.UNREADABLE]
    if unread:
        return "\n".join(describe(one, Paint(False)) for one in unread)
    why = "; audit verify says why" if problems.counts else ": empty"
    return f"{name_files(sources.paths)}: no audit record in it{why}"


def complain(problems: Problems, colour: str) -> None:
    """Say on standard error what could not be read: figures are made of the rest."""
    paint = Paint.choose(colour, sys.stderr)
    for problem in problems.kept:
        print(describe(problem, paint), file=sys.stderr)
    hidden = problems.counts.total() - len(problems.kept)
    if hidden:
        print(f"... and {hidden:,} more: see audit verify", file=sys.stderr)
