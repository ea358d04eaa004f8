"""Pictures that are inside, and those of them that wait for the accelerator."""

from __future__ import annotations

from deploy.grafana.panels import Query, Row, graph
from deploy.grafana.promql import quantile, rate


def row() -> Row:
    """The row."""
    return Row(
        "Queue",
        [
            graph(
                "Pictures",
                "Inside: let in and not yet answered; more than POLYHEAD_MAX_PICTURES_INSIDE a replica are shed.",
                "short",
                Query("sum(polyhead_pictures_inside)", "inside"),
                Query("sum(polyhead_queue_pictures)", "waiting for the accelerator"),
            ),
            graph(
                "Bytes",
                "Pixel tensors that wait for the accelerator.",
                "bytes",
                Query("sum(polyhead_queue_bytes)", "waiting"),
            ),
            graph(
                "Time in the queue",
                "Of a picture, before its batch begins.",
                "s",
                Query(quantile(0.5, "polyhead_queue_seconds"), "p50"),
                Query(quantile(0.95, "polyhead_queue_seconds"), "p95"),
                Query(quantile(0.99, "polyhead_queue_seconds"), "p99"),
            ),
            graph(
                "Shed by route",
                "Told to come again after Retry-After seconds.",
                "reqps",
                Query(rate("polyhead_shed_total", "route"), "{{route}}"),
                stacked=True,
            ),
        ],
    )
