"""The processes: ours, Ray Serve's view of them, and the HAProxy before them."""

from __future__ import annotations

from deploy.grafana.panels import Query, Row, graph
from deploy.grafana.promql import rate

_DEPLOYMENT = 'application="polyhead"'
_BACKENDS = "(http|grpc)-polyhead"
"""HAProxy's names of the two ways to the replicas."""


def row() -> Row:
    """The row."""
    return Row(
        "Replicas",
        [
            graph(
                "Replicas",
                "Wanted by Ray Serve, found healthy by it, telling their metrics, and seen by HAProxy.",
                "short",
                Query(f"max(ray_serve_autoscaling_target_replicas{{{_DEPLOYMENT}}})", "wanted"),
                Query(f"sum(ray_serve_deployment_replica_healthy{{{_DEPLOYMENT}}})", "healthy"),
                Query("max(polyhead_replicas)", "telling"),
                Query('max(haproxy_backend_active_servers{proxy="http-polyhead"})', "behind HAProxy"),
            ),
            graph(
                "Replicas of the last half hour",
                "Many more than there are now: replicas die and are started again.",
                "short",
                Query(
                    f"count(count_over_time(ray_serve_deployment_replica_starts_total{{{_DEPLOYMENT}}}[30m]))", "seen"
                ),
            ),
            graph(
                "Requests in the replicas",
                "By Ray Serve: pictures, streams and everything else, also what waits for a place in a replica.",
                "short",
                Query(f"sum(ray_serve_replica_processing_queries{{{_DEPLOYMENT}}})", "in replicas"),
                Query(f"sum(ray_serve_deployment_queued_queries{{{_DEPLOYMENT}}})", "queued before them"),
            ),
            graph(
                "CPU and memory pressure of the nodes",
                "By Ray. At 95 % of memory Ray kills workers.",
                "percentunit",
                Query("max(ray_node_mem_used / ray_node_mem_total)", "memory, fullest node"),
                Query("max(ray_node_cpu_utilization) / 100", "CPU, busiest node"),
                maximum=1,
                thresholds=[(0.9, "red")],
            ),
            graph(
                "CPU of the replicas",
                "Cores in use.",
                "short",
                Query(rate("polyhead_process_cpu_seconds_total"), "cores"),
            ),
            graph(
                "Memory of the replicas",
                "Resident.",
                "bytes",
                Query("sum(polyhead_process_memory_bytes)", "resident"),
            ),
            graph(
                "HAProxy: answers by status",
                "What went through it to the replicas; a gRPC call is 2xx whatever its status.",
                "reqps",
                Query(
                    rate("haproxy_backend_http_responses_total", "proxy, code", proxy=_BACKENDS), "{{proxy}} {{code}}"
                ),
                stacked=True,
            ),
            graph(
                "HAProxy: trouble with replicas",
                "Connections that failed, answers that broke off, tries on another replica.",
                "ops",
                Query(rate("haproxy_backend_connection_errors_total", proxy=_BACKENDS), "connection errors"),
                Query(rate("haproxy_backend_response_errors_total", proxy=_BACKENDS), "response errors"),
                Query(rate("haproxy_backend_retry_warnings_total", proxy=_BACKENDS), "retries"),
                Query(rate("haproxy_backend_redispatch_warnings_total", proxy=_BACKENDS), "sent elsewhere"),
            ),
        ],
    )
