"""The expressions that more than one row needs."""

from __future__ import annotations

WINDOW = "$__rate_interval"
"""At least four scrapes, by Grafana."""

PICTURE_ROUTES = "/segment|/features|/v2/models/.+/infer|.+/(Segment|ModelInfer)"
"""Routes that answer one picture each: what latency and errors are promised for. A stream is as long as it is."""


def rate(metric: str, by: str = "", **labels: str) -> str:
    """Growth of a counter per second, summed over all series or by labels; `labels` are regular expressions."""
    matchers = ",".join(f'{name}=~"{value}"' for name, value in labels.items())
    selector = metric + (f"{{{matchers}}}" if matchers else "")
    return f"sum{f' by ({by})' if by else ''} (rate({selector}[{WINDOW}]))"


def rate_or_zero(metric: str, **labels: str) -> str:
    """`rate` of what may never have happened: without it, zero."""
    return f"({rate(metric, **labels)} or vector(0))"


def mean(histogram: str, by: str = "") -> str:
    """Mean of what a histogram observed in the window."""
    return f"{rate(f'{histogram}_sum', by)} / {rate(f'{histogram}_count', by)}"


def quantile(q: float, histogram: str, by: str = "", **labels: str) -> str:
    """The q-quantile of what a histogram observed in the window."""
    return f"histogram_quantile({q:g}, {rate(f'{histogram}_bucket', f'{by}, le' if by else 'le', **labels)})"
