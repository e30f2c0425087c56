"""The report as one HTML page that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template

from ..diagram.drawing import draw, plural, show_seconds, show_share, show_span
from ..diagram.formats import RendererMissing, render_svg
from ..replay.files import LineReader, Progress, Sources, name_files
from ..replay.findings import Problems, clean
from ..replay.outages import Incident
from ..replay.rules import Verifier
from ..replay.stats import Stats
from ..table import State
from .chart import LOOKS, bokeh_script, chart_item
from .tables import TOTAL, Table, show, stats_tables
from .timeline import STAYS, TimelineFold, pack, timeline_data

#: Outages that a page lists; further ones are counted.
OUTAGES = 300
_ASSETS = files(__package__) / "assets"


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    files: tuple[str, ...]
    problems: Problems
    connections: int
    stats: Stats
    timeline: TimelineFold


def fold_report(
    sources: Sources, problems: Problems, on_progress: Progress | None = None
) -> Report:
    """Read the logs once, for the verdict, the figures and the timeline."""
    verifier, stats = Verifier(problems), Stats(OUTAGES)
    timeline = TimelineFold(stats, STAYS)
    for path in sources.paths:
        verifier.begin(path)
        reader = LineReader(path, verifier.damage, on_progress=on_progress)
        for number, record in reader.records():
            verifier.check(record, number)
            timeline.add(record)
    verifier.finish()
    problems.sort(sources.paths)
    stats.finish()
    timeline.finish()
    return Report(sources.paths, problems, verifier.connections, stats, timeline)


def render_page(report: Report) -> str:
    """The page of a log with records. Without pygraphviz it has no diagram."""
    stats = report.stats
    tables = {table.title: table for table in stats_tables(stats)}
    del tables["Worst incidents"]
    outages = tables.pop("Longest outages")
    length = show_seconds((stats.until - stats.since).total_seconds())
    data = timeline_data(report.timeline.lanes, stats.since, stats.until)
    chart = chart_item(stats.since.timestamp() * 1000, stats.until.timestamp() * 1000)
    return Template(_asset("report.html")).substitute(
        style=_asset("report.css"),
        subtitle=f"{escape(name_files(report.files))} &middot; {show_span(stats)} ({length})",
        verdict=_verdict(report),
        tiles=_tiles(report),
        findings=_findings(report.problems),
        incidents=_incidents(stats.incidents),
        thinned=_thinned(report),
        diagram=_diagram(report),
        tables=_outages(stats, outages) + _sections(tables.values()),
        packed=pack(data),
        looks=_json(LOOKS),
        chart=_json(chart),
        bokeh=bokeh_script().replace("</script", "<\\/script"),
        first=_asset("report.js"),
        then=_asset("page.js"),
    )


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


# -- the head ----------------------------------------------------------------------------------


def _verdict(report: Report) -> str:
    problems = report.problems
    unread = f"{plural(problems.unreadable, 'file')} could not be opened"
    legal = problems.judge(report.stats.records)
    if legal:
        look, word = "legal", "&#10003; Legal"
        told = f"{plural(report.stats.records, 'record')} replayed through the table"
    elif legal is None:
        look, word, told = "illegal", "No verdict", unread
    else:
        look, word = "illegal", "&#10007; Not legal"
        told = plural(problems.violations, "violation")
        told += f", {unread}" if problems.unreadable else ""
        told += ': <a href="#h-findings">see the findings</a>'
    return f'<div class="verdict {look}"><b>{word}</b>{told}</div>'


def _tiles(report: Report) -> str:
    stats, total = report.stats, report.stats.total
    lengths = total.outage_quantiles()
    active = total.state_shares().get(State.ACTIVE)
    longest = f"p50 {show(lengths['p50'])}, longest {show(lengths['max'])}"
    recovering = f"{show(total.state_s[State.RECOVERING])} in RECOVERING"
    tiles = [
        ("connections", f"{report.connections:,}", plural(len(stats.endpoints), "endpoint"), 0),
        ("records", f"{stats.records:,}", f"{stats.lost_records:,} lost", 0),
        ("of the time ACTIVE", show_share(active) if active else show(None), recovering, 0),
        ("outages", f"{total.outages:,}", longest, 0),
        ("given up", f"{total.give_ups:,}", f"of {total.attempts:,} attempts", total.give_ups),
        ("flapping", f"{total.flapping:,}", "connections", total.flapping),
    ]
    return "".join(
        f'<div class="tile{" bad" * bool(bad)}"><b>{value}</b><span>{name}</span>'
        f"<small>{more}</small></div>"
        for name, value, more, bad in tiles
    )


# -- tables ------------------------------------------------------------------------------------

#: Columns whose texts may be long.
_WRAPPED = frozenset({"finding", "end"})
#: What the name of a column of moments ends in. The page's reader sees them in his own time.
_UTC = " (UTC)"


def _time(moment: str) -> str:
    """A moment (UTC, as tables show it), which the page's script turns into local time."""
    return f'<time datetime="{moment.replace(" ", "T")}Z">{moment} UTC</time>'


def _table(table: Table, attributes: Sequence[str] = ()) -> str:
    """A table; ``attributes`` go into its rows' tags."""
    heads = table.heads
    head = "".join(
        f"<th{' class=r' * right}>{escape(name.removesuffix(_UTC))}</th>" for name, right in heads
    )
    rows = []
    for index, row in enumerate(table.rows):
        cells = []
        for cell, (name, right) in zip(row, heads, strict=True):
            style = " class=r" if right else " class=w" * (name in _WRAPPED)
            told = _time(cell) if name.endswith(_UTC) else escape(cell)
            cells.append(f"<td{style}>{told}</td>")
        tag = attributes[index] if attributes else ' class="total"' * (row[0] == TOTAL)
        rows.append(f"<tr{tag}>{''.join(cells)}</tr>")
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll">{body}</div>{note}'


def _range(began: datetime, length: float, search: str) -> str:
    """What makes a row a way into the timeline."""
    start = began.timestamp() * 1000
    return (
        f' data-from="{start:.0f}" data-to="{start + length * 1000:.0f}" '
        f'data-search="{escape(search, quote=True)}"'
    )


def _incidents(incidents: Sequence[Incident]) -> str:
    """What endpoints went through, newest first: a sentence each, and a way into the timeline."""
    if not incidents:
        return "<p>No outage in this log.</p>"
    most = max(one.suffered_s for one in incidents) or 1.0
    items = []
    for one in sorted(incidents, key=lambda each: (each.began, each.address), reverse=True):
        width = 90 * one.suffered_s / most
        anchor = f"{one.began:incident-%Y%m%dT%H%M%S.%f}"
        items.append(
            f'<li id="{anchor}"{_range(one.began, one.seconds, one.address)}>'
            f'<a href="#{anchor}">{_time(show(one.began))}</a> '
            f"<b>{escape(clean(one.address, 200))}</b> {escape(_sentence(one))} "
            f'<span class="bar" style="width:{width:.0f}px"></span>'
            f"<small>{escape(clean(one.reason, 300))}</small></li>"
        )
    return f'<ol class="incidents">{"".join(items)}</ol>'


def _sentence(one: Incident) -> str:
    """What an incident was, and what calls felt of it."""
    who = "its connection" if one.connections == 1 else f"{one.connections:,} connections"
    parts = [f"lost {who} for {show_seconds(one.seconds)}"]
    if one.waited or one.failed:
        parts.append(f"{plural(one.waited, 'call')} waited, {one.failed:,} failed")
    parts.append(plural(one.attempts, "attempt"))
    if one.give_ups:
        parts.append(f"given up {plural(one.give_ups, 'time')}")
    if one.unfinished:
        parts.append(f"{one.unfinished:,} still open when the log ends")
    return "; ".join(parts) + "."


def _outages(stats: Stats, table: Table) -> str:
    shown, every = stats.longest_outages, stats.total.outages
    if not shown:
        return ""
    title = f"Outages: the longest {OUTAGES} of {every:,}" if every > len(shown) else "Outages"
    rows = [_range(one.began, one.seconds, one.connection_id) for one in shown]
    return _section(title, _table(table, rows))


def _sections(tables: Iterable[Table]) -> str:
    """A section for each table that has rows; those of up to three columns stand side by side."""
    wide = narrow = ""
    for table in tables:
        if table.rows and len(table.columns) > 3:
            wide += _section(table.title, _table(table))
        elif table.rows:
            narrow += _section(table.title, _table(table))
    return f'{wide}<div class="columns">{narrow}</div>'


def _section(title: str, body: str, anchor: str = "") -> str:
    mark = f' id="{anchor}"' if anchor else ""
    return f"<section><h2{mark}>{escape(title)}</h2>{body}</section>"


def _findings(problems: Problems) -> str:
    if not problems.kept:
        return ""
    rows = [(one.place, str(one.kind), one.text, one.connection_id or "") for one in problems.kept]
    hidden = problems.hidden
    note = f"and {hidden:,} more: see milvus-lifecycle audit verify" if hidden else ""
    table = Table("Findings", ("place", "kind", "finding", "connection"), rows, note)
    return _section(table.title, _table(table), "h-findings")


# -- the diagram, and words --------------------------------------------------------------------


def _diagram(report: Report) -> str:
    try:
        svg = render_svg(draw(stats=report.stats))
    except RendererMissing as error:
        return f'<p class="note">No diagram: {escape(str(error))}</p>'
    return svg[svg.index("<svg") :]


def _thinned(report: Report) -> str:
    timeline = report.timeline
    shown = sum(len(lane.stays) for lane in timeline.lanes)
    parts = []
    if timeline.grain:
        grain = show_seconds(timeline.grain.total_seconds())
        parts.append(
            f"Stays shorter than {grain} are merged with the one before them; a merged stay has "
            "the colour and the record of the worst in it."
        )
    if timeline.left_out:
        missing = max(0, report.connections - len(timeline.lanes))
        parts.append(
            f"{missing:,} connections with the least time in outages, then the fewest "
            "records, are left out."
        )
    if not parts:
        return ""
    lead = f"A large log, thinned to {shown:,} stays of {timeline.records:,}."
    return f'<p class="note">{lead} {" ".join(parts)} The tables count every record.</p>'
