"""The kinds of panels that the rows use, and what all panels share: units, legends, thresholds, the data source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models.common import (
    BarGaugeDisplayMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, GridPos, Threshold, ThresholdsMode

DATASOURCE = "datasource"
"""Name of the dashboard's variable that holds the Prometheus to ask."""

SOURCE = DataSourceRef(type_val="prometheus", uid=f"${{{DATASOURCE}}}")

Panel = timeseries.Panel | stat.Panel | bargauge.Panel
SomePanel = TypeVar("SomePanel", timeseries.Panel, stat.Panel, bargauge.Panel)

_COLUMNS = 24
_HEIGHT = 8


@dataclass(frozen=True)
class Query:
    """One PromQL expression of a panel.

    Attributes:
        expr: with `$__rate_interval` for windows.
        legend: of its series; labels as ``{{label}}``.
    """

    expr: str
    legend: str


@dataclass(frozen=True)
class Row:
    """Panels under one title, each as wide as the others."""

    title: str
    panels: Sequence[Panel]


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    thresholds: Sequence[tuple[float, str]] = (),
    maximum: float | None = None,
) -> timeseries.Panel:
    """Lines over time.

    Args:
        title: of the panel.
        description: what it tells and what to make of it.
        unit: Grafana's name of the unit.
        queries: at least one.
        stacked: areas upon each other, where the sum means something.
        thresholds: (value, colour) from which lines are drawn in the background.
        maximum: end of the axis; default: the data's.
    """
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    panel = (
        timeseries.Panel()
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(40 if stacked else 10)
        .show_points(VisibilityMode.NEVER)
        .legend(legend.show_legend(True).calcs(["mean", "max", "lastNotNull"]))
        .tooltip(tooltip)
    )
    if maximum is not None:
        panel.max(maximum)
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if thresholds:
        panel.thresholds(_thresholds(thresholds))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    return _shared(panel, title, description, queries)


def number(
    title: str, description: str, unit: str, query: Query, *, thresholds: Sequence[tuple[float, str]] = ()
) -> stat.Panel:
    """The newest value, large, over its history; arguments as of `graph`."""
    panel = stat.Panel().unit(unit).graph_mode(BigValueGraphMode.AREA).thresholds(_thresholds(thresholds))
    panel.reduce_options(_newest())
    return _shared(panel, title, description, [query])


def text(title: str, description: str, query: Query) -> stat.Panel:
    """What the labels of a series say, as its legend puts it."""
    panel = stat.Panel().text_mode(BigValueTextMode.NAME).graph_mode(BigValueGraphMode.NONE)
    panel.reduce_options(_newest())
    return _shared(panel.thresholds(_thresholds(())), title, description, [query])


def bars(title: str, description: str, unit: str, *queries: Query) -> bargauge.Panel:
    """The newest values as bars beneath each other, to be compared; arguments as of `graph`."""
    panel = bargauge.Panel().unit(unit).min(0).orientation(VizOrientation.HORIZONTAL)
    panel.display_mode(BarGaugeDisplayMode.BASIC).thresholds(_thresholds(())).reduce_options(_newest())
    return _shared(panel, title, description, queries)


def place(row: Row, first_id: int, top: int) -> int:
    """Give the panels of a row their ids, counted from `first_id`, and places beneath `top`; returns the row's end.

    At most four stand beside each other; each line of panels fills the whole width.
    """
    count = len(row.panels)
    lines = -(-count // 4)
    ends = [count * (line + 1) // lines for line in range(lines)]
    begin = 0
    for line, end in enumerate(ends):
        width = _COLUMNS // (end - begin)
        for column, panel in enumerate(row.panels[begin:end]):
            panel.id(first_id + begin + column).datasource(SOURCE)
            panel.grid_pos(GridPos(h=_HEIGHT, w=width, x=column * width, y=top + line * _HEIGHT))
        begin = end
    return top + lines * _HEIGHT


def _newest() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


def _thresholds(steps: Sequence[tuple[float, str]]) -> dashboard.ThresholdsConfig:
    base = [Threshold(value=None, color="green")]
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps(base + [Threshold(value=value, color=color) for value, color in steps])
    )


def _shared(panel: SomePanel, title: str, description: str, queries: Sequence[Query]) -> SomePanel:
    panel.title(title).description(description)
    for index, query in enumerate(queries):
        panel.with_target(
            prometheus.Dataquery()
            .expr(query.expr)
            .legend_format(query.legend)
            .ref_id(chr(ord("A") + index))
            .datasource(SOURCE)
            .range()
        )
    return panel
