"""gRPC: what is answered over a real connection, how failures are told, and that a stream leaves nothing behind.

The server is grpc.aio's own, in this process; Ray Serve's stands in test_server.py.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from decoders.embedding import DenseEmbeddingDecoder, EmbeddingDecoder
from decoders.instance import InstanceDecoder
from decoders.labels import load_label_set
from decoders.linear_classification import LinearClassificationDecoder
from decoders.results import PanopticResult
from decoders.semantic import SemanticDecoder
from decoders.video import VideoPanopticDecoder
from serving.bundles.loading import Bundle
from serving.errors import (
    InvalidImageError,
    InvalidOptionError,
    OverloadedError,
    PolyheadError,
    StreamEvictedError,
    TooLargeError,
    UnavailableError,
    UnsupportedTaskError,
)
from serving.gateways import grpc_gateway
from serving.gateways.grpc_gateway import SERVICER_FUNCTIONS, GrpcGateway
from serving.gateways.grpc_messages import parse_prediction, parse_problem
from serving.grpc_status import set_status
from serving.protos import segmentation_pb2 as pb
from serving.protos.segmentation_pb2_grpc import SegmentationServiceStub, add_SegmentationServiceServicer_to_server
from serving.service import SegmentationService
from serving.streams.stream import VideoStream

Value = TypeVar("Value")
MakeService = Callable[..., SegmentationService]
EncodePicture = Callable[..., bytes]
REPOSITORY = Path(__file__).parents[3]
STREAMS = "/polyhead.v1.SegmentationService/SegmentVideo"
SMALL_WINDOWS = (("grpc.http2.lookahead_bytes", 2**16), ("grpc.http2.bdp_probe", 0))
"""Options of a connection that holds little, so that back-pressure is felt soon."""


@pytest.fixture
def service(make_service: MakeService) -> SegmentationService:
    return make_service()


@pytest.fixture
def video_service(make_bundle: Callable[..., Bundle], make_service: MakeService) -> SegmentationService:
    """A service with a head "video" that carries its queries from frame to frame."""
    labels = load_label_set("coco_supercategories")
    sizes: dict[str, Any] = {"out_indices": (0, 2), "num_queries": 8, "num_blocks": 1}
    thresholds = {"score_threshold": 0, "overlap_threshold": 0}
    head = VideoPanopticDecoder(make_bundle().encoder.spec, label_set=labels, **sizes, **thresholds)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.ndim > 1:
                scale = 3.0 if name.endswith("queries") else 2 / parameter[0].numel() ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        head.mask_decoder.class_head.bias[-1] = -1e4  # never "no object"
    return make_service(make_bundle(video=head.eval().requires_grad_(False)))


@dataclass
class Peer:
    """A server's client."""

    port: int
    service: SegmentationService
    stub: SegmentationServiceStub
    health: health_pb2_grpc.HealthStub

    def open(self, metadata: Any = (), **config: Any) -> Stream:
        """A stream whose config was sent."""
        stream = Stream(self.stub.SegmentVideo(metadata=metadata))
        stream.send(pb.VideoRequest(config=pb.VideoConfig(**config)))
        return stream

    async def freed(self) -> None:
        """Wait until no stream and no call is left."""
        while len(self.service.streams) or [t for t in asyncio.all_tasks() if t.get_name() in _OURS]:
            await asyncio.sleep(0.001)


_OURS = {"video stream", "frames of a call", "end of a call"}


class Stream:
    """One call of SegmentVideo; what is sent waits for its turn, so no test blocks on a server that does not read."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._queue: asyncio.Queue[pb.VideoRequest | None] = asyncio.Queue()
        self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        try:
            while (request := await self._queue.get()) is not None:
                await self.call.write(request)
            await self.call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the call is over, as reading says

    def send(self, request: pb.VideoRequest | None) -> None:
        self._queue.put_nowait(request)

    def frame(self, frame_id: int, data: bytes = b"", **fields: Any) -> None:
        self.send(pb.VideoRequest(frame=pb.VideoFrame(frame_id=frame_id, data=data, **fields)))

    def end(self) -> None:
        """No frame will follow."""
        self.send(None)

    async def read(self) -> pb.VideoResponse:
        response = await self.call.read()
        assert response is not grpc.aio.EOF, "the stream has ended"
        return response

    async def rest(self) -> list[pb.VideoResponse]:
        """All answers until the end of the stream."""
        return await rest(self.call)


async def rest(call: Any) -> list[Any]:
    """All answers of a call that are still to come; gRPC does not let one iterate after a `read`."""
    answers = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        answers.append(answer)
    return answers


@asynccontextmanager
async def served(service: SegmentationService) -> AsyncIterator[Peer]:
    """A server on a free port and a client of it."""
    gateway = GrpcGateway()
    gateway.service = service
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 100 * 2**20), *SMALL_WINDOWS])
    add_SegmentationServiceServicer_to_server(gateway, server)
    health_pb2_grpc.add_HealthServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=SMALL_WINDOWS) as channel:
            yield Peer(port, service, SegmentationServiceStub(channel), health_pb2_grpc.HealthStub(channel))
    finally:
        await server.stop(None)


def run(service: SegmentationService, scenario: Callable[[Peer], Coroutine[Any, Any, Value]]) -> Value:
    """Play a scenario against a server; fails instead of hanging."""

    async def play() -> Value:
        async with served(service) as peer, asyncio.timeout(60):
            return await scenario(peer)

    return asyncio.run(play())


async def failure(work: Awaitable[Any]) -> tuple[grpc.aio.AioRpcError, PolyheadError]:
    """The status of a call that fails, and the problem in its trailers."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await work
    error = failed.value
    trailers = dict(error.trailing_metadata() or ())
    problem = parse_problem(pb.Problem.FromString(trailers["problem-bin"]))
    assert trailers["reason"] == problem.reason
    assert error.code().name == problem.grpc_status
    assert error.details() == f"{problem.detail}; {problem.remedy}"
    assert problem.remedy
    return error, problem


def ids(responses: Iterable[pb.VideoResponse]) -> list[int]:
    return [response.frame_id for response in responses]


def sample(service: SegmentationService, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


# Health


def test_health_follows_the_service(service: SegmentationService) -> None:
    async def scenario(peer: Peer) -> list[int]:
        asked = [health_pb2.HealthCheckRequest(service=name) for name in ("", "polyhead.v1.SegmentationService")]
        said = [(await peer.health.Check(each)).status for each in asked]
        await asyncio.to_thread(service.drain)
        return said + [(await peer.health.Check(each)).status for each in asked]

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert run(service, scenario) == [serving, serving, not_serving, not_serving]


def test_health_of_a_service_that_is_not_here_is_not_found(service: SegmentationService) -> None:
    async def scenario(peer: Peer) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await peer.health.Check(health_pb2.HealthCheckRequest(service="no.Such"))
        return failed.value

    error = run(service, scenario)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "no.Such" in (error.details() or "")


def test_a_watcher_is_told_that_the_replica_stops_and_the_watch_ends(
    service: SegmentationService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_gateway, "_WATCH_PERIOD_S", 0.01)

    async def scenario(peer: Peer) -> list[int]:
        watch = peer.health.Watch(health_pb2.HealthCheckRequest())
        first = await watch.read()
        service.streams.end_all()
        return [first.status, *[each.status for each in await rest(watch)]]

    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert run(service, scenario) == [serving, not_serving]


def test_a_watcher_of_what_is_not_here_is_told(service: SegmentationService) -> None:
    async def scenario(peer: Peer) -> int:
        watch = peer.health.Watch(health_pb2.HealthCheckRequest(service="no.Such"))
        return int((await watch.read()).status)

    assert run(service, scenario) == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_every_servicer_function_can_be_imported_and_finds_its_methods() -> None:
    class Recorder:
        def add_generic_rpc_handlers(self, handlers: Any) -> None:
            for handler in handlers:
                names.extend(handler._method_handlers)

        def add_registered_method_handlers(self, name: str, handlers: Any) -> None:
            pass

    names: list[str] = []
    for path in SERVICER_FUNCTIONS:
        module, _, name = path.rpartition(".")
        getattr(importlib.import_module(module), name)(GrpcGateway(), Recorder())
    assert {"/polyhead.v1.SegmentationService/SegmentVideo", "/grpc.health.v1.Health/Watch"} <= set(names)


@pytest.mark.parametrize("name", ["Check", "Watch", "Segment", "SegmentVideo"])
def test_ray_serve_sees_that_a_method_wants_the_context(name: str) -> None:
    assert "grpc_context" in inspect.signature(getattr(GrpcGateway, name)).parameters


# Segment


def test_a_picture_gets_the_results_that_the_engine_gives(
    service: SegmentationService, encode_picture: EncodePicture
) -> None:
    picture = encode_picture()
    response = run(service, lambda peer: peer.stub.Segment(pb.SegmentRequest(image=picture)))
    [expected] = service.engine.predict(picture)
    answer = parse_prediction(response)
    assert answer.results.keys() == {"panoptic", "depth"}  # the bundle's default
    mine, other = answer.results["panoptic"], expected.results["panoptic"]
    assert isinstance(mine, PanopticResult) and isinstance(other, PanopticResult)
    np.testing.assert_array_equal(mine.segment_map, other.segment_map)
    assert [s.segment_id for s in mine.segments] == [s.segment_id for s in other.segments]
    assert (answer.image_size, response.bundle, len(answer.errors)) == ((60, 90), "tiny", 0)
    assert answer.timing.encoder_passes == 1
    assert answer.timing.heads_ms.keys() == {"panoptic", "depth"}
    assert sample(service, "polyhead_requests_total", route="/polyhead.v1.SegmentationService/Segment", code="OK") == 1


def test_every_kind_of_head_answers(
    make_bundle: Callable[..., Bundle], make_service: MakeService, encode_picture: EncodePicture
) -> None:
    spec, labels = make_bundle().encoder.spec, load_label_set("coco_supercategories")
    mask_sizes: dict[str, Any] = {"label_set": labels, "out_indices": (0, 2), "num_queries": 4, "num_blocks": 1}
    heads: dict[str, Any] = {
        "instance": InstanceDecoder(spec, score_threshold=0, **mask_sizes),
        "semantic": SemanticDecoder(spec, **mask_sizes),
        "classification": LinearClassificationDecoder(spec, label_set=labels, out_indices=(2,)),
        "embedding": EmbeddingDecoder(spec),
        "dense_embedding": DenseEmbeddingDecoder(spec),
    }
    kinds = {"panoptic": "panoptic", "depth": "depth"} | {task: task for task in heads}
    service = make_service(make_bundle(**{task: head.eval().requires_grad_(False) for task, head in heads.items()}))
    request = pb.SegmentRequest(image=encode_picture(), tasks=list(kinds))
    response = run(service, lambda peer: peer.stub.Segment(request))
    assert not response.errors, response.errors
    assert {task: result.WhichOneof("kind") for task, result in response.results.items()} == kinds
    [expected] = service.engine.predict(request.image, list(kinds))
    for task, result in parse_prediction(response).results.items():
        assert type(result) is type(expected.results[task])


def test_options_are_heeded(service: SegmentationService, encode_picture: EncodePicture) -> None:
    options = pb.Options(max_side=45, masks=pb.MASK_FORMAT_POLYGON)
    request = pb.SegmentRequest(image=encode_picture(), tasks=["panoptic"], options=options)
    response = run(service, lambda peer: peer.stub.Segment(request))
    panoptic = response.results["panoptic"].panoptic
    assert (panoptic.size.height, panoptic.size.width) == (30, 45)
    assert panoptic.segments
    assert {segment.WhichOneof("mask") for segment in panoptic.segments} == {"polygons"}


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"image": b"no picture"}, InvalidImageError, "are no image"),
        ({"image": bytes(200_001)}, TooLargeError, "over 200,000 bytes"),
        ({"tasks": ["panoptc"]}, UnsupportedTaskError, "no head for 'panoptc'; loaded: depth, panoptic"),
        ({"options": pb.Options(mask_threshold=7)}, InvalidOptionError, "mask_threshold=7"),
        ({"timeout_s": -1}, InvalidOptionError, "timeout_s=-1"),
    ],
)
def test_what_is_wrong_with_a_request_is_its_status(
    service: SegmentationService,
    encode_picture: EncodePicture,
    fields: dict[str, Any],
    kind: type[PolyheadError],
    words: str,
) -> None:
    request = pb.SegmentRequest(**({"image": encode_picture()} | fields))
    _, problem = run(service, lambda peer: failure(peer.stub.Segment(request)))
    assert type(problem) is kind
    assert words in problem.detail
    route = "/polyhead.v1.SegmentationService/Segment"
    assert sample(service, "polyhead_rejected_total", route=route, code=problem.reason) == 1
    assert sample(service, "polyhead_cancelled_total", route=route) == 0
    assert sample(service, "polyhead_pictures_inside") == 0


def test_a_full_server_says_when_to_come_again(make_service: MakeService, encode_picture: EncodePicture) -> None:
    service = make_service(gated=True, max_pictures_inside=1)
    gate: Any = service.engine.run_pass
    request = pb.SegmentRequest(image=encode_picture())

    async def scenario(peer: Peer) -> tuple[grpc.aio.AioRpcError, PolyheadError]:
        inside = peer.stub.Segment(request)
        assert await asyncio.to_thread(gate.entered.wait, 30)
        told = await failure(peer.stub.Segment(request))
        gate.opened.set()
        await inside
        return told

    error, problem = run(service, scenario)
    assert isinstance(problem, OverloadedError)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata() or ())["retry-after-s"] == "1"
    assert problem.retry_after_s == 1


def test_a_deadline_in_the_message_is_kept(make_service: MakeService, encode_picture: EncodePicture) -> None:
    service = make_service(gated=True)
    request = pb.SegmentRequest(image=encode_picture(), timeout_s=0.05)
    error, problem = run(service, lambda peer: failure(peer.stub.Segment(request)))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.05 s" in problem.detail


def test_a_cancelled_call_leaves_its_place(make_service: MakeService, encode_picture: EncodePicture) -> None:
    service = make_service(gated=True)
    gate: Any = service.engine.run_pass

    async def scenario(peer: Peer) -> None:
        call = peer.stub.Segment(pb.SegmentRequest(image=encode_picture()))
        assert await asyncio.to_thread(gate.entered.wait, 30)
        call.cancel()
        while service.admission.inside:
            await asyncio.sleep(0.001)

    run(service, scenario)
    route = "/polyhead.v1.SegmentationService/Segment"
    assert sample(service, "polyhead_requests_total", route=route, code="CANCELLED") == 1
    assert sample(service, "polyhead_cancelled_total", route=route) == 1


def test_one_head_that_fails_is_told_beside_the_results_of_the_others(
    make_bundle: Callable[..., Bundle], make_service: MakeService, probe_head: Any, encode_picture: EncodePicture
) -> None:
    def explode(features: Any, raw: Any) -> None:
        raise RuntimeError("boom")

    service = make_service(make_bundle(probe=probe_head(on_call=explode)))
    request = pb.SegmentRequest(image=encode_picture(), tasks=["probe", "depth"])
    response = run(service, lambda peer: peer.stub.Segment(request))
    assert set(response.results) == {"depth"}
    assert response.errors["probe"].type == "urn:polyhead:problem:head-failed"
    alone = pb.SegmentRequest(image=encode_picture(), tasks=["probe"])
    _, problem = run(service, lambda peer: failure(peer.stub.Segment(alone)))
    assert problem.reason == "head-failed"


def test_a_bug_is_an_internal_error_that_tells_nothing_of_our_insides(
    service: SegmentationService, encode_picture: EncodePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(grpc_gateway, "segment_response", explode)
    error, problem = run(service, lambda peer: failure(peer.stub.Segment(pb.SegmentRequest(image=encode_picture()))))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "KeyError" in problem.detail
    assert "secret" not in (error.details() or "")


@pytest.mark.parametrize("given", ["mine-1", None])
def test_the_request_s_id_is_given_back_in_the_answer_and_in_the_trailers(
    service: SegmentationService, encode_picture: EncodePicture, given: str | None
) -> None:
    metadata = () if given is None else (("request_id", given),)

    async def scenario(peer: Peer) -> tuple[str, Any]:
        call = peer.stub.Segment(pb.SegmentRequest(image=encode_picture()), metadata=metadata)
        return (await call).request_id, dict(await call.trailing_metadata())["request_id"]

    answered, trailed = run(service, scenario)
    assert answered == trailed
    assert answered == given if given else len(answered) == 32


def test_a_failed_call_s_trailers_keep_the_request_s_id(service: SegmentationService) -> None:
    request = pb.SegmentRequest(image=b"x")
    error, _ = run(service, lambda peer: failure(peer.stub.Segment(request, metadata=(("request_id", "mine-2"),))))
    assert dict(error.trailing_metadata() or ())["request_id"] == "mine-2"


class HostContext:
    """A context that keeps the host's request id whatever is set, as Ray Serve's does."""

    def __init__(self) -> None:
        self.trailers: list[tuple[str, Any]] = [("request_id", "host-1")]
        self.code: Any = None
        self.details = ""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("request_id", "client-1")]

    def trailing_metadata(self) -> list[tuple[str, Any]]:
        return self.trailers

    def set_trailing_metadata(self, metadata: list[tuple[str, Any]]) -> None:
        self.trailers = [("request_id", "host-1"), *metadata]

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


def test_the_id_that_the_host_gave_counts_and_is_sent_once(
    service: SegmentationService, encode_picture: EncodePicture
) -> None:
    gateway, good, bad = GrpcGateway(), HostContext(), HostContext()
    gateway.service = service
    response = asyncio.run(gateway.Segment(pb.SegmentRequest(image=encode_picture()), good))
    asyncio.run(gateway.Segment(pb.SegmentRequest(image=b"x"), bad))
    assert response.request_id == "host-1"
    assert good.code is None
    assert bad.code is grpc.StatusCode.INVALID_ARGUMENT
    for context in (good, bad):
        assert [value for name, value in context.trailers if name == "request_id"] == ["host-1"]


def test_a_status_stays_within_what_trailers_hold() -> None:
    context = HostContext()
    set_status(context, UnsupportedTaskError("é" * 100_000, remedy="ü" * 100_000, retry_after_s=0.2))
    size = 3 * len(context.details.encode()) + sum(len(name) + 4 * len(value) / 3 for name, value in context.trailers)
    assert size < 8000
    assert context.details.endswith("…")
    assert dict(context.trailers)["retry-after-s"] == "1"


# SegmentVideo: answers


def test_frames_are_answered_in_their_order_with_what_was_sent(
    service: SegmentationService, encode_picture: EncodePicture
) -> None:
    pictures = [encode_picture(seed=seed) for seed in range(5)]

    async def scenario(peer: Peer) -> list[pb.VideoResponse]:
        stream = peer.open(tasks=["panoptic"])
        for number, picture in enumerate(pictures):
            stream.frame(100 - number, picture, captured_at_us=2**63 + number)
        stream.end()
        return await stream.rest()

    responses = run(service, scenario)
    assert ids(responses) == [100, 99, 98, 97, 96]
    for number, (response, picture) in enumerate(zip(responses, pictures, strict=True)):
        assert response.captured_at_us == 2**63 + number
        assert response.age_ms >= response.timing.total_ms > 0
        assert response.dropped_since_last == 0
        [expected] = service.engine.predict(picture, ["panoptic"])
        mine, other = parse_prediction(response).results["panoptic"], expected.results["panoptic"]
        assert isinstance(mine, PanopticResult) and isinstance(other, PanopticResult)
        np.testing.assert_array_equal(mine.segment_map, other.segment_map)
    assert sample(service, "polyhead_requests_total", route=STREAMS, code="OK") == 1


def test_raw_frames_may_change_their_size(service: SegmentationService, draw_picture: Callable[..., Any]) -> None:
    async def scenario(peer: Peer) -> list[pb.VideoResponse]:
        stream = peer.open(frame_format=pb.FRAME_FORMAT_RGB24, options=pb.Options(masks=pb.MASK_FORMAT_NONE))
        for number, (height, width) in enumerate([(40, 60), (30, 20), (40, 60)]):
            stream.frame(number, draw_picture(height, width).tobytes(), height=height, width=width)
        stream.frame(3, b"abc")
        stream.end()
        return await stream.rest()

    *responses, without_size = run(service, scenario)
    assert [(r.image.height, r.image.width) for r in responses] == [(40, 60), (30, 20), (40, 60)]
    segments = responses[0].results["panoptic"].panoptic.segments
    assert {segment.WhichOneof("mask") for segment in segments} == {None}
    assert "without height and width" in without_size.error.detail


def track_ids(responses: Iterable[pb.VideoResponse]) -> list[list[tuple[int, int, int]]]:
    return [
        [(s.segment_id, s.label_id, s.track_id) for s in response.results["video"].panoptic.segments]
        for response in responses
    ]


def test_two_streams_at_once_get_what_each_gets_alone(
    video_service: SegmentationService, encode_picture: EncodePicture
) -> None:
    clips = [[encode_picture(seed=10 * clip + number) for number in range(4)] for clip in range(2)]

    async def play(peer: Peer, clip: list[bytes]) -> list[pb.VideoResponse]:
        stream = peer.open(tasks=["video"])
        for number, picture in enumerate(clip):
            stream.frame(number, picture)
        stream.end()
        return await stream.rest()

    async def scenario(peer: Peer) -> tuple[list[Any], list[Any]]:
        alone = [await play(peer, clip) for clip in clips]
        return alone, list(await asyncio.gather(*(play(peer, clip) for clip in clips)))

    alone, together = run(video_service, scenario)
    for mine, other in zip(together, alone, strict=True):
        assert ids(mine) == [0, 1, 2, 3]
        assert track_ids(mine) == track_ids(other)
        assert any(track for frame in track_ids(mine) for *_, track in frame)
    assert track_ids(alone[0]) != track_ids(alone[1])


def test_a_cancelled_stream_frees_its_state_and_its_place_starts_anew(
    video_service: SegmentationService, encode_picture: EncodePicture
) -> None:
    limited = video_service.settings.model_copy(update={"max_streams": 1})
    video_service.settings = limited
    first, second = encode_picture(seed=1), encode_picture(seed=2)

    async def scenario(peer: Peer) -> tuple[Any, Any, PolyheadError]:
        fresh = peer.open(tasks=["video"])
        fresh.frame(0, second)
        expected = await fresh.read()
        fresh.end()
        await fresh.rest()
        left = peer.open(tasks=["video"])
        for number in range(3):
            left.frame(number, first)
            await left.read()
        assert peer.service.streams.state_bytes > 0
        _, refused = await failure(peer.open(tasks=["video"]).read())
        assert not sample(video_service, "polyhead_requests_total", route=STREAMS, code="CANCELLED")
        left.call.cancel()
        await peer.freed()
        assert peer.service.streams.state_bytes == 0
        assert sample(video_service, "polyhead_requests_total", route=STREAMS, code="CANCELLED") == 1
        again = peer.open(tasks=["video"])
        again.frame(0, second)
        return expected, await again.read(), refused

    expected, answer, refused = run(video_service, scenario)
    assert isinstance(refused, OverloadedError)
    assert "1 streams are open" in refused.detail
    assert track_ids([answer]) == track_ids([expected])


# SegmentVideo: frames that fail


def test_a_corrupt_frame_fails_alone(service: SegmentationService, encode_picture: EncodePicture) -> None:
    async def scenario(peer: Peer) -> list[pb.VideoResponse]:
        stream = peer.open(tasks=["depth"])
        for number, data in enumerate([encode_picture(), b"garbage", encode_picture()[:300], encode_picture()]):
            stream.frame(number, data)
        stream.end()
        return await stream.rest()

    responses = run(service, scenario)
    assert ids(responses) == [0, 1, 2, 3]
    assert [response.error.type for response in responses] == [
        "", "urn:polyhead:problem:invalid-image", "urn:polyhead:problem:invalid-image", "",
    ]  # fmt: skip
    assert not responses[1].results
    assert responses[3].results["depth"].WhichOneof("kind") == "depth"


def test_a_frame_of_50_mb_is_refused_and_the_stream_goes_on(
    service: SegmentationService, encode_picture: EncodePicture
) -> None:
    async def scenario(peer: Peer) -> list[pb.VideoResponse]:
        stream = peer.open(tasks=["depth"])
        stream.frame(0, bytes(50_000_000))
        stream.frame(1, encode_picture())
        stream.end()
        return await stream.rest()

    large, good = run(service, scenario)
    assert large.error.status == 413
    assert "50000000 bytes" in large.error.detail
    assert set(good.results) == {"depth"}


def test_garbage_instead_of_h264_fails_frame_by_frame(service: SegmentationService) -> None:
    async def scenario(peer: Peer) -> list[pb.VideoResponse]:
        stream = peer.open(frame_format=pb.FRAME_FORMAT_H264)
        for number in range(3):
            stream.frame(number, b"\x00\x00\x00\x01 garbage %d" % number)
        stream.end()
        return await stream.rest()

    responses = run(service, scenario)
    assert ids(responses) == [0, 1, 2]
    assert {response.error.type for response in responses} == {"urn:polyhead:problem:invalid-image"}


def test_a_frame_that_waits_too_long_is_answered_with_its_deadline(
    make_service: MakeService, encode_picture: EncodePicture
) -> None:
    service = make_service(gated=True)
    gate: Any = service.engine.run_pass

    async def scenario(peer: Peer) -> list[pb.VideoResponse]:
        stream = peer.open(frame_timeout_s=0.05)
        stream.frame(0, encode_picture())
        assert await asyncio.to_thread(gate.entered.wait, 30)
        stream.frame(1, encode_picture())
        while not [s for s in service.streams._streams if len(s._under_way) + len(s._waiting) == 2]:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.06)  # the deadline is real time
        gate.opened.set()
        stream.end()
        return await stream.rest()

    first, second = run(service, scenario)
    assert not first.HasField("error")  # it had begun
    assert second.error.status == 504


# SegmentVideo: drop policies


async def held(service: SegmentationService, inside: int) -> VideoStream:
    """The only stream, once so many frames are inside."""
    while True:
        for stream in service.streams._streams:
            if len(stream._under_way) + len(stream._waiting) == inside:
                return stream
        await asyncio.sleep(0.001)


def frames_inside(stream: VideoStream) -> list[int]:
    """The ids of the frames in a stream, the oldest first."""
    return [job.frame.frame_id for job in (*stream._under_way, *stream._waiting)]


def test_under_latest_the_oldest_waiting_frames_give_way_and_are_counted(
    make_service: MakeService, encode_picture: EncodePicture
) -> None:
    service = make_service(gated=True)
    gate: Any = service.engine.run_pass

    async def scenario(peer: Peer) -> list[pb.VideoResponse]:
        stream = peer.open(tasks=["depth"], drop_policy=pb.DROP_POLICY_LATEST, max_in_flight=2)
        for number in range(9):
            stream.frame(number, encode_picture())
        while not [s for s in service.streams._streams if frames_inside(s)[-1:] == [8]]:
            await asyncio.sleep(0.001)
        gate.opened.set()
        stream.end()
        return await stream.rest()

    responses = run(service, scenario)
    answered = ids(responses)
    assert answered == sorted(answered)
    assert (answered[0], answered[-1]) == (0, 8)
    assert 2 <= len(answered) <= 3  # the second was taken before the last came, or was the last
    assert [response.dropped_since_last for response in responses] == [0, *(np.diff(answered) - 1)]


def test_under_reject_a_frame_too_many_is_answered_with_an_error_in_its_turn(
    make_service: MakeService, encode_picture: EncodePicture
) -> None:
    service = make_service(gated=True)
    gate: Any = service.engine.run_pass

    async def scenario(peer: Peer) -> list[pb.VideoResponse]:
        stream = peer.open(tasks=["depth"], drop_policy=pb.DROP_POLICY_REJECT, max_in_flight=2)
        for number in range(5):
            stream.frame(number, encode_picture())
        await held(service, 5)
        gate.opened.set()
        stream.end()
        return await stream.rest()

    responses = run(service, scenario)
    assert ids(responses) == [0, 1, 2, 3, 4]
    assert [response.error.status for response in responses] == [0, 0, 429, 429, 429]


def test_under_block_a_full_stream_is_not_read_on(make_service: MakeService, encode_picture: EncodePicture) -> None:
    """The sender feels it: what it writes stays in its own buffers and in the connection's."""
    service = make_service(gated=True)
    gate: Any = service.engine.run_pass
    large = encode_picture(200, 300)

    async def scenario(peer: Peer) -> tuple[int, list[int]]:
        stream = peer.open(tasks=["depth"], max_in_flight=2)
        total = 200
        for number in range(total):
            stream.frame(number, large)
        await held(service, 2)
        for _ in range(50):  # it has every chance to take more
            await asyncio.sleep(0.001)
        unsent = stream._queue.qsize()
        gate.opened.set()
        stream.end()
        return unsent, ids(await stream.rest())

    unsent, answered = run(service, scenario)
    assert unsent > 0
    assert answered == list(range(200))


# SegmentVideo: streams that fail


def config(**fields: Any) -> pb.VideoRequest:
    return pb.VideoRequest(config=pb.VideoConfig(**fields))


FRAME = pb.VideoRequest(frame=pb.VideoFrame(data=b"x"))


@pytest.mark.parametrize(
    ("requests", "kind", "words"),
    [
        ([FRAME], InvalidOptionError, "the first request holds frame"),
        ([pb.VideoRequest()], InvalidOptionError, "the first request holds neither config nor frame"),
        ([None], InvalidOptionError, "the first request holds nothing"),
        ([config(), config()], InvalidOptionError, "a later request holds config"),
        ([config(), pb.VideoRequest()], InvalidOptionError, "a later request holds neither"),
        ([config(tasks=["dpth"])], UnsupportedTaskError, "no head for 'dpth'"),
        ([config(max_in_flight=100)], InvalidOptionError, "max_in_flight"),
        ([config(frame_format=77)], InvalidOptionError, "frame_format=77"),
        ([config(frame_timeout_s=0)], InvalidOptionError, "frame_timeout_s=0"),
    ],
)
def test_a_wrong_order_or_config_ends_the_stream_with_what_to_do(
    service: SegmentationService, requests: list[pb.VideoRequest | None], kind: type[PolyheadError], words: str
) -> None:
    async def scenario(peer: Peer) -> PolyheadError:
        stream = Stream(peer.stub.SegmentVideo())
        for request in requests:
            stream.send(request)
        _, problem = await failure(stream.read())
        await peer.freed()
        return problem

    problem = run(service, scenario)
    assert type(problem) is kind
    assert words in problem.detail


def test_a_stream_without_a_config_ends_at_the_idle_limit(make_service: MakeService) -> None:
    service = make_service(stream_idle_s=0.05)

    async def scenario(peer: Peer) -> PolyheadError:
        _, problem = await failure(peer.stub.SegmentVideo().read())
        return problem

    assert "no config came for 0.05 s" in run(service, scenario).detail


def test_a_stream_on_which_nothing_happens_ends_at_the_idle_limit(
    make_service: MakeService, encode_picture: EncodePicture
) -> None:
    service = make_service(stream_idle_s=0.2)

    async def scenario(peer: Peer) -> tuple[grpc.aio.AioRpcError, PolyheadError]:
        stream = peer.open(tasks=["depth"])
        stream.frame(0, encode_picture())
        await stream.read()
        told = await failure(stream.read())
        await peer.freed()
        return told

    error, problem = run(service, scenario)
    assert isinstance(problem, StreamEvictedError)
    assert error.code() is grpc.StatusCode.ABORTED
    assert "no frame came for 0.2 s" in problem.detail


def test_a_stream_of_a_stopping_replica_ends_with_a_word_and_no_other_is_opened(
    service: SegmentationService, encode_picture: EncodePicture
) -> None:
    async def scenario(peer: Peer) -> list[tuple[grpc.aio.AioRpcError, PolyheadError]]:
        stream = peer.open(tasks=["depth"])
        stream.frame(0, encode_picture())
        await stream.read()
        service.streams.end_all()
        ended = await failure(stream.read())
        refused = await failure(peer.open(tasks=["depth"]).read())
        picture = await peer.stub.Segment(pb.SegmentRequest(image=encode_picture(), tasks=["depth"]))
        assert picture.results  # still pictures are answered until the last
        return [ended, refused]

    for error, problem in run(service, scenario):
        assert isinstance(problem, UnavailableError)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert problem.detail == "this replica is stopping"
        assert dict(error.trailing_metadata() or ())["retry-after-s"] == "1"


def test_a_client_that_never_reads_is_evicted_and_leaves_nothing(
    make_service: MakeService, draw_picture: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_gateway, "_GOODBYE_S", 0.05)
    service = make_service(stream_idle_s=0.3, max_upload_bytes=2**20)
    pixels = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8).tobytes()
    inside: list[int] = []

    async def scenario(peer: Peer) -> None:
        stream = peer.open(tasks=["depth"], frame_format=pb.FRAME_FORMAT_RGB24, max_in_flight=2)
        for number in range(2000):
            stream.frame(number, pixels, height=500, width=600)
        while not len(service.streams):
            await asyncio.sleep(0.001)
        [only] = service.streams._streams
        while len(service.streams):  # it ends by itself
            inside.append(len(only._under_way) + len(only._waiting))
            await asyncio.sleep(0.005)
        await peer.freed()
        assert only._failure is not None
        assert "answers were not read" in only._failure.detail
        assert not only._under_way and not only._waiting
        while not sample(service, "polyhead_requests_total", route=STREAMS, code="CANCELLED"):
            await asyncio.sleep(0.005)  # the call itself ends too, though the client is still there
        assert sample(service, "polyhead_rejected_total", route=STREAMS, code="stream-evicted") == 1
        assert sample(service, "polyhead_stream_evictions_total", code="unread") == 1
        assert sample(service, "polyhead_cancelled_total", route=STREAMS) == 0
        stream._sender.cancel()

    run(service, scenario)
    assert max(inside) <= 2
    assert sample(service, "polyhead_requests_total", route=STREAMS, code="CANCELLED") == 1


def test_a_bug_in_a_stream_is_an_internal_error(
    service: SegmentationService, encode_picture: EncodePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(grpc_gateway, "video_response", explode)

    async def scenario(peer: Peer) -> tuple[grpc.aio.AioRpcError, PolyheadError]:
        stream = peer.open(tasks=["depth"])
        stream.frame(0, encode_picture())
        told = await failure(stream.read())
        await peer.freed()
        return told

    error, _ = run(service, scenario)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (error.details() or "")


CRASHING_CLIENT = """
import os, signal, sys
import grpc
from serving.protos import segmentation_pb2 as pb
from serving.protos.segmentation_pb2_grpc import SegmentationServiceStub

def requests():
    yield pb.VideoRequest(config=pb.VideoConfig(tasks=["video"]))
    picture = open(sys.argv[2], "rb").read()
    for number in range(100):
        yield pb.VideoRequest(frame=pb.VideoFrame(frame_id=number, data=picture))

answers = SegmentationServiceStub(grpc.insecure_channel("127.0.0.1:" + sys.argv[1])).SegmentVideo(requests())
assert next(answers).frame_id == 0
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_client_that_crashes_leaves_nothing(
    video_service: SegmentationService, encode_picture: EncodePicture, tmp_path: Path
) -> None:
    (tmp_path / "frame.png").write_bytes(encode_picture())

    async def scenario(peer: Peer) -> int:
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CRASHING_CLIENT, str(peer.port), str(tmp_path / "frame.png"), cwd=REPOSITORY
        )
        code = await client.wait()
        await peer.freed()
        return code

    assert run(video_service, scenario) == -signal.SIGKILL
    assert video_service.streams.state_bytes == 0
    assert sample(video_service, "polyhead_requests_total", route=STREAMS, code="CANCELLED") == 1
