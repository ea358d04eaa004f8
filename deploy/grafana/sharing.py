"""What sharing the encoder saves: the reason for this server."""

from __future__ import annotations

from deploy.grafana.panels import Query, Row, graph, number
from deploy.grafana.promql import rate

_SHARED = f"({rate('polyhead_encoder_busy_seconds_total')} + {rate('polyhead_head_busy_seconds_total')})"
_APART = f"({_SHARED} + {rate('polyhead_encoder_saved_seconds_total')})"


def row() -> Row:
    """The row."""
    return Row(
        "Sharing",
        [
            number(
                "Cost apart / shared",
                "How much more accelerator time one server per head would take. 1: sharing saves nothing.",
                "short",
                Query(f"{_APART} / {_SHARED}", "apart / shared"),
                thresholds=[(0, "orange"), (1.05, "green")],
            ),
            number(
                "Heads per pass",
                "Heads that read the features of one encoder pass.",
                "short",
                Query(f"{rate('polyhead_head_runs_total')} / {rate('polyhead_encoder_passes_total')}", "heads"),
            ),
            graph(
                "Encoder passes",
                "A pass is one picture through the encoder; an avoided one was paid for by another head.",
                "ops",
                Query(rate("polyhead_encoder_passes_total"), "run"),
                Query(rate("polyhead_encoder_passes_saved_total"), "avoided"),
                stacked=True,
            ),
            graph(
                "Accelerator time",
                "Seconds per second. Saved: what the avoided passes would have cost.",
                "percentunit",
                Query(rate("polyhead_encoder_busy_seconds_total"), "encoder"),
                Query(rate("polyhead_head_busy_seconds_total", "head"), "head {{head}}"),
                Query(rate("polyhead_encoder_saved_seconds_total"), "saved"),
                stacked=True,
            ),
            graph(
                "Pictures by head",
                "What callers ask for.",
                "ops",
                Query(rate("polyhead_head_runs_total", "head"), "{{head}}"),
                stacked=True,
            ),
            graph(
                "Pictures on which a head failed",
                "The other tasks of such a picture are still answered.",
                "ops",
                Query(rate("polyhead_head_errors_total", "head"), "{{head}}"),
            ),
        ],
    )
