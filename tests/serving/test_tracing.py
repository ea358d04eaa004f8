"""Spans: one server span a request, a child for each stage, links within a batch, and no harm from a dead collector."""

from __future__ import annotations

import asyncio
import itertools
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind
from starlette.testclient import TestClient

from serving.bundles.loading import Bundle
from serving.gateways.grpc_gateway import GrpcGateway
from serving.gateways.http_gateway import create_app
from serving.oip.grpc_methods import OipMethods
from serving.protos import segmentation_pb2 as pb
from serving.service import SegmentationService
from serving.tracing import Tracer, create_tracer

MakeService = Callable[..., SegmentationService]
PNG = {"Content-Type": "image/png"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
STAGES = {"admission", "read", "decode", "preprocess", "queue", "encoder", "head depth", "postprocess", "render"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracer(provider, "tiny")


@pytest.fixture
def service(make_service: MakeService, tracer: Tracer) -> SegmentationService:
    made = make_service()
    made.tracer = tracer
    return made


@pytest.fixture
def client(service: SegmentationService) -> TestClient:
    return TestClient(create_app(service), raise_server_exceptions=False)


@pytest.fixture(scope="session")
def photo(encode_picture: Callable[..., bytes]) -> bytes:
    return encode_picture(60, 90)


class Context:
    """A call's context as grpc.aio has it."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata, self.trailers, self.code = metadata, [], None

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self.metadata

    def trailing_metadata(self) -> Sequence[tuple[str, Any]]:
        return self.trailers

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.trailers = list(metadata)

    def set_code(self, code: Any) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        pass


def server_spans(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.kind == SpanKind.SERVER]


def children(exporter: InMemorySpanExporter, parent: ReadableSpan) -> dict[str, ReadableSpan]:
    found = exporter.get_finished_spans()
    return {span.name: span for span in found if span.parent and span.parent.span_id == parent.context.span_id}


# One request


def test_a_request_over_http_is_one_server_span_with_a_child_for_each_stage(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    response = client.post("/segment?tasks=depth", content=photo, headers=PNG | {"X-Request-Id": "mine"})
    assert response.status_code == 200
    [server] = server_spans(exporter)
    assert server.name == "POST /segment"
    told = dict(server.attributes or {})
    assert {
        "http.request.method": "POST", "http.route": "/segment", "http.response.status_code": 200,
        "polyhead.request_id": "mine", "polyhead.bundle": "tiny", "polyhead.tasks": ("depth",),
        "polyhead.encoder_passes": 1,
    }.items() <= told.items()  # fmt: skip
    stages = children(exporter, server)
    assert stages.keys() == STAGES
    assert dict(stages["encoder"].attributes or {}) == {"polyhead.batch_size": 1}
    assert dict(stages["head depth"].attributes or {}) == {"polyhead.task": "depth", "polyhead.batch_size": 1}
    assert server.status.is_unset


def test_stages_follow_one_another_within_the_server_span(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    client.post("/segment?tasks=depth", content=photo, headers=PNG)
    [server] = server_spans(exporter)
    stages = children(exporter, server)
    order = ["read", "decode", "preprocess", "queue", "encoder", "head depth", "postprocess", "render"]
    slack_ns = 1_000_000  # of two clocks that are read one after the other
    times = [(stages[name].start_time or 0, stages[name].end_time or 0) for name in order]
    assert all(start <= end for start, end in times)
    assert all(ended <= begun + slack_ns for (_, ended), (begun, _) in itertools.pairwise(times))
    assert (server.start_time or 0) <= times[0][0] + slack_ns
    assert times[-1][1] <= (server.end_time or 0) + slack_ns


def test_kept_features_have_no_encoder_span(client: TestClient, exporter: InMemorySpanExporter, photo: bytes) -> None:
    kept = client.post("/features", content=photo, headers=PNG).json()["id"]
    client.post("/segment", params={"features": kept, "tasks": "depth"})
    first, second = server_spans(exporter)
    assert "encoder" in children(exporter, first)
    assert children(exporter, second).keys() == STAGES - {"encoder", "decode", "preprocess"}


def test_a_call_over_grpc_is_one_server_span(
    service: SegmentationService, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    gateway = GrpcGateway()
    gateway.service = service
    context = Context(("traceparent", PARENT), ("tracestate", "a=b"))
    response = asyncio.run(gateway.Segment(pb.SegmentRequest(image=photo, tasks=["depth"]), context))
    [server] = server_spans(exporter)
    assert server.name == "polyhead.v1.SegmentationService/Segment"
    told = dict(server.attributes or {})
    assert {"rpc.system": "grpc", "rpc.method": "Segment", "rpc.grpc.status_code": 0}.items() <= told.items()
    assert told["polyhead.request_id"] == response.request_id
    assert children(exporter, server).keys() == STAGES - {"read"}
    assert f"{server.context.trace_id:032x}" == TRACE
    trailers = dict(context.trailers)
    assert trailers["request_id"] == response.request_id
    assert trailers["traceparent"] == f"00-{TRACE}-{server.context.span_id:016x}-01"
    assert trailers["tracestate"] == "a=b"


def test_a_call_that_fails_keeps_its_trace_beside_its_status(
    service: SegmentationService, exporter: InMemorySpanExporter
) -> None:
    gateway = GrpcGateway()
    gateway.service = service
    context = Context(("traceparent", PARENT), ("request_id", "mine"))
    asyncio.run(gateway.Segment(pb.SegmentRequest(image=b"no picture"), context))
    [server] = server_spans(exporter)
    assert (server.attributes or {})["rpc.grpc.status_code"] == 3
    trailers = dict(context.trailers)
    assert trailers["reason"] == "invalid-image"
    assert trailers["request_id"] == "mine"
    assert trailers["traceparent"].startswith(f"00-{TRACE}-")


def test_the_inference_protocol_is_traced_too_but_not_its_probes(
    service: SegmentationService, exporter: InMemorySpanExporter
) -> None:
    from tritonclient.grpc import service_pb2

    methods = OipMethods()
    methods.service = service
    asyncio.run(methods.ServerReady(service_pb2.ServerReadyRequest(), Context()))
    asyncio.run(methods.ModelInfer(service_pb2.ModelInferRequest(model_name="nothing"), Context()))
    assert [span.name for span in server_spans(exporter)] == ["inference.GRPCInferenceService/ModelInfer"]


def test_probes_are_not_traced(client: TestClient, exporter: InMemorySpanExporter) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        client.get(path)
    assert exporter.get_finished_spans() == ()


# Failures


def test_a_failing_head_is_an_error_of_its_own_span(
    make_service: MakeService, make_bundle: Callable[..., Bundle], probe_head: Any, tracer: Tracer,
    exporter: InMemorySpanExporter, photo: bytes,
) -> None:  # fmt: skip
    def fail(*_: Any) -> None:
        raise RuntimeError("no luck")

    service = make_service(make_bundle(broken=probe_head(on_call=fail)))
    service.tracer = tracer
    client = TestClient(create_app(service), raise_server_exceptions=False)
    client.post("/segment?tasks=broken,depth", content=photo, headers=PNG)
    [server] = server_spans(exporter)
    stages = children(exporter, server)
    assert not stages["head broken"].status.is_ok and not stages["head broken"].status.is_unset
    assert (stages["head broken"].attributes or {})["error.type"] == "head-failed"
    assert stages["head depth"].status.is_unset
    assert server.status.is_unset  # the answer is a good one


@pytest.mark.parametrize(("body", "failed"), [(b"no picture", False), (None, True)])
def test_only_the_servers_own_failures_are_errors_of_the_server_span(
    service: SegmentationService, client: TestClient, exporter: InMemorySpanExporter, photo: bytes,
    monkeypatch: pytest.MonkeyPatch, body: bytes | None, failed: bool,
) -> None:  # fmt: skip
    def fail(*_: Any) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(service.engine.bundle.encoder, "forward", fail)
    client.post("/segment", content=body or photo, headers=PNG)
    [server] = server_spans(exporter)
    assert server.status.is_unset is not failed
    if failed:
        assert (server.attributes or {})["error.type"] == "encoder-failed"
        assert not children(exporter, server)["encoder"].status.is_unset


# Parents


def test_the_callers_trace_goes_on_and_our_span_is_the_new_parent(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    response = client.post("/segment", content=photo, headers=PNG | {"traceparent": PARENT, "tracestate": "a=b"})
    [server] = server_spans(exporter)
    assert server.parent is not None and f"{server.parent.span_id:016x}" == "b7ad6b7169203331"
    assert response.headers["traceparent"] == f"00-{TRACE}-{server.context.span_id:016x}-01"
    assert response.headers["tracestate"] == "a=b"


def test_without_a_parent_the_answer_tells_the_trace_that_was_begun(
    client: TestClient, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    given = client.post("/segment", content=photo, headers=PNG).headers["traceparent"]
    [server] = server_spans(exporter)
    assert given.split("-")[1:3] == [f"{server.context.trace_id:032x}", f"{server.context.span_id:016x}"]


@pytest.mark.parametrize("tracing", ["off", "not sampled"])
def test_trace_headers_are_given_back_unchanged_where_nothing_is_recorded(
    make_service: MakeService, photo: bytes, exporter: InMemorySpanExporter, tracing: str
) -> None:
    service = make_service()
    if tracing == "not sampled":
        provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        service.tracer = Tracer(provider, "tiny")
    headers = {"traceparent": PARENT, "tracestate": "a=b"}
    response = TestClient(create_app(service)).post("/segment", content=photo, headers=PNG | headers)
    assert {name: response.headers[name] for name in headers} == headers
    assert exporter.get_finished_spans() == ()


# Batches and streams


def test_requests_that_shared_an_encoder_run_are_linked(
    make_service: MakeService, tracer: Tracer, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    service = make_service(max_wait_ms=60_000, max_batch_size=2)
    service.tracer = tracer
    gateway = GrpcGateway()
    gateway.service = service

    async def both() -> None:
        requests = [pb.SegmentRequest(image=photo, tasks=[task]) for task in ("depth", "panoptic")]
        await asyncio.gather(*(gateway.Segment(request, Context()) for request in requests))

    asyncio.run(both())
    first, second = server_spans(exporter)
    for server, other in ((first, second), (second, first)):
        encoder = children(exporter, server)["encoder"]
        assert (encoder.attributes or {})["polyhead.batch_size"] == 2
        assert [link.context.span_id for link in encoder.links] == [other.context.span_id]


def test_a_stream_is_one_span_with_a_child_for_each_frame(
    service: SegmentationService, exporter: InMemorySpanExporter, photo: bytes
) -> None:
    gateway = GrpcGateway()
    gateway.service = service

    async def requests() -> AsyncIterator[pb.VideoRequest]:
        yield pb.VideoRequest(config=pb.VideoConfig(tasks=["depth"]))
        for number in range(3):
            yield pb.VideoRequest(frame=pb.VideoFrame(frame_id=number, data=photo if number != 1 else b"no picture"))

    async def stream() -> list[Any]:
        return [answer async for answer in gateway.SegmentVideo(requests(), Context())]

    assert len(asyncio.run(stream())) == 3
    [server] = server_spans(exporter)
    assert server.name == "polyhead.v1.SegmentationService/SegmentVideo"
    assert (server.attributes or {})["polyhead.encoder_passes"] == 2
    frames = [span for span in exporter.get_finished_spans() if span.name == "frame"]
    assert all(frame.parent and frame.parent.span_id == server.context.span_id for frame in frames)
    frames.sort(key=lambda span: str((span.attributes or {})["polyhead.frame_id"]))
    assert [(span.attributes or {}).get("error.type") for span in frames] == [None, "invalid-image", None]
    for frame in (frames[0], frames[2]):
        assert (frame.attributes or {})["polyhead.encoder_passes"] == 1
        assert children(exporter, frame).keys() == STAGES - {"admission", "read", "render"}


def test_a_web_socket_is_one_span(client: TestClient, exporter: InMemorySpanExporter, photo: bytes) -> None:
    with client.websocket_connect("/video") as ws:
        ws.send_json({"tasks": ["depth"]})
        ws.receive_json()
        ws.send_bytes(bytes(16) + photo)
        assert "depth" in ws.receive_json()["results"]
        ws.send_json({"end": True})
        ws.receive()
    [server] = server_spans(exporter)
    assert server.name == "GET /video"
    assert (server.attributes or {})["http.response.status_code"] == 101
    assert [name for name in children(exporter, server) if name == "frame"] == ["frame"]


# The collector


def test_without_an_endpoint_there_is_no_tracer_and_nothing_is_loaded() -> None:
    assert create_tracer("tiny", {}) is None
    assert create_tracer("tiny", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}) is None
    script = (
        "import sys, serving.tracing, serving.service, serving.gateways.http_gateway\n"
        "assert serving.tracing.create_tracer('tiny', {}) is None\n"
        "assert not {'opentelemetry.sdk', 'opentelemetry.exporter'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


class _Receiver(HTTPServer):
    """A collector of one path that keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.paths: list[str] = []
        self.received: list[ExportTraceServiceRequest] = []
        self.got = threading.Event()


class _Take(BaseHTTPRequestHandler):
    server: _Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.paths.append(self.path)
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()
        self.server.got.set()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[_Receiver]:
    server = _Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", [None, "pictures"])
def test_spans_reach_a_collector_over_otlp(
    receiver: _Receiver, make_service: MakeService, photo: bytes, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_port}"}
    environment |= {"OTEL_SERVICE_NAME": name} if name else {}
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    service = make_service()
    service.tracer = create_tracer("tiny", environment)
    TestClient(create_app(service)).post("/segment?tasks=depth", content=photo, headers=PNG)
    service.drain()
    assert receiver.got.wait(30)
    assert receiver.paths == ["/v1/traces"]
    [told] = receiver.received
    [resource] = told.resource_spans
    attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert attributes["service.name"] == (name or "polyhead")
    assert {span.name for scope in resource.scope_spans for span in scope.spans} == STAGES | {"POST /segment"}


def test_a_collector_that_is_not_there_fails_no_request(
    make_service: MakeService, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
        service = make_service()
        service.tracer = create_tracer("tiny", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint})
        client = TestClient(create_app(service))
        codes = [client.post("/segment", content=photo, headers=PNG).status_code for _ in range(4)]
        assert codes == [200] * 4
        service.drain()
