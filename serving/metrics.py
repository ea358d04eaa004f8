"""Every metric of the server: names, units and labels in one place (prometheus-client).

An *encoder pass* is one picture through the encoder; a batch of eight is eight passes in one run. A pass is *saved*
when a second head reads features that a first one already paid for. A *picture* is also a frame of a stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import psutil
import pynvml
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from serving.engine import PassInput, PassOutput, PassReport
from serving.errors import DeadlineExceededError, OverloadedError, PolyheadError
from serving.metrics_hub import Key, Samples, Snapshot
from serving.types import Prediction

Made = TypeVar("Made", Counter, Gauge, Histogram)

STAGE_BUCKETS_S = tuple(round(0.001 * 1.5**n, 6) for n in range(28))
"""1 ms times 1.5 to the n: up to 57 s."""

BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)

CONTENT_TYPE = CONTENT_TYPE_LATEST

CLIENT_CLOSED = 499
"""The status under which a request over HTTP is counted whose client went away (nginx's number)."""

SWITCHED = 101
"""The status under which a web socket is counted that ended as its client wished."""

FORBIDDEN = 403
"""The status of a web socket that was refused to a page of another site."""

HTTP_ROUTES = ("/segment", "/features", "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer")
SOCKET_ROUTES = ("/video",)
GRPC_ROUTES = (
    "/polyhead.v1.SegmentationService/Segment",
    "/polyhead.v1.SegmentationService/SegmentVideo",
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
)
"""The routes that answer pictures: their series are there from the start, those of others once they were called."""

EVICTIONS = ("idle", "unread", "memory", "stopping")
"""Why the server ends a stream: no frame came, answers were not read, its state had no room, the replica stops."""

_PROBLEMS = tuple(PolyheadError.__subclasses__())
_REJECTED = tuple(kind for kind in _PROBLEMS if kind.status < 500 and kind is not OverloadedError)
_FAILED = tuple(kind for kind in _PROBLEMS if kind.status >= 500 and kind is not DeadlineExceededError)


@dataclass(frozen=True)
class Described:
    """A metric as its table tells it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


class Metrics:
    """The metrics of one replica, in a registry of their own.

    Args:
        bundle: name of the loaded bundle.
        encoder: name of its encoder.
        revision: of the encoder's weights.
        device: that encoder and heads are on; its figures are read where it is a GPU.
        dtype: of encoder and heads.
        heads: their tasks.

    Attributes:
        registry: of prometheus-client.
        described: all metrics, in their order.
    """

    def __init__(
        self, *, bundle: str, encoder: str, revision: str, device: torch.device, dtype: str, heads: Iterable[str]
    ) -> None:
        self.registry = CollectorRegistry()
        self.described: list[Described] = []
        self._adopting: dict[str, Counter | Histogram] = {}
        self._device = device
        self._process = psutil.Process()
        self._cpu_s = 0.0
        self._pass_s = 0.0
        self._unread_passes = 0
        self._reading = threading.Lock()
        self._define_requests()
        self._define_stages()
        self._define_engine()
        self._define_queue()
        self._define_streams()
        self._define_feature_cache()
        self._define_machine()
        self.info.labels(bundle, encoder, revision, version("polyhead"), device.type, dtype).set(1)
        self._begin_at_zero(tuple(heads))

    def count_request(self, route: str, code: str | int, seconds: float | None = None) -> None:
        """Count a request that was answered.

        Args:
            route: path template over HTTP, ``/service/Method`` over gRPC.
            code: HTTP status, or name of the gRPC status.
            seconds: that it took; None for a stream, whose length says nothing.
        """
        self.requests.labels(route, str(code)).inc()
        if seconds is not None:
            self.request_s.labels(route).observe(seconds)

    def count_failure(self, route: str, error: PolyheadError) -> None:
        """Count a request that ended badly, by whose doing it was."""
        if isinstance(error, OverloadedError):
            self.shed.labels(route).inc()
        elif isinstance(error, DeadlineExceededError):
            self.expired.labels(route).inc()
        elif error.status < 500:
            self.rejected.labels(route, error.reason).inc()
        else:
            self.failed.labels(route, error.reason).inc()

    def count_batch(self, inputs: Sequence[PassInput], outputs: Sequence[PassOutput], wait_s: float) -> None:
        """Count the runs that served a batch: one, or several where something failed and was tried again.

        Args:
            inputs: of the batch.
            outputs: of each.
            wait_s: how long the oldest had waited.
        """
        for report in {id(output.report): output.report for output in outputs}.values():
            if report.batch_size or report.head_rows:
                self._count_run(report)
        self.batch_wait_s.observe(wait_s)
        self.input_pixels.inc(sum(_input_pixels(item) for item in inputs))
        self.padding_pixels.inc(sum(_padding_pixels(item) for item in inputs))

    def count_prediction(self, prediction: Prediction) -> None:
        """Count the stages of a picture that was answered."""
        timing = prediction.timing
        self.queue_s.observe(timing.queue_ms / 1e3)
        self.decode_s.observe(timing.decode_ms / 1e3)
        self.preprocess_s.observe(timing.preprocess_ms / 1e3)
        self.encoder_s.observe(timing.encoder_ms / 1e3)
        self.postprocess_s.observe(timing.postprocess_ms / 1e3)
        for task, milliseconds in timing.heads_ms.items():
            self.head_s.labels(task).observe(milliseconds / 1e3)
        for task in prediction.errors:
            self.head_errors.labels(task).inc()

    def snapshot(self) -> Snapshot:
        """All samples that are not 0, with the figures of process and GPU as they are now."""
        self._read_machine()
        found = Snapshot()
        for family in self.registry.collect():
            samples = self._part(found, family)
            for sample in _told(family):
                if sample.value:
                    samples[_key(sample)] = sample.value
        return found

    def render(self, total: Snapshot) -> bytes:
        """Prometheus' text format.

        Args:
            total: the figures to tell: this replica's own snapshot, or that of all replicas.
        """
        for name, labels in total.counters:  # what another replica has met and this one has not
            if name in self._adopting:
                self._adopting[name].labels(**{label: value for label, value in labels if label != "le"})
        return generate_latest(_Totals(lambda: self._totals(total)))

    def _totals(self, total: Snapshot) -> Iterator[Metric]:
        """The families of the registry with the values of `total`."""
        for family in self.registry.collect():
            shown = Metric(family.name, family.documentation, family.type)
            samples = self._part(total, family)
            if samples is total.facts:
                shown.samples = [Sample(name, dict(labels), value) for (name, labels), value in samples.items()]
            else:
                shown.samples = [
                    Sample(sample.name, sample.labels, samples.get(_key(sample), 0.0)) for sample in _told(family)
                ]
            yield shown

    def _define_requests(self) -> None:
        self.info = self._gauge(
            "info", "What is running; always 1.", "bundle", "encoder", "revision", "version", "device", "dtype"
        )
        self.replicas = self._gauge("replicas", "Replicas whose figures are in this answer.")
        self.replicas.set(1)
        self.requests = self._counter("requests", "Requests answered, however they ended.", "route", "code")
        self.request_s = self._seconds(
            "request", "From the arrival of a request to the end of its answer; streams are not in it.", "route"
        )
        self.shed = self._counter("shed", "Requests refused since there was no room or no time for them.", "route")
        self.expired = self._counter("expired", "Requests whose deadline passed before there was an answer.", "route")
        self.cancelled = self._counter("cancelled", "Requests whose client went away before the answer.", "route")
        self.rejected = self._counter(
            "rejected", "Requests with a mistake of the caller's, by reason.", "route", "code"
        )
        self.failed = self._counter("failed", "Requests that failed here, by reason.", "route", "code")

    def _define_stages(self) -> None:
        self.admission_s = self._seconds(
            "admission", "Of a picture: from its request's arrival until it is let in and its bytes are read."
        )
        self.queue_s = self._seconds("queue", "Of a picture: waiting for the accelerator.")
        self.decode_s = self._seconds("decode", "Of a picture: from its file to RGB.")
        self.preprocess_s = self._seconds("preprocess", "Of a picture: resizing and padding.")
        self.encoder_s = self._seconds("encoder", "Of a picture: the encoder runs that it was in, whole.")
        self.head_s = self._seconds("head", "Of a picture: a head's runs that it was in, whole.", "head")
        self.postprocess_s = self._seconds("postprocess", "Of a picture: from network output to results, all heads.")
        self.render_s = self._seconds("render", "Of an answer: from results to what goes over the wire.")

    def _define_engine(self) -> None:
        self.encoder_runs = self._counter("encoder_runs", "Forward calls of the encoder (batches).")
        self.encoder_passes = self._counter("encoder_passes", "Pictures that went through the encoder.")
        self.encoder_passes_saved = self._counter(
            "encoder_passes_saved", "Passes that one server per head would have run in addition."
        )
        self.encoder_busy_s = self._counter("encoder_busy_seconds", "Time that the encoder ran.")
        self.encoder_saved_s = self._counter(
            "encoder_saved_seconds",
            "Encoder time that the saved passes would have cost, at the measured time per pass.",
        )
        self.head_runs = self._counter("head_runs", "Pictures that went through a head.", "head")
        self.head_busy_s = self._counter("head_busy_seconds", "Time that a head ran.", "head")
        self.head_errors = self._counter("head_errors", "Pictures on which a head failed.", "head")
        self.batch_size = self._histogram("batch_size", "Pictures in one encoder run.", BATCH_BUCKETS)
        self.batch_wait_s = self._seconds("batch_wait", "Of a batch: how long its oldest picture had waited.")
        self.input_pixels = self._counter("input_pixels", "Pixels that went into the encoder.")
        self.padding_pixels = self._counter("padding_pixels", "Those of them that are padding.")

    def _define_queue(self) -> None:
        self.pictures_inside = self._gauge("pictures_inside", "Pictures let in and not yet answered.")
        self.queue_pictures = self._gauge("queue_pictures", "Pictures that wait for the accelerator.")
        self.queue_bytes = self._gauge("queue_bytes", "Pixels that wait for the accelerator, in memory.")

    def _define_streams(self) -> None:
        self.streams_active = self._gauge("streams_active", "Streams that are open.")
        self.stream_state_bytes = self._gauge("stream_state_bytes", "What their heads remember between frames.")
        self.frames = self._counter("frames", "Frames answered, by reason where one failed, else ok.", "code")
        self.frames_dropped = self._counter("frames_dropped", "Frames that gave way to newer ones.")
        self.frame_age_s = self._seconds("frame_age", "Of a frame: from its arrival to its answer.")
        self.stream_evictions = self._counter(
            "stream_evictions", f"Streams that the server ended: {', '.join(EVICTIONS)}.", "code"
        )

    def _define_feature_cache(self) -> None:
        self.feature_cache_hits = self._counter("feature_cache_hits", "Features found in the cache.")
        self.feature_cache_misses = self._counter("feature_cache_misses", "Features not found there.")
        self.feature_cache_evictions = self._counter("feature_cache_evictions", "Features that gave way to others.")
        self.feature_cache_bytes = self._gauge("feature_cache_bytes", "Memory of the features in the cache.")
        self.feature_cache_entries = self._gauge("feature_cache_entries", "Features in the cache.")

    def _define_machine(self) -> None:
        self.gpus = self._gauge("gpus", "GPUs of the replicas.")
        self.gpu_memory_used_bytes = self._gauge("gpu_memory_used_bytes", "Their memory in use, by whomever.")
        self.gpu_memory_total_bytes = self._gauge("gpu_memory_total_bytes", "Their memory.")
        self.gpu_utilization_ratio = self._gauge(
            "gpu_utilization_ratio", "Part of the last moment in which they worked, 0 to 1; the mean over replicas."
        )
        self.process_cpu_s = self._counter("process_cpu_seconds", "Processor time of the replicas.")
        self.process_memory_bytes = self._gauge("process_memory_bytes", "Memory of the replicas (resident).")

    def _begin_at_zero(self, heads: Sequence[str]) -> None:
        """Make the series whose labels are known, so that rates and alerts see the first event."""
        statuses = sorted({kind.status for kind in _PROBLEMS})
        for route in HTTP_ROUTES:
            self._begin_route(route, (200, CLIENT_CLOSED, *statuses), timed=True)
        for route in SOCKET_ROUTES:
            self._begin_route(route, (SWITCHED, FORBIDDEN, *statuses), timed=False)
        names = sorted({kind.grpc_status for kind in _PROBLEMS})
        for route in GRPC_ROUTES:
            self._begin_route(route, ("OK", "CANCELLED", *names), timed=not route.endswith("SegmentVideo"))
        for head in heads:
            for family in (self.head_s, self.head_runs, self.head_busy_s, self.head_errors):
                family.labels(head)
        for kind in ("ok", *map(_reason, _PROBLEMS)):
            self.frames.labels(kind)
        for reason in EVICTIONS:
            self.stream_evictions.labels(reason)

    def _begin_route(self, route: str, codes: Iterable[str | int], *, timed: bool) -> None:
        for code in codes:
            self.requests.labels(route, str(code))
        for family in (self.shed, self.expired, self.cancelled, *((self.request_s,) if timed else ())):
            family.labels(route)
        for kind in _REJECTED:
            self.rejected.labels(route, _reason(kind))
        for kind in _FAILED:
            self.failed.labels(route, _reason(kind))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._add(Counter(f"polyhead_{name}", text, labels, registry=self.registry), labels, ("_total",))

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return self._add(Gauge(f"polyhead_{name}", text, labels, registry=self.registry), labels, ("",))

    def _seconds(self, name: str, text: str, *labels: str) -> Histogram:
        return self._histogram(f"{name}_seconds", text, STAGE_BUCKETS_S, *labels)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        made = Histogram(f"polyhead_{name}", text, labels, buckets=buckets, registry=self.registry)
        return self._add(made, labels, ("_bucket", "_count", "_sum"))

    def _count_run(self, report: PassReport) -> None:
        if report.batch_size:  # or else features of an earlier pass were read
            self.encoder_runs.inc()
            self.encoder_passes.inc(report.batch_size)
            self.encoder_busy_s.inc(report.encoder_s)
            self.batch_size.observe(report.batch_size)
            self._pass_s = report.encoder_s / report.batch_size
        saved = sum(report.head_rows.values()) - report.batch_size - self._unread_passes
        self._unread_passes = max(0, -saved)  # passes that no head has read yet: their first reader saves nothing
        self.encoder_passes_saved.inc(max(0, saved))
        self.encoder_saved_s.inc(max(0, saved) * self._pass_s)
        for task, seconds in report.heads_s.items():
            self.head_busy_s.labels(task).inc(seconds)
            self.head_runs.labels(task).inc(report.head_rows[task])

    def _add(self, made: Made, labels: tuple[str, ...], suffixes: tuple[str, ...]) -> Made:
        [family] = made.describe()
        name = family.name + ("_total" if family.type == "counter" else "")
        self.described.append(Described(name, family.type, labels, family.documentation))
        if labels and not isinstance(made, Gauge):
            self._adopting |= {family.name + suffix: made for suffix in suffixes}
        return made

    def _part(self, snapshot: Snapshot, family: Metric) -> Samples:
        """The samples of a snapshot that a family's are among."""
        if family.type != "gauge":
            return snapshot.counters
        return {"polyhead_info": snapshot.facts, "polyhead_gpu_utilization_ratio": snapshot.ratios}.get(
            family.name, snapshot.gauges
        )

    def _read_machine(self) -> None:
        with self._reading:
            times, before_s = self._process.cpu_times(), self._cpu_s
            self._cpu_s = times.user + times.system
            self.process_cpu_s.inc(max(0.0, self._cpu_s - before_s))
            self.process_memory_bytes.set(self._process.memory_info().rss)
            if self._device.type == "cuda":
                free, total = torch.cuda.mem_get_info(self._device)
                self.gpus.set(1)
                self.gpu_memory_used_bytes.set(total - free)
                self.gpu_memory_total_bytes.set(total)
                with suppress(pynvml.NVMLError):  # a slice of a GPU (MIG) does not tell
                    self.gpu_utilization_ratio.set(torch.cuda.utilization(self._device) / 100)


class _Totals(Collector):
    """The families of a registry with other values."""

    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families()


def route_of(scope: Mapping[str, Any]) -> str:
    """The route of a request over HTTP (an ASGI scope), under which it is counted."""
    return getattr(scope.get("route"), "path", "other")


def _reason(kind: type[PolyheadError]) -> str:
    return kind("", remedy="").reason


def _told(family: Metric) -> Iterator[Sample]:
    """The samples but for the times at which they were made, which nobody asks for."""
    return (sample for sample in family.samples if not sample.name.endswith("_created"))


def _key(sample: Sample) -> Key:
    return sample.name, tuple(sample.labels.items())


def _input_pixels(item: PassInput) -> int:
    views, _, height, width = item.pixels.shape
    return views * height * width


def _padding_pixels(item: PassInput) -> int:
    """Windows have none, for they lie within the scaled picture; nor has a picture whose features were there."""
    height, width = item.geometry.scaled_size
    return 0 if item.geometry.window_starts is not None else max(0, _input_pixels(item) - height * width)
