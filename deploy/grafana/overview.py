"""The dashboard "polyhead": every row under the other, from what callers feel down to the processes."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models.dashboard import Dashboard, DashboardCursorSync, GridPos, VariableOption

from deploy.grafana import batching, feature_cache, gpu, queue, replicas, sharing, slo, stages, streams
from deploy.grafana.panels import DATASOURCE, place

ROWS = (slo, stages, sharing, batching, queue, streams, feature_cache, gpu, replicas)


def overview() -> Dashboard:
    """The dashboard, ready to be written as JSON."""
    builder = (
        dashboard.Dashboard("polyhead")
        .uid("polyhead")
        .description("One encoder, many heads: service level, stages, sharing, batching, streams, replicas.")
        .tags(["polyhead", "ray-serve"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable(DATASOURCE)
            .label("Prometheus")
            .type("prometheus")
            .current(VariableOption(text="default", value="default"))
        )
    )
    top, next_id = 0, 1
    for module in ROWS:
        row = module.row()
        builder.with_row(dashboard.Row(row.title).id(next_id).grid_pos(GridPos(h=1, w=24, x=0, y=top)))
        end = place(row, next_id + 1, top + 1)
        for panel in row.panels:
            builder.with_panel(panel)
        top, next_id = end, next_id + 1 + len(row.panels)
    return builder.build()
