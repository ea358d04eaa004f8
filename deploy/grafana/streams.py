"""Video: streams, the age of their frames, and what was dropped."""

from __future__ import annotations

from deploy.grafana.panels import Query, Row, graph
from deploy.grafana.promql import quantile, rate


def row() -> Row:
    """The row."""
    return Row(
        "Video streams",
        [
            graph("Streams", "Open now.", "short", Query("sum(polyhead_streams_active)", "active")),
            graph(
                "Frames by outcome",
                "Answered frames and failed ones, by status.",
                "ops",
                Query(rate("polyhead_frames_total", "code"), "{{code}}"),
                stacked=True,
            ),
            graph(
                "Frame age",
                "From a frame's arrival to the reading of its answer: what a viewer sees as delay.",
                "s",
                Query(quantile(0.5, "polyhead_frame_age_seconds"), "p50"),
                Query(quantile(0.95, "polyhead_frame_age_seconds"), "p95"),
            ),
            graph(
                "Frames dropped",
                "By streams that want the latest frame rather than every one.",
                "ops",
                Query(rate("polyhead_frames_dropped_total"), "dropped"),
            ),
            graph(
                "Streams ended by the server",
                "By reason.",
                "ops",
                Query(rate("polyhead_stream_evictions_total", "code"), "{{code}}"),
            ),
            graph(
                "State",
                "What all streams remember between frames; POLYHEAD_MAX_STREAM_STATE_BYTES a replica.",
                "bytes",
                Query("sum(polyhead_stream_state_bytes)", "state"),
            ),
        ],
    )
