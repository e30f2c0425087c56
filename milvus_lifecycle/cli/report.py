"""``milvus-lifecycle audit report``: its options, and writing the page."""

from __future__ import annotations

import argparse
import os
import sys

from ..replay.problems import Kind, Problems
from ..replay.sources import find_sources
from ..report.timeline import STAYS
from .colour import add_colour_option
from .progress import progress_bar
from .stats import complain, explain_nothing

EXTRA = "milvus_lifecycle[report]"
SUMMARY = "write one HTML page: timeline, outages, diagram, figures"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``audit report``."""
    parser.add_argument("logs", nargs="+", metavar="LOG", help="a file, a glob, .gz, or - (stdin)")
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
    add_colour_option(parser)
    parser.epilog = (
        "Exit code: 0, or 2 if a file could not be opened or the page not written. Without a "
        "single record there is no page."
    )


def execute(options: argparse.Namespace) -> int:
    """Write the page; returns the exit code."""
    # Imported late: Bokeh and Graphviz are extras, and take a while.
    try:
        from ..report.page import render_page
    except ImportError as error:
        print(f"the report needs {error.name}: pip install '{EXTRA}'", file=sys.stderr)
        return 2
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
    complain(unreadable, options.color)
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
