"""Features that are kept, so that another head on the same picture needs no pass."""

from __future__ import annotations

from deploy.grafana.panels import Query, Row, graph
from deploy.grafana.promql import rate

_HITS, _MISSES = rate("polyhead_feature_cache_hits_total"), rate("polyhead_feature_cache_misses_total")


def row() -> Row:
    """The row."""
    return Row(
        "Feature cache",
        [
            graph(
                "Look-ups",
                "A miss: the features were never here, or had to make room.",
                "ops",
                Query(_HITS, "hits"),
                Query(_MISSES, "misses"),
                stacked=True,
            ),
            graph(
                "Hit ratio",
                "Low with many evictions: give it more memory with POLYHEAD_FEATURE_CACHE_BYTES.",
                "percentunit",
                Query(f"{_HITS} / ({_HITS} + {_MISSES})", "hits"),
                maximum=1,
            ),
            graph(
                "Evictions",
                "Features that made room for others.",
                "ops",
                Query(rate("polyhead_feature_cache_evictions_total"), "evicted"),
            ),
            graph(
                "Kept",
                "Memory that the features take.",
                "bytes",
                Query("sum(polyhead_feature_cache_bytes)", "bytes"),
            ),
            graph(
                "Entries",
                "Pictures whose features are kept.",
                "short",
                Query("sum(polyhead_feature_cache_entries)", "entries"),
            ),
        ],
    )
