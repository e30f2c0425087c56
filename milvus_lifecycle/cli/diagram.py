"""``milvus-lifecycle diagram``: the options, the logs' figures, the output file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ..diagram import formats
from ..diagram.drawing import Drawing, draw, plural
from ..replay.findings import Problems
from . import PROGRAM, Refused
from .audit import explain_nothing

_WRITERS: dict[str, Callable[[Drawing], str | bytes]] = {
    "mermaid": formats.to_mermaid,
    "dot": formats.to_dot,
    "svg": formats.render_svg,
    "png": formats.render_png,
}
_FORMATS = {".md": "mermaid", ".mmd": "mermaid", ".gv": "dot"} | {f".{it}": it for it in _WRITERS}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's options."""
    parser.epilog = f"""examples:
  {PROGRAM} diagram -o lifecycle.svg
  {PROGRAM} diagram --audit audit.jsonl -o outage.svg
  {PROGRAM} diagram --check diagrams

SVG and PNG need the extra milvus_lifecycle[diagram]. Exit codes: 0 done, 1 --check found
drift, 2 wrong usage, or a file or package is missing."""
    add = parser.add_argument
    add("--format", choices=_WRITERS, help="default: by the suffix of -o FILE, else mermaid")
    logs = "annotate with what these audit logs tell: files, globs, .gz, or - (stdin)"
    add("--audit", metavar="LOG", nargs="+", action="extend", help=logs)
    add("--connection", metavar="ID", help="highlight the path of this connection of the logs")
    add("-o", "--output", metavar="FILE", help="write here (default: to stdout)")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--check", metavar="DIR", type=Path, help="say whether the drawings in DIR show the table")
    add("--write", metavar="DIR", type=Path, help="draw the table anew into DIR (Mermaid, SVG)")


def execute(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code. Raises Refused."""
    try:
        if options.check is not None or options.write is not None:
            return _keep(options)
        _draw(options)
    except formats.RendererMissing as error:
        raise Refused(str(error)) from error
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise Refused(f"{place}{error.strerror or error}") from error
    return 0


def _keep(options: argparse.Namespace) -> int:
    """``--check`` and ``--write``: the drawings that a repository keeps."""
    if options.audit or options.connection or options.output or options.format:
        raise Refused("--check and --write take no other option")
    if options.write is not None:
        for path in formats.write_diagrams(options.write):
            print(path)
        return 0
    if not options.check.is_dir():
        raise Refused(f"{options.check} is no directory")
    drift = formats.find_drift(options.check)
    print("\n".join(drift or [f"{options.check}: the drawings show the table"]))
    return int(bool(drift))


def _draw(options: argparse.Namespace) -> None:
    suffix = ".mermaid" if options.output is None else Path(options.output).suffix.lower()
    form = options.format or _FORMATS.get(suffix)
    if form is None:
        known = " ".join(_FORMATS)
        raise Refused(f"{options.output}: give --format, its suffix is none of {known}")
    if form == "png" and options.output is None and sys.stdout.isatty():
        raise Refused("a PNG is not for a terminal: -o FILE")
    drawn = _WRITERS[form](_drawing(options))
    content = drawn.encode() if isinstance(drawn, str) else drawn
    if options.output is None:
        sys.stdout.buffer.write(content)
    else:
        Path(options.output).write_bytes(content)


def _drawing(options: argparse.Namespace) -> Drawing:
    if options.audit is None:
        if options.connection is not None:
            raise Refused("--connection needs the log that the connection is in: --audit LOG")
        return draw()
    from ..replay.files import find_sources, read_records
    from ..replay.stats import UnknownConnection, fold_connection, fold_stats

    problems = Problems(0)
    sources = find_sources(options.audit, problems)
    if problems.kept:  # half a picture is none
        first = problems.kept[0]
        raise Refused(f"{first.place}: {first.message}")
    records = read_records(sources, problems)
    try:
        one = options.connection
        stats = fold_stats(records) if one is None else fold_connection(records, one)
    except UnknownConnection as error:
        raise Refused(str(error)) from None
    lost = problems.counts.total()
    if lost and not stats.records:
        raise Refused(explain_nothing(sources, problems))
    if lost:
        found = f"{plural(lost, 'finding')}; {PROGRAM} audit verify has them"
        print(f"{PROGRAM} diagram: what is no sound record was left out: {found}", file=sys.stderr)
    return draw(stats=stats)
