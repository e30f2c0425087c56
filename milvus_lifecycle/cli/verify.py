"""``milvus-lifecycle audit verify``: its options, and the verdict in words or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys

from ..replay.problems import NOTES, Kind, Problem
from ..replay.sources import find_sources
from ..replay.verify import LIMIT, Verdict, verify_logs
from ..report.tables import plural
from .colour import Paint, add_colour_option
from .progress import progress_bar

SUMMARY = "replay logs through the table: is what they say legal?"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``audit verify``."""
    parser.add_argument("logs", nargs="+", metavar="LOG", help="a file, a glob, .gz, or - (stdin)")
    parser.add_argument("--json", action="store_true", help="the verdict as one JSON object")
    parser.add_argument(
        "--jobs",
        type=_jobs,
        default=1,
        metavar="N",
        help="processes to read with; 0: one for each core (default: 1)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=LIMIT,
        metavar="N",
        help="show at most N violations and N notes; all are counted (default: %(default)s)",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KIND",
        choices=[str(kind) for kind in Kind if kind is not Kind.UNREADABLE],
        help="drop findings of this kind, e.g. foreign-line where the application logs to the "
        "same file (repeatable)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print the last line only")
    add_colour_option(parser)
    parser.epilog = (
        "Exit code: 0 legal, 1 violations, 2 no verdict: a file could not be opened, or there is "
        "no record in any."
    )


def _jobs(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number or os.cpu_count() or 1


def execute(options: argparse.Namespace) -> int:
    """Verify; returns the exit code."""
    size = find_sources(options.logs).size if sys.stderr.isatty() else 0
    with progress_bar(size, what="verifying") as on_progress:
        verdict = verify_logs(
            options.logs,
            jobs=options.jobs,
            limit=max(0, options.limit),
            ignore=[Kind(name) for name in options.ignore],
            on_progress=on_progress,
        )
    if options.json:
        print(json.dumps(verdict.as_dict(), indent=2))
    else:
        _print(verdict, options)
    return verdict.exit_code


def _print(verdict: Verdict, options: argparse.Namespace) -> None:
    paint = Paint.choose(options.color, sys.stdout)
    for problem in verdict.problems.kept:
        if problem.kind is Kind.UNREADABLE:
            print(describe(problem, Paint.choose(options.color, sys.stderr)), file=sys.stderr)
        elif not options.quiet:
            print(describe(problem, paint))
    hidden = verdict.problems.counts.total() - len(verdict.problems.kept)
    if hidden and not options.quiet:
        print(f"... and {hidden:,} more (see --limit)")
    if verdict.records or not verdict.problems.unreadable:
        print(_summary(verdict, paint))


def describe(problem: Problem, paint: Paint) -> str:
    """One finding on one line: place, kind, what, and whose."""
    style = "yellow" if problem.is_note else "red"
    whose = ""
    if problem.connection_id:
        whose = f"  [{' '.join(filter(None, (problem.connection_id, problem.address)))}]"
    kind = paint(str(problem.kind), style)
    return f"{problem.place}: {kind}: {problem.text}{paint(_printable(whose), 'dim')}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _summary(verdict: Verdict, paint: Paint) -> str:
    problems = verdict.problems
    files = plural(len(verdict.files), "file")
    read = (
        f"{plural(verdict.records, 'record')} of {plural(verdict.connections, 'connection')} in "
        f"{files}, {verdict.seconds:.1f} s"
    )
    counts = [(kind, f"{count:,} {kind}") for kind, count in problems.counts.most_common()]
    wrong = [said for kind, said in counts if kind not in NOTES and kind is not Kind.UNREADABLE]
    notes = [said for kind, said in counts if kind in NOTES]
    told = f"; noted: {', '.join(notes)}" if notes else ""
    unread = f"{plural(problems.unreadable, 'file')} could not be opened"
    if wrong:
        told += f"; {unread}" if problems.unreadable else ""
        return f"{paint('NOT LEGAL', 'alarm')}: {', '.join(wrong)} in {read}{told}"
    if not verdict.records:
        return f"{paint('nothing to verify', 'yellow')}: no record in {files}{told}"
    if problems.unreadable:
        return f"{paint('no verdict', 'yellow')}: {unread}; no violation in {read}{told}"
    return f"{paint('legal', 'green')}: {read}{told}"
