"""``milvus-lifecycle audit``: the options of verify, stats, tail and report, and what they print.

Reading logs needs the extra ``audit``; it is imported when a log is read, not for ``--help``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, cast

from ..replay.findings import NOTES, Kind, Problem, Problems, clean
from ..table import Trigger
from .console import Paint, add_colour_option, progress_bar

if TYPE_CHECKING:
    from ..replay.files import Sources
    from ..replay.verify import Verdict

#: Findings, outages and lines that are shown unless asked otherwise, and stays of a timeline.
FINDINGS, LONGEST, LINES, STAYS = 1000, 20, 20, 60_000
_LOGS = "a file, a glob, .gz, or - (stdin)"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``audit``."""
    children = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for name, (summary, configure_one, execute_one) in _COMMANDS.items():
        child = children.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:]
        )
        configure_one(child)
        add_colour_option(child)
        child.set_defaults(audit_execute=execute_one)


def execute(options: argparse.Namespace) -> int:
    """Run the subcommand that was chosen; returns the exit code."""
    chosen = cast("Callable[[argparse.Namespace], int]", options.audit_execute)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Windows redirects in a code page without arrows: better a question mark than an end.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = chosen(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has seen enough (| head). Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


# -- verify --------------------------------------------------------------------------------------


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", metavar="LOG", help=_LOGS)
    parser.add_argument("--json", action="store_true", help="the verdict as one JSON object")
    parser.add_argument(
        "--jobs",
        type=_natural,
        default=1,
        metavar="N",
        help="processes to read with; 0: one for each core (default: 1)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=FINDINGS,
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
    parser.epilog = (
        "Exit code: 0 legal, 1 violations, 2 no verdict: a file could not be opened, or there is "
        "no record in any."
    )


def _verify(options: argparse.Namespace) -> int:
    from ..replay.files import find_sources
    from ..replay.verify import verify_logs

    size = find_sources(options.logs).size if sys.stderr.isatty() else 0
    with progress_bar(size, what="verifying") as on_progress:
        verdict = verify_logs(
            options.logs,
            jobs=options.jobs or os.cpu_count() or 1,
            limit=max(0, options.limit),
            ignore=[Kind(name) for name in options.ignore],
            on_progress=on_progress,
        )
    if options.json:
        print(json.dumps(verdict.as_dict(), indent=2))
    else:
        _print_verdict(verdict, options)
    return verdict.exit_code


def _print_verdict(verdict: Verdict, options: argparse.Namespace) -> None:
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
    return f"{problem.place}: {kind}: {problem.text}{paint(clean(whose, len(whose)), 'dim')}"


def _summary(verdict: Verdict, paint: Paint) -> str:
    from ..diagram.drawing import plural

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


# -- stats ---------------------------------------------------------------------------------------


def _configure_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", metavar="LOG", help=_LOGS)
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.add_argument(
        "--longest",
        type=int,
        default=LONGEST,
        metavar="N",
        help="how many outages and flapping connections to list (default: %(default)s)",
    )
    parser.epilog = (
        "Exit code: 0, or 2 if a file could not be opened, or if there are lines and none of them "
        "is a record."
    )


def _stats(options: argparse.Namespace) -> int:
    from ..replay.files import find_sources, read_records
    from ..replay.stats import fold_stats
    from ..report.tables import print_tables, stats_tables

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
    _complain(problems, options.color)
    return 2 if problems.unreadable else 0


def explain_nothing(sources: Sources, problems: Problems) -> str:
    """Why there is no record: a line for each file that could not be opened, or one for all."""
    from ..replay.files import name_files

    unread = [one for one in problems.kept if one.kind is Kind.UNREADABLE]
    if unread:
        return "\n".join(describe(one, Paint(False)) for one in unread)
    why = "; audit verify says why" if problems.counts else ": empty"
    return f"{name_files(sources.paths)}: no audit record in it{why}"


def _complain(problems: Problems, colour: str) -> None:
    """Say on standard error what could not be read: figures are made of the rest."""
    paint = Paint.choose(colour, sys.stderr)
    for problem in problems.kept:
        print(describe(problem, paint), file=sys.stderr)
    hidden = problems.counts.total() - len(problems.kept)
    if hidden:
        print(f"... and {hidden:,} more: see audit verify", file=sys.stderr)


# -- tail ----------------------------------------------------------------------------------------


def _configure_tail(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG", help="a file, .gz, or - (stdin)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as the log grows")
    parser.add_argument(
        "-n",
        "--lines",
        type=_lines,
        metavar="N",
        help=f"how many lines, or 'all' (default: {LINES}; all with --since)",
    )
    parser.add_argument(
        "--address", action="append", default=[], metavar="TEXT", help="substring or glob"
    )
    parser.add_argument(
        "--connection", action="append", default=[], metavar="ID", help="an id or its beginning"
    )
    parser.add_argument(
        "--trigger",
        action="append",
        default=[],
        metavar="NAME",
        choices=[str(trigger) for trigger in Trigger],
        help="e.g. give_up",
    )
    parser.add_argument(
        "--since",
        type=parse_since,
        metavar="WHEN",
        help="an age (15m, 2h) or a time (ISO 8601)",
    )
    parser.add_argument("--json", action="store_true", help="print the lines as they stand")


def _lines(text: str) -> int:
    """A number of lines; -1 for all."""
    return -1 if text == "all" else _natural(text)


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """A moment: ISO 8601 (without a zone: UTC), or an age such as 90s, 15m, 2h, 1d.

    Raises ArgumentTypeError that says what is accepted.
    """
    if text[:-1].replace(".", "", 1).isdigit() and text[-1:] in _UNITS:
        age = timedelta(seconds=float(text[:-1]) * _UNITS[text[-1]])
        return (now or datetime.now(timezone.utc)) - age
    try:
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither an age (90s, 15m, 2h, 1d) nor a time (2026-03-01T09:00:00Z)"
        ) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)


def _tail(options: argparse.Namespace) -> int:
    from .tail import show_tail

    count = options.lines
    if count is None:
        count = -1 if options.since else LINES
    return show_tail(options, None if count < 0 else count)


# -- report --------------------------------------------------------------------------------------


def _configure_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("logs", nargs="+", metavar="LOG", help=_LOGS)
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the page to write")
    parser.add_argument("--title", default="What the connections did", help="of the page")
    parser.add_argument(
        "--stays",
        type=int,
        default=STAYS,
        metavar="N",
        help="how much the timeline shows at most; a larger log is thinned, and the page says "
        "how (default: %(default)s)",
    )
    parser.epilog = (
        "Exit code: 0, or 2 if a file could not be opened or the page not written. Without a "
        "single record there is no page."
    )


def _report(options: argparse.Namespace) -> int:
    from ..replay.files import find_sources
    from ..report.page import render_page
    from ..report.report import fold_report

    sources = find_sources(options.logs)
    with progress_bar(sources.size, what="reading") as on_progress:
        report = fold_report(sources, stays=max(100, options.stays), on_progress=on_progress)
    if not report.stats.records:
        print(explain_nothing(sources, report.problems), file=sys.stderr)
        return 2
    unreadable = Problems(0)
    for problem in report.problems.kept:
        if problem.kind is Kind.UNREADABLE:
            unreadable.add(problem)
    _complain(unreadable, options.color)
    page = render_page(report, options.title)
    try:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        print(f"{options.output}: cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    size = os.path.getsize(options.output)
    print(f"{options.output}: {report.stats.records:,} records, {size / 1e6:.1f} MB")
    return 2 if unreadable.unreadable else 0


_COMMANDS: dict[
    str,
    tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]],
] = {
    "verify": (
        "replay logs through the table: is what they say legal?",
        _configure_verify,
        _verify,
    ),
    "stats": (
        "figures per endpoint: recoveries, time in each state, errors, outages",
        _configure_stats,
        _stats,
    ),
    "tail": (
        "show the last transitions, one line each, and follow the log",
        _configure_tail,
        _tail,
    ),
    "report": (
        "write one HTML page: timeline, outages, diagram, figures",
        _configure_report,
        _report,
    ),
}
