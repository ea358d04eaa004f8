"""The accelerators; all zero where there is none."""

from __future__ import annotations

from deploy.grafana.panels import Query, Row, graph


def row() -> Row:
    """The row."""
    used, total = "sum(polyhead_gpu_memory_used_bytes)", "sum(polyhead_gpu_memory_total_bytes)"
    return Row(
        "GPU",
        [
            graph("GPUs", "That replicas run on.", "short", Query("sum(polyhead_gpus)", "GPUs")),
            graph(
                "Utilization",
                "Share of the time in which a kernel ran, by NVML. Low under load: look at decode and post-processing.",
                "percentunit",
                Query("avg(polyhead_gpu_utilization_ratio)", "busy"),
                maximum=1,
            ),
            graph("Memory", "By NVML, of everything on the GPUs.", "bytes", Query(used, "used"), Query(total, "there")),
            graph(
                "Memory used",
                "Over 92 % an alert is raised.",
                "percentunit",
                Query(f"{used} / clamp_min({total}, 1)", "used"),
                maximum=1,
                thresholds=[(0.92, "red")],
            ),
        ],
    )
