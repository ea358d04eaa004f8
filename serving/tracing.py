"""OpenTelemetry spans of requests, sent by OTLP where the standard variables name a collector.

One server span a request, with a child for each stage; a stream's has a child for each frame, and that one the stages.
Stages are measured anyway, so their spans are made afterwards, from the times. OpenTelemetry's SDK is imported only if
there is somewhere to send spans.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from serving.errors import PolyheadError

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    from serving.engine import PassOutput

AttributeValue = str | int | float | bool | Sequence[str]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_LAST_EXPORT_S = 3.0
"""How long a stopping replica may take to send its last spans."""


class Span:
    """A span of ours that is recorded.

    Args:
        tracer: makes its children.
        span: started.
    """

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    @property
    def headers(self) -> dict[str, str]:
        """`traceparent` and, if there is one, `tracestate`, for whoever is to be a child of this span."""
        context = self._span.get_span_context()
        headers = {"traceparent": f"00-{self.trace_id}-{context.span_id:016x}-{context.trace_flags:02x}"}
        return headers | ({"tracestate": context.trace_state.to_header()} if context.trace_state else {})

    def set(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Add attributes."""
        self._span.set_attributes(attributes)

    def child(
        self,
        name: str,
        begun_s: float,
        attributes: Mapping[str, AttributeValue] | None = None,
        links: Iterable[Span] = (),
    ) -> Span:
        """A span within this one that is still to be ended.

        Args:
            name: of few different ones.
            begun_s: on `time.perf_counter`.
            attributes: of it.
            links: spans of other requests that it worked for as well.
        """
        from opentelemetry import trace

        return Span(
            self._tracer,
            self._tracer.start_span(
                name,
                trace.set_span_in_context(self._span),
                attributes=attributes,
                links=[trace.Link(other._span.get_span_context()) for other in links],
                start_time=_epoch_ns(begun_s),
            ),
        )

    def stage(
        self,
        name: str,
        begun_s: float,
        ended_s: float,
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        links: Iterable[Span] = (),
        error: BaseException | None = None,
    ) -> None:
        """A span within this one that is over; arguments as in `child` and `end`."""
        self.child(name, begun_s, attributes, links).end(error, ended_s)

    def pass_stages(self, output: PassOutput, queue_s: float, siblings: Iterable[Span]) -> None:
        """The stages of one pass: queue, encoder and heads.

        Args:
            output: what this request's picture got from it.
            queue_s: how long the picture had waited.
            siblings: of the other requests that shared the encoder's run.
        """
        report = output.report
        at_s = report.began_s
        self.stage("queue", at_s - queue_s, at_s)
        size = {"polyhead.batch_size": report.batch_size}
        if report.encoder_s or output.encoder_error:
            self.stage("encoder", at_s, at_s + report.encoder_s, size, links=siblings, error=output.encoder_error)
        at_s += report.encoder_s
        for task, seconds in report.heads_s.items():  # in the order in which they ran, one right after the other
            if task in output.raw or task in output.errors:
                attributes: dict[str, AttributeValue] = {
                    "polyhead.task": task,
                    "polyhead.batch_size": report.head_rows[task],
                }
                self.stage(f"head {task}", at_s, at_s + seconds, attributes, error=output.errors.get(task))
            at_s += seconds

    def end(self, error: BaseException | None = None, ended_s: float | None = None, *, name: str | None = None) -> None:
        """End it.

        Args:
            error: that ended the work; the span's status tells it.
            ended_s: on `time.perf_counter`; None: now.
            name: a better one, known only now.
        """
        from opentelemetry.trace import Status, StatusCode

        if name is not None:
            self._span.update_name(name)
        if error is not None:
            self._span.set_attribute(
                "error.type", error.reason if isinstance(error, PolyheadError) else type(error).__name__
            )
            self._span.set_status(Status(StatusCode.ERROR, str(error)))
        self._span.end(None if ended_s is None else _epoch_ns(ended_s))


class Tracer:
    """Begins the server spans of one replica.

    Args:
        provider: of the SDK.
        bundle: name of the loaded bundle, an attribute of every server span.
    """

    def __init__(self, provider: TracerProvider, bundle: str) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("polyhead", version("polyhead"))
        self._bundle = bundle

    def begin(
        self, name: str, request_id: str, given: Mapping[str, str], attributes: Mapping[str, AttributeValue]
    ) -> Span | None:
        """The server span of a request that begins now; None if the sampler does not want it.

        Args:
            name: may be bettered at the end.
            request_id: an attribute.
            given: trace headers that came with the request; its parent, if they are valid.
            attributes: of the protocol.
        """
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        span = self._tracer.start_span(
            name,
            TraceContextTextMapPropagator().extract(dict(given)),
            SpanKind.SERVER,
            {**attributes, "polyhead.request_id": request_id, "polyhead.bundle": self._bundle},
        )
        return Span(self._tracer, span) if span.is_recording() else None

    def shutdown(self) -> None:
        """Send what is left, for a while; nobody waits long for a collector that does not answer."""
        sender = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sender.start()
        sender.join(_LAST_EXPORT_S)


def create_tracer(bundle: str, environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """The tracer that the standard variables ask for; None if they name no collector.

    Args:
        bundle: name of the loaded bundle.
        environment: of which the endpoints and OTEL_SDK_DISABLED are read here; the SDK reads its others itself.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or not any(map(environment.get, _ENDPOINTS)):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    ours = {SERVICE_NAME: "polyhead", SERVICE_VERSION: version("polyhead")}
    told = Resource.create().attributes
    if not str(told[SERVICE_NAME]).startswith("unknown_service"):
        del ours[SERVICE_NAME]
    # No `shutdown_on_exit`: at the end of a process it waits half a minute for a collector that does not answer.
    provider = TracerProvider(resource=Resource.create(ours), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracer(provider, bundle)


def _epoch_ns(at_s: float) -> int:
    """A time on `time.perf_counter` as nanoseconds since 1970."""
    return time.time_ns() - round(1e9 * (time.perf_counter() - at_s))
