"""``milvus-lifecycle diagram``: the options, the logs' figures, the output file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..diagram.drawing import Drawing, draw, plural
from ..diagram.drift import find_drift, write_diagrams
from ..diagram.formats import (
    RendererMissing,
    finds_fonts,
    render_png,
    render_svg,
    to_dot,
    to_mermaid,
)
from ..replay.findings import Problems
from .audit import explain_nothing

FORMATS = ("mermaid", "dot", "svg", "png")
_SUFFIXES = {".mmd": "mermaid", ".md": "mermaid", ".dot": "dot", ".gv": "dot"}
_SUFFIXES |= {".svg": "svg", ".png": "png"}
DRIFTED, UNUSABLE = 1, 2


class _Refused(Exception):
    """The command cannot run; the message says why."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's options."""
    parser.epilog = (
        "SVG and PNG need the extra milvus_lifecycle[diagram]. Exit codes: 0 done, 1 --check "
        "found drift, 2 wrong usage, or a file or package is missing."
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="default: by the suffix of -o FILE, else mermaid"
    )
    parser.add_argument(
        "--audit",
        metavar="LOG",
        nargs="+",
        action="extend",
        help="annotate with what these audit logs tell: files, globs, .gz, or - (stdin)",
    )
    parser.add_argument(
        "--connection", metavar="ID", help="highlight the path of this connection of the logs"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write here (default: to stdout)")
    folder = parser.add_mutually_exclusive_group()
    folder.add_argument(
        "--check", metavar="DIR", type=Path, help="say whether the drawings in DIR show the table"
    )
    folder.add_argument(
        "--write", metavar="DIR", type=Path, help="draw the table anew into DIR (Mermaid, SVG)"
    )


def execute(options: argparse.Namespace) -> int:
    """Run the subcommand; returns the exit code."""
    try:
        if options.check is not None or options.write is not None:
            return _keep(options)
        form = _format(options)
        _put(options.output, _picture(form, _drawing(options)))
    except (_Refused, RendererMissing) as error:
        return _complain(str(error))
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _complain(f"{place}{error.strerror or error}")
    return 0


def _complain(message: str) -> int:
    print(f"milvus-lifecycle diagram: {message}", file=sys.stderr)
    return UNUSABLE


def _keep(options: argparse.Namespace) -> int:
    """``--check`` and ``--write``: the drawings that a repository keeps."""
    if options.audit or options.connection or options.output or options.format:
        raise _Refused("--check and --write take no other option")
    if options.write is not None:
        for path in write_diagrams(options.write):
            print(path)
        return 0
    if not options.check.is_dir():
        raise _Refused(f"{options.check} is no directory")
    drift = find_drift(options.check)
    print("\n".join(drift or [f"{options.check}: the drawings show the table"]))
    return DRIFTED if drift else 0


def _format(options: argparse.Namespace) -> str:
    if options.format is not None:
        return str(options.format)
    if options.output is None or options.output == "-":
        return "mermaid"
    suffix = Path(options.output).suffix.lower()
    if suffix not in _SUFFIXES:
        raise _Refused(
            f"{options.output}: its suffix names no format; say --format {'|'.join(FORMATS)}"
        )
    return _SUFFIXES[suffix]


def _picture(form: str, drawing: Drawing) -> bytes:
    if form == "png":
        if not finds_fonts():
            print(
                "milvus-lifecycle diagram: no font was found on this machine, the PNG may show "
                "boxes for letters; install one (Debian: fonts-dejavu-core) or ask for svg",
                file=sys.stderr,
            )
        return render_png(drawing)
    writers = {"mermaid": to_mermaid, "dot": to_dot, "svg": render_svg}
    return writers[form](drawing).encode()


def _put(output: str | None, data: bytes) -> None:
    if output is not None and output != "-":
        Path(output).write_bytes(data)
        return
    if data.startswith(b"\x89PNG") and sys.stdout.isatty():
        raise _Refused("a PNG is nothing for a terminal; say -o FILE, or redirect the output")
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _drawing(options: argparse.Namespace) -> Drawing:
    if options.audit is None:
        if options.connection is not None:
            raise _Refused("--connection needs the log that the connection is in: --audit LOG")
        return draw()
    from ..replay.files import find_sources, read_records
    from ..replay.stats import UnknownConnection, fold_connection, fold_stats

    sources, problems = find_sources(options.audit), Problems(0)
    if sources.problems:  # half a picture is none
        first = sources.problems[0]
        raise _Refused(f"{first.place}: {first.message}")
    records, path = read_records(sources, problems), None
    if options.connection is None:
        stats = fold_stats(records)
    else:
        try:
            stats, path = fold_connection(records, options.connection)
        except UnknownConnection as error:
            raise _Refused(str(error)) from None
    lost = problems.counts.total()
    if lost and stats.since is None:
        raise _Refused(explain_nothing(sources, problems))
    if lost:
        print(
            "milvus-lifecycle diagram: what is no sound record was left out: "
            f"{plural(lost, 'finding')}; milvus-lifecycle audit verify has them",
            file=sys.stderr,
        )
    return draw(stats=stats, path=path)
