"""How pictures share a run of the encoder."""

from __future__ import annotations

from deploy.grafana.panels import Query, Row, graph
from deploy.grafana.promql import mean, quantile, rate


def row() -> Row:
    """The row."""
    return Row(
        "Batching",
        [
            graph(
                "Batch size",
                "Pictures in one run of the encoder. Grows with load by itself.",
                "short",
                Query(mean("polyhead_batch_size"), "mean"),
                Query(quantile(0.95, "polyhead_batch_size"), "p95"),
            ),
            graph(
                "Wait for the batch",
                "Of a batch's oldest picture. While nothing runs, at most POLYHEAD_MAX_WAIT_MS.",
                "s",
                Query(quantile(0.5, "polyhead_batch_wait_seconds"), "p50"),
                Query(quantile(0.95, "polyhead_batch_wait_seconds"), "p95"),
            ),
            graph(
                "Runs of the encoder",
                "Batches per second.",
                "ops",
                Query(rate("polyhead_encoder_runs_total"), "runs"),
            ),
            graph(
                "Padding",
                "Share of the encoder's pixels that are not the picture's own: paid for and thrown away.",
                "percentunit",
                Query(f"{rate('polyhead_padding_pixels_total')} / {rate('polyhead_input_pixels_total')}", "padding"),
                maximum=1,
                thresholds=[(0.3, "orange")],
            ),
        ],
    )
