"""Where a picture's time goes."""

from __future__ import annotations

from deploy.grafana.panels import Query, Row, bars, graph
from deploy.grafana.promql import mean, quantile

_STAGES = ("admission", "decode", "preprocess", "queue", "encoder", "head", "postprocess", "render")
"""In the order in which a picture goes through them."""


def row() -> Row:
    """The row."""
    means = [Query(mean(f"polyhead_{stage}_seconds"), stage) for stage in _STAGES]
    return Row(
        "Stages of a picture",
        [
            bars("Waterfall", "Mean time of a picture in each stage, in its order; heads: mean of one.", "s", *means),
            graph(
                "Mean by stage", "A growing queue with steady stages means: too much load.", "s", *means, stacked=True
            ),
            graph(
                "p95 by stage",
                "Which stage makes the slow pictures slow.",
                "s",
                *(Query(quantile(0.95, f"polyhead_{stage}_seconds"), stage) for stage in _STAGES),
            ),
            graph(
                "Mean by head",
                "Time of a batch's picture in each head.",
                "s",
                Query(mean("polyhead_head_seconds", "head"), "{{head}}"),
            ),
        ],
    )
