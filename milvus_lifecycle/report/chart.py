"""The report's chart, described with Bokeh: an overview, and lanes that the page fills itself.

Chosen for the inlined size and the time to load: see ``docs/decisions.md``. Only this module
imports Bokeh (extra ``report``), and only ``audit report`` imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import bokeh
from bokeh import models
from bokeh.embed import json_item
from bokeh.layouts import column
from bokeh.plotting import figure

#: State -> (colour, height of its bar as a share of the lane): what colour says, height says.
LOOKS: Mapping[str, tuple[str, float]] = {
    "IDLE": ("#c3c8cf", 0.22),
    "ACTIVE": ("#3f9e7c", 0.5),
    "PROBING": ("#0067a3", 0.8),
    "RECOVERING": ("#d95f02", 1.0),
    "CLOSED": ("#1f1f1f", 1.0),
}


def bokeh_script() -> str:
    """BokehJS, as the pip package brings it."""
    script = Path(bokeh.__file__).parent / "server" / "static" / "js" / "bokeh.min.js"
    return script.read_text(encoding="utf-8")


def chart_item(start: float, end: float) -> Mapping[str, object]:
    """The chart of a log from ``start`` to ``end`` (ms since 1970), as ``embed_item`` takes it."""
    end = max(end, start + 1000.0)
    margin = (end - start) * 0.005
    low, high = start - margin, end + margin
    shown = models.Range1d(start=low, end=high, bounds=(low, high), min_interval=5)
    lanes = _figure("lanes", 300, shown)
    wheel = models.WheelZoomTool(dimensions="width", modifiers="ctrl")
    lanes.add_tools(models.BoxZoomTool(dimensions="width"), wheel, models.ResetTool())
    lanes.yaxis.ticker = models.FixedTicker(ticks=[])
    lanes.ygrid.visible = False
    overview = _figure("overview", 105, models.Range1d(start=low, end=high))
    overview.yaxis.ticker = models.BasicTicker(desired_num_ticks=2)
    overview.yaxis.minor_tick_line_color = None
    overview.yaxis.axis_label = "connections"
    frame = models.RangeTool(x_range=shown)
    frame.overlay.update(
        fill_color="#0b5fa5", fill_alpha=0.08, line_color="#0b5fa5", line_dash="solid"
    )
    overview.add_tools(frame)
    return dict(json_item(column(overview, lanes, sizing_mode="stretch_width")))


def _figure(name: str, height: int, x_range: models.Range1d) -> figure:
    """A chart of coloured boxes whose places the page fills in."""
    chart = figure(
        name=name,
        height=height,
        x_axis_type="datetime",
        x_range=x_range,
        y_range=models.Range1d(start=0, end=1),
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools=[],
        min_border_right=12,
    )
    places = {side: side for side in ("left", "right", "bottom", "top")}
    boxes = models.ColumnDataSource({column: [] for column in (*places, "color")})
    chart.quad(source=boxes, fill_color="color", line_color=None, **places)
    chart.outline_line_color = None
    chart.axis.axis_line_color = "#9aa2ad"
    chart.axis.major_tick_line_color = "#9aa2ad"
    chart.axis.minor_tick_line_color = None
    chart.axis.major_label_text_color = "#3b4450"
    chart.axis.axis_label_text_color = "#5b6472"
    chart.axis.axis_label_text_font_style = "normal"
    chart.axis.axis_label_text_font_size = "11px"
    chart.xgrid.grid_line_color = "#e6e9ed"
    return chart
