"""gRPC: `polyhead.v1` (see serving/protos/segmentation.proto) and the standard health service. Knows nothing of Ray.

The methods are those of grpc.aio's servicers. The host, Ray Serve or grpc.aio itself, gives each the call's context,
of which little is used: see `GrpcContext`. Failures become the call's status; nothing is raised.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2

from serving.errors import (
    InternalError,
    InvalidOptionError,
    PolyheadError,
    StreamEvictedError,
    TooLargeError,
    UnavailableError,
)
from serving.gateways.grpc_messages import (
    parse_frame_format,
    parse_options,
    parse_stream_config,
    parse_timeout_s,
    segment_response,
    video_response,
)
from serving.grpc_status import GrpcContext, begin_call, end_call, set_status
from serving.protos import segmentation_pb2 as pb
from serving.request_context import RequestContext, add_stage, working_for
from serving.service import SegmentationService
from serving.streams.frames import frame_decoder
from serving.streams.stream import Frame, VideoStream

SERVICER_FUNCTIONS = [
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
    "serving.protos.segmentation_pb2_grpc.add_SegmentationServiceServicer_to_server",
]
"""Import paths of the services whose methods `GrpcGateway` has."""

Message = TypeVar("Message", pb.SegmentResponse, pb.VideoResponse)

_SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"].full_name
_HEALTH_NAMES = frozenset({"", _SERVICE, "grpc.health.v1.Health", "inference.GRPCInferenceService"})
"""What the health service may be asked about; all of them live and die together."""
_WATCH_PERIOD_S = 1.0
_GOODBYE_S = 5.0
"""How long a client whose stream was ended may take to read the reason before the call is cancelled."""

logger = logging.getLogger("polyhead.grpc")


@dataclass
class _Outcome:
    """What a call came to, where it did not succeed; a stream may end before its call does."""

    request: RequestContext
    error: PolyheadError | None = None


class HealthMethods:
    """`grpc.health.v1.Health`.

    Attributes:
        service: set before the first call.
    """

    service: SegmentationService

    async def Check(
        self, request: health_pb2.HealthCheckRequest, grpc_context: GrpcContext | None = None
    ) -> health_pb2.HealthCheckResponse:
        """SERVING if pictures and streams can be answered now; NOT_FOUND for a service that is none of ours."""
        status = self._health_of(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN and grpc_context is not None:
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            grpc_context.set_details(f"no service '{request.service}' here; those there are: {_SERVICE}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, grpc_context: GrpcContext | None = None
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now and whenever it changes, until this replica stops."""
        last = None
        while True:
            status = self._health_of(request.service)
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
                last = status
            if self.service.streams.stopping:
                return
            await asyncio.sleep(_WATCH_PERIOD_S)

    def _health_of(self, name: str) -> int:
        if name not in _HEALTH_NAMES:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        try:
            self.service.check_ready()
        except UnavailableError:
            return int(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self.service.streams.stopping:
            return int(health_pb2.HealthCheckResponse.NOT_SERVING)
        return int(health_pb2.HealthCheckResponse.SERVING)


class SegmentationMethods:
    """`polyhead.v1.SegmentationService`.

    Attributes:
        service: set before the first call.
    """

    service: SegmentationService

    async def Segment(self, request: pb.SegmentRequest, grpc_context: GrpcContext) -> pb.SegmentResponse:
        """Run tasks on one picture; as `POST /segment`."""
        service = self.service
        begun = time.perf_counter()
        with self._observed("Segment", grpc_context, begun) as outcome:
            tasks = service.engine.check_tasks(request.tasks or None)
            options, masks = parse_options(request.options)
            timeout_s = parse_timeout_s(request, "timeout_s") or service.settings.default_timeout_s
            if len(request.image) > service.settings.max_upload_bytes:
                raise TooLargeError(
                    f"the picture is over {service.settings.max_upload_bytes:,} bytes",
                    remedy="send a smaller file; results would not get finer",
                )
            async with service.admitted(timeout_s) as deadline_s:
                service.metrics.admission_s.observe(time.perf_counter() - begun)
                prediction = await service.predict(request.image, tasks, options, deadline_s)
                if not prediction.results:
                    raise next(iter(prediction.errors.values()))
                return await self._rendered(
                    lambda: segment_response(
                        prediction,
                        request_id=outcome.request.request_id,
                        bundle=service.engine.bundle.name,
                        masks=masks,
                    )
                )
        return pb.SegmentResponse()  # nobody sees it beside the status

    async def SegmentVideo(
        self, requests: AsyncIterator[pb.VideoRequest], grpc_context: GrpcContext
    ) -> AsyncGenerator[pb.VideoResponse, None]:
        """Run tasks on the frames of a video.

        Args:
            requests: the config, then frames. Their end is no proof that the client is content: it may have left.
            grpc_context: of the call.
        """
        service = self.service
        with self._observed("SegmentVideo", grpc_context) as outcome:
            config = await self._read_config(requests)
            form = parse_frame_format(config)
            stream_config, masks = parse_stream_config(config, service.engine.check_tasks(config.tasks or None))
            decoder = frame_decoder(form, service.settings.max_pixels)
            async with service.streams.open(stream_config, decoder) as stream:
                call = asyncio.current_task()
                assert call is not None
                others = [
                    asyncio.create_task(self._read_frames(requests, stream), name="frames of a call"),
                    asyncio.create_task(
                        self._leave_when_ended(stream, call, grpc_context, outcome), name="end of a call"
                    ),
                ]
                try:
                    async for answer in stream.answers():
                        yield await self._rendered(partial(video_response, answer, masks))
                finally:
                    for task in others:
                        task.cancel()
                    await asyncio.wait(others)

    async def _rendered(self, render: Callable[[], Message]) -> Message:
        begun = time.perf_counter()
        message = await self.service.in_pool(render)
        self.service.metrics.render_s.observe(time.perf_counter() - begun)
        add_stage("render", begun)
        return message

    async def _read_config(self, requests: AsyncIterator[pb.VideoRequest]) -> pb.VideoConfig:
        idle_s = self.service.settings.stream_idle_s
        try:
            async with asyncio.timeout(idle_s):
                first = await anext(requests, None)
        except TimeoutError:
            raise StreamEvictedError(
                f"no config came for {idle_s:g} s", remedy="send it as the first request"
            ) from None
        found = "nothing" if first is None else first.WhichOneof("request") or "neither config nor frame"
        if first is None or found != "config":
            raise InvalidOptionError(f"the first request holds {found}", remedy="send the config first, then frames")
        return first.config

    async def _read_frames(self, requests: AsyncIterator[pb.VideoRequest], stream: VideoStream) -> None:
        """Push frames as they come; under ``block`` the next one is not read before there is room."""
        try:
            async for request in requests:
                found = request.WhichOneof("request") or "neither config nor frame"
                if found != "frame":
                    raise InvalidOptionError(
                        f"a later request holds {found}",
                        remedy="send frames after the first request; open another stream for another config",
                    )
                sent = request.frame
                size = (sent.height, sent.width) if sent.height or sent.width else None
                await stream.push(Frame(sent.frame_id, sent.data, sent.captured_at_us, size))
            await stream.end_input()
        except PolyheadError as error:
            stream.evict(error)  # which changes nothing if it is the stream's own
        except Exception as error:
            logger.exception("the frames of a stream could not be read")
            stream.evict(_bug(error))

    async def _leave_when_ended(
        self, stream: VideoStream, call: asyncio.Task[Any], context: GrpcContext, outcome: _Outcome
    ) -> None:
        """End the call of a stream that was ended, also if its client does not read and nothing can be sent to it."""
        error = await stream.wait_ended()
        await asyncio.sleep(_GOODBYE_S)
        outcome.error = error
        set_status(context, error)
        call.cancel()

    @contextmanager
    def _observed(self, method: str, context: GrpcContext, begun: float | None = None) -> Iterator[_Outcome]:
        """Make a failure the call's status, and count the call; `begun`, on `time.perf_counter`, if it is timed."""
        entered = time.perf_counter()
        metrics, route = self.service.metrics, f"/{_SERVICE}/{method}"
        code = "CANCELLED"  # until it ends otherwise
        outcome = _Outcome(begin_call(self.service.tracer, context, route))
        try:
            with working_for(outcome.request):
                yield outcome
            code = "OK"
        except Exception as error:
            outcome.error = error if isinstance(error, PolyheadError) else _bug(error)
            if outcome.error is not error:
                logger.exception("unexpected failure of call %s", outcome.request.request_id)
            code = outcome.error.grpc_status
            set_status(context, outcome.error)
        finally:
            if outcome.error is not None:
                metrics.count_failure(route, outcome.error)
            elif code == "CANCELLED":
                metrics.cancelled.labels(route).inc()
            metrics.count_request(route, code, None if begun is None else time.perf_counter() - begun)
            end_call(outcome.request, route, code, entered, outcome.error)


def _bug(error: Exception) -> InternalError:
    return InternalError(
        f"an unexpected {type(error).__name__}; the server's log has it", remedy="report the request_id"
    )


class GrpcGateway(HealthMethods, SegmentationMethods):
    """The gRPC methods of one replica, but for those of `serving.oip.grpc_methods`. Reflection is the host's.

    Attributes:
        service: set before the first call.
    """
