"""What is promised to callers: how many pictures are answered, how fast, and how the others ended."""

from __future__ import annotations

from deploy.grafana.panels import Query, Row, graph, number, text
from deploy.grafana.promql import PICTURE_ROUTES, quantile, rate, rate_or_zero

_ANSWERED = rate("polyhead_requests_total", route=PICTURE_ROUTES, code="200|OK")
_ALL = rate("polyhead_requests_total", route=PICTURE_ROUTES)


def row() -> Row:
    """The row."""
    return Row(
        "Service level",
        [
            text(
                "Serving",
                "Bundle, encoder, device and version; several lines while a roll-out is under way.",
                Query("polyhead_info", "{{bundle}}: {{encoder}}@{{revision}}, {{dtype}} on {{device}}, v{{version}}"),
            ),
            number(
                "Goodput",
                "Pictures that were answered, over all protocols.",
                "reqps",
                Query(_ANSWERED, "answered"),
            ),
            number(
                "Broken",
                "Share of picture requests that failed through our fault (5xx). The promise is under 0.1 %.",
                "percentunit",
                Query(f"{rate_or_zero('polyhead_failed_total', route=PICTURE_ROUTES)} / {_ALL}", "broken"),
                thresholds=[(0.001, "orange"), (0.01, "red")],
            ),
            number(
                "p95",
                "95 of 100 picture requests were faster. "
                "The promise is the rule polyhead:slo_p95_seconds, 2 s unless you change it.",
                "s",
                Query(quantile(0.95, "polyhead_request_seconds", route=PICTURE_ROUTES), "p95"),
                thresholds=[(1, "orange"), (2, "red")],
            ),
            graph(
                "Latency by route",
                "From the request's arrival to the last byte of its answer.",
                "s",
                *(
                    Query(
                        quantile(q, "polyhead_request_seconds", "route", route=PICTURE_ROUTES),
                        f"p{100 * q:g} {{{{route}}}}",
                    )
                    for q in (0.5, 0.95, 0.99)
                ),
                Query("polyhead:slo_p95_seconds", "promised p95"),
            ),
            graph(
                "Requests by route and status",
                "All of them, also of health checks and pages.",
                "reqps",
                Query(rate("polyhead_requests_total", "route, code"), "{{code}} {{route}}"),
                stacked=True,
            ),
            graph(
                "Not answered",
                "Each request once. Shed: no room, come again. Expired: the deadline passed. Cancelled: the client "
                "left. Rejected: the caller's mistake. Broken: ours.",
                "reqps",
                *(
                    Query(rate_or_zero(f"polyhead_{name}_total"), legend)
                    for name, legend in (
                        ("shed", "shed"),
                        ("expired", "expired"),
                        ("cancelled", "cancelled"),
                        ("rejected", "rejected"),
                        ("failed", "broken"),
                    )
                ),
                stacked=True,
            ),
            graph(
                "Rejected and broken by reason",
                "The last part of the problem's type, as the caller got it.",
                "reqps",
                Query(rate("polyhead_rejected_total", "code"), "rejected: {{code}}"),
                Query(rate("polyhead_failed_total", "code"), "broken: {{code}}"),
            ),
        ],
    )
