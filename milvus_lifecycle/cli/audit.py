"""``milvus-lifecycle audit``: the options of verify, stats, tail and report, and what they print.

Reading logs needs the extra ``audit``; it is imported when a log is read, not for ``--help``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from math import inf
from typing import TYPE_CHECKING, TextIO

from ..replay.findings import LIMIT, NOTES, Kind, Problem, Problems, clean
from ..table import Trigger
from . import PROGRAM, Help

if TYPE_CHECKING:
    from ..replay.files import Sources
    from ..replay.verify import Verdict

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

#: Lines that ``tail`` shows unless asked otherwise.
LINES = 20
#: Seconds after which a page that is served is asked for anew.
REFRESH = 10
#: Bytes; less is read before progress could be looked at.
WORTH_IT = 50_000_000
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_CODES = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33, "blue": 34, "alarm": "1;31"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``audit``."""
    children = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for add in (_add_verify, _add_stats, _add_tail, _add_report):
        add(children)


def execute(options: argparse.Namespace) -> int:
    """Run the subcommand that was chosen; returns the exit code."""
    code: int = options.audit_execute(options)
    return code


def _add(
    children: Commands, name: str, summary: str, execute: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    text = summary[0].upper() + summary[1:]
    parser = children.add_parser(name, help=summary, description=text, formatter_class=Help)
    parser.set_defaults(audit_execute=execute)
    if name == "tail":
        parser.add_argument("log", metavar="LOG", help="a file, .gz, or - (stdin)")
    else:
        logs = "a file, a glob, .gz, or - (stdin)"
        parser.add_argument("logs", nargs="+", metavar="LOG", help=logs)
    return parser


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


# -- at a terminal -------------------------------------------------------------------------------


class Paint:
    """``paint(text, style)`` wraps ``text`` in escape codes, or leaves it as it is."""

    def __init__(self, on: bool) -> None:
        self.on = on

    @classmethod
    def of(cls, stream: TextIO) -> Paint:
        """On at a terminal, unless NO_COLOR is set (https://no-color.org)."""
        return cls(stream.isatty() and not os.environ.get("NO_COLOR"))

    def __call__(self, text: str, style: str) -> str:
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.on and text else text


@contextmanager
def progress(size: int, what: str) -> Iterator[Callable[[int], None] | None]:
    """Yield what to tell how many bytes were read; None where nobody would look at it."""
    if size < WORTH_IT or not sys.stderr.isatty():
        yield None
        return
    done = 0

    def advance(amount: int) -> None:
        nonlocal done
        done += amount
        print(f"\r{what}: {min(1.0, done / size):4.0%} ", end="", file=sys.stderr, flush=True)

    yield advance
    print("\r\x1b[K", end="", file=sys.stderr)


def describe(problem: Problem, paint: Paint) -> str:
    """One finding on one line: place, kind, what, and whose."""
    style = "yellow" if problem.kind in NOTES else "red"
    ids = " ".join(filter(None, (problem.connection_id, problem.address)))
    whose = paint(f"  [{clean(ids, len(ids))}]", "dim") if ids else ""
    return f"{problem.place}: {paint(str(problem.kind), style)}: {problem.text}{whose}"


def explain_nothing(sources: Sources, problems: Problems) -> str:
    """Why there is no record: a line for each file that could not be opened, or one for all."""
    from ..replay.files import name_files

    unread = [one for one in problems.kept if one.kind is Kind.UNREADABLE]
    if unread:
        return "\n".join(describe(one, Paint(False)) for one in unread)
    why = "; audit verify says why" if problems.counts else ": empty"
    return f"{name_files(sources.paths)}: no audit record in it{why}"


def _complain(problems: Iterable[Problem]) -> None:
    paint = Paint.of(sys.stderr)
    for problem in problems:
        print(describe(problem, paint), file=sys.stderr)


# -- verify --------------------------------------------------------------------------------------


def _add_verify(children: Commands) -> None:
    summary = "replay logs through the table: is what they say legal?"
    parser = _add(children, "verify", summary, _verify)
    add = parser.add_argument
    add("--json", action="store_true", help="the verdict as one JSON object")
    jobs = "processes to read with; 0: one for each core (default: 1)"
    add("--jobs", type=_natural, default=1, metavar="N", help=jobs)
    limit = "show at most N violations and N notes; all are counted (default: %(default)s)"
    add("--limit", type=_natural, default=LIMIT, metavar="N", help=limit)
    ignore = (
        "drop findings of this kind, e.g. foreign-line where the application logs to the same "
        "file (repeatable)"
    )
    kinds = [str(kind) for kind in Kind if kind is not Kind.UNREADABLE]
    add("--ignore", action="append", default=[], metavar="KIND", choices=kinds, help=ignore)
    add("-q", "--quiet", action="store_true", help="print the last line only")
    parser.epilog = f"""examples:
  {PROGRAM} audit verify audit.jsonl
  {PROGRAM} audit verify --jobs 0 'logs/*.jsonl.gz'
  {PROGRAM} audit verify --ignore foreign-line --quiet app.log

Exit code: 0 legal, 1 violations, 2 no verdict: a file could not be opened, or there is no
record in any."""


def _verify(options: argparse.Namespace) -> int:
    from ..replay.files import find_sources
    from ..replay.verify import verify_logs

    size = find_sources(options.logs, Problems(0)).size if sys.stderr.isatty() else 0
    with progress(size, "verifying") as on_progress:
        verdict = verify_logs(
            options.logs,
            jobs=options.jobs or os.cpu_count() or 1,
            limit=options.limit,
            ignore=[Kind(name) for name in options.ignore],
            on_progress=on_progress,
        )
    if options.json:
        print(json.dumps(verdict.as_dict(), indent=2))
    else:
        _print_verdict(verdict, options.quiet)
    return verdict.exit_code


def _print_verdict(verdict: Verdict, quiet: bool) -> None:
    paint, problems = Paint.of(sys.stdout), verdict.problems
    _complain(one for one in problems.kept if one.kind is Kind.UNREADABLE)
    if not quiet:
        for problem in problems.kept:
            if problem.kind is not Kind.UNREADABLE:
                print(describe(problem, paint))
        if problems.hidden:
            print(f"... and {problems.hidden:,} more (see --limit)")
    if verdict.records or not problems.unreadable:
        print(_summary(verdict, paint))


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


def _add_stats(children: Commands) -> None:
    summary = "figures per endpoint: recoveries, time in each state, errors, outages"
    parser = _add(children, "stats", summary, _stats)
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    parser.epilog = f"""examples:
  {PROGRAM} audit stats audit.jsonl
  {PROGRAM} audit stats --json audit.jsonl audit.jsonl.1

Exit code: 0, or 2 if a file could not be opened, or if there are lines and none of them is
a record."""


def _stats(options: argparse.Namespace) -> int:
    from ..diagram.drawing import show_span
    from ..replay.files import find_sources, read_records
    from ..replay.stats import fold_stats
    from ..report.tables import print_tables, stats_tables

    problems = Problems(limit=10)
    sources = find_sources(options.logs, problems)
    with progress(sources.size, "reading") as on_progress:
        stats = fold_stats(read_records(sources, problems, on_progress))
    if not stats.records and problems.counts:
        print(explain_nothing(sources, problems), file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(stats.as_dict(), indent=2))
    elif not stats.records:
        print("0 records")
    else:
        wide = not sys.stdout.isatty()
        print_tables(stats_tables(stats), None, inf if wide else shutil.get_terminal_size().columns)
        lost = f", {stats.lost_records:,} lost by the sink" if stats.lost_records else ""
        print(f"{stats.records:,} records, {show_span(stats)}{lost}")
    _complain(problems.kept)
    if problems.hidden:
        print(f"... and {problems.hidden:,} more: see audit verify", file=sys.stderr)
    return 2 if problems.unreadable else 0


# -- tail ----------------------------------------------------------------------------------------


def _add_tail(children: Commands) -> None:
    summary = "show the last transitions, one line each, and follow the log"
    parser = _add(children, "tail", summary, _tail)
    parser.epilog = f"""examples:
  {PROGRAM} audit tail -f audit.jsonl
  {PROGRAM} audit tail --since 2h --trigger give_up audit.jsonl

Exit code: 0, or 2 if the file could not be opened or has no record in it; 130 for the
Ctrl-C that ends -f."""
    add = parser.add_argument
    add("-f", "--follow", action="store_true", help="go on as the log grows")
    lines = f"how many lines, or 'all' (default: {LINES}; all with --since)"
    add("-n", "--lines", type=_lines, metavar="N", help=lines)
    add("--address", action="append", default=[], metavar="TEXT", help="substring or glob")
    add("--connection", action="append", default=[], metavar="ID", help="an id or its beginning")
    known = [str(trigger) for trigger in Trigger]
    example = "e.g. give_up"
    add("--trigger", action="append", default=[], metavar="NAME", choices=known, help=example)
    since = "an age (15m, 2h) or a time (ISO 8601)"
    add("--since", type=parse_since, metavar="WHEN", help=since)
    add("--json", action="store_true", help="print the lines as they stand")


def _lines(text: str) -> int:
    return sys.maxsize if text == "all" else _natural(text)


def parse_since(text: str, now: datetime | None = None) -> datetime:
    """A moment: ISO 8601 (without a zone: UTC), or an age such as 90s, 15m, 2h, 1d."""
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

    if options.lines is None:
        options.lines = sys.maxsize if options.since else LINES
    return show_tail(options, Paint.of(sys.stdout))


# -- report --------------------------------------------------------------------------------------


def _add_report(children: Commands) -> None:
    summary = "write one HTML page: timeline, outages, diagram, figures"
    parser = _add(children, "report", summary, _report)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("-o", "--output", metavar="FILE", help="the page to write")
    serve = (
        f"show it at http://127.0.0.1:PORT/ instead (default: a free one), anew every {REFRESH} s, "
        "until Ctrl-C"
    )
    where.add_argument("--serve", nargs="?", type=_natural, const=0, metavar="PORT", help=serve)
    parser.epilog = f"""examples:
  {PROGRAM} audit report audit.jsonl -o report.html
  {PROGRAM} audit report audit.jsonl --serve

Exit code: 0, or 2 if a file could not be opened or the page not written. Without a single
record there is no page."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector: what a report reads, it needs, and looking for cycles in that takes a
    quarter of its time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@_uncollected()
def _page(logs: Sequence[str]) -> tuple[bytes, int, Problems]:
    """The page, of how many records, and what is wrong with them; empty if there is none."""
    from ..replay.files import find_sources
    from ..report.page import fold_report, render_page

    problems = Problems(limit=200)
    sources = find_sources(logs, problems)
    with progress(sources.size, "reading") as on_progress:
        report = fold_report(sources, problems, on_progress)
    if not report.stats.records:
        print(explain_nothing(sources, problems), file=sys.stderr)
        return b"", 0, problems
    _complain(one for one in problems.kept if one.kind is Kind.UNREADABLE)
    return render_page(report).encode(), report.stats.records, problems


def _report(options: argparse.Namespace) -> int:
    if options.serve is not None:
        return _serve(options.logs, options.serve)
    return write_report(options.logs, options.output)


def write_report(logs: Sequence[str], output: str) -> int:
    """Write the page about logs, and say so; returns the exit code of ``audit report``."""
    page, records, problems = _page(logs)
    if not page:
        return 2
    try:
        with open(output, "wb") as file:
            file.write(page)
    except OSError as error:
        print(f"{output}: cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{output}: {records:,} records, {len(page) / 1e6:.1f} MB")
    return 2 if problems.unreadable else 0


def _serve(logs: list[str], port: int) -> int:
    """Show the page of a log that grows, until Ctrl-C; nobody but this machine's users sees it."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A stranger's page, whose name has come to mean this machine, is not to read it. The
            # port may be another: that of a tunnel.
            host = self.headers.get("Host", "").rpartition(":")
            if (host[0] or host[2]) not in ("127.0.0.1", "localhost"):
                self.send_error(403, "Ask for 127.0.0.1 or localhost")
                return
            page = _page(logs)[0] or b"<!doctype html><title>No record yet</title>No record yet."
            with suppress(ConnectionError):  # it may be gone: the page took a while
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(page)))
                self.send_header("Refresh", str(REFRESH))
                self.end_headers()
                self.wfile.write(page)

        def log_message(self, *args: object) -> None:
            """Not a line for each look."""

    try:
        # With threads: a browser opens connections that it does not use yet.
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        print(f"--serve {port}: cannot listen at 127.0.0.1:{port}: {error}", file=sys.stderr)
        return 2
    with server:
        print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0
