"""The report as one HTML page that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template

from ..diagram.drawing import draw, plural, show_share
from ..diagram.formats import RendererMissing, render_svg
from ..replay.files import name_files
from ..replay.outages import Incident, Outage
from ..table import State
from .chart import LOOKS, bokeh_script, chart_item
from .report import OUTAGES, Report
from .tables import NONE, TOTAL, Table, outage_table, seconds, stats_tables
from .timeline import pack, timeline_data

TITLE = "What the connections did"
_ASSETS = files(__package__) / "assets"


def render_page(report: Report, title: str = TITLE) -> str:
    """The page. Without pygraphviz it has no diagram."""
    tables = {table.title: table for table in stats_tables(report.stats)}
    shown = [tables.pop("Worst incidents"), tables.pop("Longest outages")]
    data = timeline_data(report.lanes, report.since, report.until)
    chart = chart_item(report.since.timestamp() * 1000, report.until.timestamp() * 1000)
    return Template(_asset("report.html")).substitute(
        title=escape(title),
        style=_asset("report.css"),
        subtitle=_subtitle(report),
        verdict=_verdict(report),
        tiles=_tiles(report),
        findings=_findings(report),
        incidents=_incidents(shown[0], report.stats.incidents),
        thinned=_thinned(report),
        diagram=_diagram(report),
        tables=_sections(report, shown[1], list(tables.values())),
        footer=_FOOTER,
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


def _subtitle(report: Report) -> str:
    span = f"{report.since:%Y-%m-%d %H:%M:%S} to {report.until:%Y-%m-%d %H:%M:%S} UTC"
    long = seconds((report.until - report.since).total_seconds())
    return f"{escape(name_files(report.files))} &middot; {span} ({long})"


def _verdict(report: Report) -> str:
    problems = report.problems
    unread = f"{plural(problems.unreadable, 'file')} could not be opened"
    legal = problems.judge(report.stats.records)
    if legal:
        return (
            '<div class="verdict legal"><b>&#10003; Legal</b>'
            f"{plural(report.stats.records, 'record')} replayed through the table</div>"
        )
    if legal is None:
        return f'<div class="verdict illegal"><b>No verdict</b>{unread}</div>'
    found = plural(problems.violations, "violation")
    if problems.unreadable:
        found += f", {unread}"
    return (
        '<div class="verdict illegal"><b>&#10007; Not legal</b>'
        f'{found}: <a href="#h-findings">see the findings</a></div>'
    )


def _tiles(report: Report) -> str:
    total = report.stats.total
    lengths = total.outage_quantiles()
    active = total.state_shares().get(State.ACTIVE.value)
    recovering = seconds(total.state_s[State.RECOVERING.value])
    tiles = [
        (
            "connections",
            f"{report.connections:,}",
            plural(len(report.stats.endpoints), "endpoint"),
            0,
        ),
        ("records", f"{report.stats.records:,}", f"{report.stats.lost_records:,} lost", 0),
        (
            "of the time ACTIVE",
            show_share(active) if active else NONE,
            f"{recovering} in RECOVERING",
            0,
        ),
        (
            "outages",
            f"{total.outages:,}",
            f"p50 {seconds(lengths['p50'])}, longest {seconds(lengths['max'])}",
            0,
        ),
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
_WRAPPED = frozenset({"endpoint", "finding", "end"})


def _table(
    table: Table, attributes: Sequence[str] = (), bars: tuple[str, Sequence[str]] = ("", ())
) -> str:
    """A table; ``attributes`` go into its rows' tags, ``bars`` before the cells of a column."""
    heads = table.heads
    head = "".join(f"<th{' class=r' * right}>{escape(name)}</th>" for name, right in heads)
    rows = []
    for index, row in enumerate(table.rows):
        cells = []
        for cell, (name, right) in zip(row, heads, strict=True):
            bar = bars[1][index] if name == bars[0] else ""
            style = " class=r" if right else " class=w" * (name in _WRAPPED)
            cells.append(f"<td{style}>{bar}{escape(cell)}</td>")
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


def _incidents(table: Table, incidents: Iterable[Incident]) -> str:
    if not table.rows:
        return "<p>No outage in this log.</p>"
    known = list(incidents)
    most = max(one.suffered_s for one in known) or 1.0
    bars = [
        f'<span class="bar" style="width:{90 * one.suffered_s / most:.0f}px"></span>'
        for one in known
    ]
    rows = [_range(one.began, one.seconds, one.address) for one in known]
    return _table(table, rows, ("sum", bars))


def _outages(table: Table, outages: Iterable[Outage]) -> str:
    return _table(table, [_range(one.began, one.seconds, one.connection_id) for one in outages])


def _sections(report: Report, outages: Table, tables: Sequence[Table]) -> str:
    parts = []
    if outages.rows:
        title = "Outages"
        hidden = report.stats.total.outages - len(outages.rows)
        if hidden > 0:
            title = f"Outages: the longest {OUTAGES} of {report.stats.total.outages:,}"
        listed = outage_table(report.stats.longest_outages)
        parts.append(_section(title, _outages(listed, report.stats.longest_outages)))
    wide = [table for table in tables if table.rows and len(table.columns) > _NARROW]
    narrow = [table for table in tables if table.rows and len(table.columns) <= _NARROW]
    parts += [_section(table.title, _table(table)) for table in wide]
    inner = "".join(_section(table.title, _table(table)) for table in narrow)
    return "".join(parts) + f'<div class="columns">{inner}</div>'


_NARROW = 3


def _section(title: str, body: str, anchor: str = "") -> str:
    mark = f' id="{anchor}"' if anchor else ""
    return f"<section><h2{mark}>{escape(title)}</h2>{body}</section>"


def _findings(report: Report) -> str:
    problems = report.problems
    if not problems.kept:
        return ""
    rows = [(one.place, str(one.kind), one.text, one.connection_id or "") for one in problems.kept]
    hidden = problems.counts.total() - len(rows)
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
    shown = sum(len(lane.stays) for lane in report.lanes)
    parts = []
    if timeline.grain:
        parts.append(
            f"Stays shorter than {seconds(timeline.grain.total_seconds())} are merged with the one "
            "before them; a merged stay has the colour and the record of the worst in it."
        )
    if timeline.left_out:
        missing = max(0, report.connections - len(report.lanes))
        parts.append(
            f"{missing:,} connections with the least time in outages, then the fewest "
            "records, are left out."
        )
    if not parts:
        return ""
    lead = f"A large log, thinned to {shown:,} stays of {timeline.records:,}."
    return f'<p class="note">{lead} {" ".join(parts)} The tables count every record.</p>'


_FOOTER = """<p>An outage begins with the failure that leads to RECOVERING and ends when something
vouches for the connection again, however many recoveries that takes; if no call succeeds before
the next failure it goes on. Time in IDLE while no client holds the connection does not count.
Outages of one endpoint that began together are one incident: <em>longest</em> is its longest
outage, <em>sum</em> adds up all of them. Durations are monotonic time, moments are the clocks of
the machines that wrote the log; what lasts when the log ends counts up to its last record.</p>
<p>Made by <code>milvus-lifecycle audit report</code>. This page loads nothing from anywhere.</p>"""
