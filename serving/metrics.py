"""Every metric of the server: names, units and labels in one place (prometheus-client).

An *encoder pass* is one picture through the encoder; a batch of eight is eight passes in one run. A pass is *saved*
when a second head reads features that a first one already paid for.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serving.engine import PassOutput, PassReport
from serving.types import Prediction

STAGE_BUCKETS_S = tuple(round(0.001 * 1.5**n, 6) for n in range(28))
"""1 ms times 1.5 to the n: up to 57 s."""

BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one replica, in a registry of their own.

    Args:
        bundle: name of the loaded bundle, a label of `polyhead_info`.
        encoder: name of its encoder.
        revision: of the encoder's weights.
    """

    def __init__(self, bundle: str, encoder: str, revision: str) -> None:
        self.registry = CollectorRegistry()
        info = Gauge(
            "polyhead_info", "What is running; always 1.", ["bundle", "encoder", "revision"], registry=self.registry
        )
        info.labels(bundle, encoder, revision).set(1)
        self.requests = Counter("polyhead_requests", "Requests answered.", ["route", "code"], registry=self.registry)
        self.refused = Counter(
            "polyhead_refused", "Requests that got an error, by reason.", ["reason"], registry=self.registry
        )
        self.request_s = Histogram(
            "polyhead_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["route"],
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self.stage_s = Histogram(
            "polyhead_stage_seconds",
            "Time of one stage of one picture; head is set for the stage 'head' only.",
            ["stage", "head"],
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self.encoder_runs = Counter(
            "polyhead_encoder_runs", "Forward calls of the encoder (batches).", registry=self.registry
        )
        self.encoder_passes = Counter(
            "polyhead_encoder_passes", "Pictures that went through the encoder.", registry=self.registry
        )
        self.encoder_passes_saved = Counter(
            "polyhead_encoder_passes_saved",
            "Passes that one server per head would have run in addition.",
            registry=self.registry,
        )
        self.encoder_busy_s = Counter(
            "polyhead_encoder_busy_seconds", "Time that the encoder ran.", registry=self.registry
        )
        self.encoder_saved_s = Counter(
            "polyhead_encoder_saved_seconds",
            "Encoder time that the saved passes would have cost, at the measured time per pass.",
            registry=self.registry,
        )
        self.head_busy_s = Counter(
            "polyhead_head_busy_seconds", "Time that a head ran.", ["head"], registry=self.registry
        )
        self.head_runs = Counter(
            "polyhead_head_runs", "Pictures that went through a head.", ["head"], registry=self.registry
        )
        self.head_errors = Counter(
            "polyhead_head_errors", "Pictures on which a head failed.", ["head"], registry=self.registry
        )
        self.batch_size = Histogram(
            "polyhead_batch_size", "Pictures in one encoder run.", buckets=BATCH_BUCKETS, registry=self.registry
        )
        self.pictures_inside = Gauge(
            "polyhead_pictures_inside", "Pictures let in and not yet answered.", registry=self.registry
        )
        self.pictures_waiting = Gauge(
            "polyhead_pictures_waiting", "Pictures that wait for the accelerator.", registry=self.registry
        )

    def count_batch(self, outputs: Sequence[PassOutput]) -> None:
        """Count the runs that served a batch: one, or several where something failed and was tried again."""
        for report in {id(output.report): output.report for output in outputs}.values():
            if report.batch_size:
                self._count_run(report)

    def _count_run(self, report: PassReport) -> None:
        self.encoder_runs.inc()
        self.encoder_passes.inc(report.batch_size)
        self.encoder_busy_s.inc(report.encoder_s)
        self.batch_size.observe(report.batch_size)
        saved = sum(report.head_rows.values()) - report.batch_size
        self.encoder_passes_saved.inc(saved)
        self.encoder_saved_s.inc(saved * report.encoder_s / report.batch_size)
        for task, seconds in report.heads_s.items():
            self.head_busy_s.labels(task).inc(seconds)
            self.head_runs.labels(task).inc(report.head_rows[task])

    def count_prediction(self, prediction: Prediction) -> None:
        """Count the stages of a picture that was answered."""
        timing = prediction.timing
        for stage in ("queue", "decode", "preprocess", "encoder", "postprocess"):
            self.stage_s.labels(stage, "").observe(getattr(timing, f"{stage}_ms") / 1e3)
        for task, milliseconds in timing.heads_ms.items():
            self.stage_s.labels("head", task).observe(milliseconds / 1e3)
        for task in prediction.errors:
            self.head_errors.labels(task).inc()

    def render(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
