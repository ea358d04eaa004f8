"""Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`, by tritonclient's own stubs.

Knows nothing of Ray. A failure of a unary call is the call's status; one in `ModelStreamInfer` is that request's
answer, and the stream goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2 import ModelStreamInferResponse

from serving.errors import (
    InternalError,
    InvalidOptionError,
    OverloadedError,
    PolyheadError,
    StreamEvictedError,
    UnavailableError,
)
from serving.grpc_status import GrpcContext, begin_call, end_call, set_status
from serving.oip.calls import (
    Call,
    InferAnswer,
    InferParameters,
    InferRequest,
    InputTensor,
    error_text,
    infer,
    read_call,
    render,
    repository_index,
    unready_because,
)
from serving.oip.models import VERSION, find_model, model_config, model_metadata, model_names, server_metadata
from serving.oip.sequences import Sequences
from serving.request_context import RequestContext, working_for
from serving.service import SegmentationService
from serving.streams.stream import FrameAnswer

Response = TypeVar("Response", bound=Message)

SERVICER_FUNCTIONS = ["tritonclient.grpc.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"]
"""Import paths of the services whose methods `OipMethods` has."""

_MAX_AHEAD = 8
"""Requests of one stream that are worked at while the answer to the oldest is not yet read."""

_WATCH_PERIOD_S = 1.0
_GOODBYE_S = 5.0
"""How long the answers inside a stream that was ended may take to be worked out and read."""

logger = logging.getLogger("polyhead.oip")


Method = Callable[["OipMethods", Any, GrpcContext], Coroutine[Any, Any, Response]]


def _answered(
    response: type[Response],
) -> Callable[[Callable[[OipMethods, Any], Awaitable[Response]]], Method[Response]]:
    """Of a unary method: counts the call, and turns a failure into the call's status, with an empty `response`."""

    def decorate(method: Callable[[OipMethods, Any], Awaitable[Response]]) -> Method[Response]:
        name = method.__name__

        async def call(self: OipMethods, request: Any, grpc_context: GrpcContext) -> Response:
            begun = time.perf_counter()
            outcome: PolyheadError | str = "CANCELLED"
            named = begin_call(self.service.tracer, grpc_context, _route(name))
            try:
                with working_for(named):
                    answer = await method(self, request)
                outcome = "OK"
            except Exception as failure:  # noqa: BLE001  # logged there
                outcome = _told(failure)
                set_status(grpc_context, outcome)
                answer = response()
            finally:
                _count(self.service, name, outcome, begun)
                _end(named, name, outcome, begun)
            return answer

        # Not functools.wraps: the host looks for `grpc_context` in the signature, and would follow the wrapped one's.
        call.__name__, call.__qualname__, call.__doc__ = name, method.__qualname__, method.__doc__
        return call

    return decorate


def _unsupported(name: str, remedy: str) -> Method[Any]:
    """The method `name`, which answers UNIMPLEMENTED."""
    response = getattr(service_pb2, f"{name}Response")

    async def call(self: OipMethods, request: Any, grpc_context: GrpcContext) -> Any:
        begun = time.perf_counter()
        grpc_context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        grpc_context.set_details(f"{name} is not supported; {remedy}")
        _count(self.service, name, "UNIMPLEMENTED", begun)
        return response()

    call.__name__, call.__doc__ = name, "Not supported."
    return call


_BUNDLE = "the models are the tasks of the bundle that the server was started with"
_IN_MESSAGES = "send tensors in the messages themselves"
_OPERATORS = "it is the operator's to set"


class OipMethods:
    """The methods of `inference.GRPCInferenceService` for one replica.

    Attributes:
        service: set before the first call.
    """

    service: SegmentationService
    _streams: int = 0

    @_answered(service_pb2.ServerLiveResponse)
    async def ServerLive(self, request: service_pb2.ServerLiveRequest) -> service_pb2.ServerLiveResponse:
        """Whether the process lives."""
        return service_pb2.ServerLiveResponse(live=True)

    @_answered(service_pb2.ServerReadyResponse)
    async def ServerReady(self, request: service_pb2.ServerReadyRequest) -> service_pb2.ServerReadyResponse:
        """Whether pictures are answered now."""
        return service_pb2.ServerReadyResponse(ready=unready_because(self.service) is None)

    @_answered(service_pb2.ModelReadyResponse)
    async def ModelReady(self, request: service_pb2.ModelReadyRequest) -> service_pb2.ModelReadyResponse:
        """Whether a model answers now; like Triton, an unknown one is not ready."""
        known = request.name in model_names(self.service.engine.bundle) and request.version in ("", VERSION)
        return service_pb2.ModelReadyResponse(ready=known and unready_because(self.service) is None)

    @_answered(service_pb2.ServerMetadataResponse)
    async def ServerMetadata(self, request: service_pb2.ServerMetadataRequest) -> service_pb2.ServerMetadataResponse:
        """Name, version, extensions."""
        return service_pb2.ServerMetadataResponse(**server_metadata())

    @_answered(service_pb2.ModelMetadataResponse)
    async def ModelMetadata(self, request: service_pb2.ModelMetadataRequest) -> service_pb2.ModelMetadataResponse:
        """A model's tensors."""
        model = find_model(self.service.engine.bundle, request.name, request.version)
        return ParseDict(model_metadata(model), service_pb2.ModelMetadataResponse())

    @_answered(service_pb2.ModelConfigResponse)
    async def ModelConfig(self, request: service_pb2.ModelConfigRequest) -> service_pb2.ModelConfigResponse:
        """A model's tensors as Triton's clients ask for them."""
        bundle = self.service.engine.bundle
        model = find_model(bundle, request.name, request.version)
        config = ParseDict(model_config(model, bundle, self.service.settings), model_config_pb2.ModelConfig())
        return service_pb2.ModelConfigResponse(config=config)

    @_answered(service_pb2.RepositoryIndexResponse)
    async def RepositoryIndex(self, request: service_pb2.RepositoryIndexRequest) -> service_pb2.RepositoryIndexResponse:
        """All models."""
        return ParseDict(
            {"models": repository_index(self.service, only_ready=request.ready)}, service_pb2.RepositoryIndexResponse()
        )

    @_answered(service_pb2.ModelInferResponse)
    async def ModelInfer(self, request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
        """Answer pictures, which belong to no sequence."""
        begun = time.perf_counter()
        asked = read_request(request)
        call = read_call(self.service, asked, InferParameters.read(asked.parameters))
        return await infer(self.service, call, to_response, begun)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[service_pb2.ModelInferRequest], grpc_context: GrpcContext
    ) -> AsyncGenerator[ModelStreamInferResponse, None]:
        """Answer requests in their order; those with a sequence_id are frames of a video.

        Args:
            requests: until their end, which is no proof that the client is content.
            grpc_context: of the call.
        """
        begun = time.perf_counter()
        named = begin_call(self.service.tracer, grpc_context, _route("ModelStreamInfer"))
        limit = self.service.settings.max_streams
        if self._streams >= limit:
            error = OverloadedError(
                f"{limit} streams are open, as many as are let in",
                remedy="close one, or raise POLYHEAD_MAX_STREAMS",
                retry_after_s=self.service.settings.stream_idle_s,
            )
            set_status(grpc_context, error)
            _count(self.service, "ModelStreamInfer", error, time.perf_counter())
            _end(named, "ModelStreamInfer", error, begun)
            return
        self._streams += 1
        outcome: PolyheadError | str = "CANCELLED"
        with working_for(named):
            stream = _InferStream(self.service, requests)
        watcher = asyncio.create_task(stream.end_in_time(asyncio.current_task(), grpc_context), name="oip watcher")
        try:
            async with aclosing(stream.answers()) as answers:
                async for answer in answers:
                    yield answer
            outcome = "OK"
            if stream.ended_because is not None:
                set_status(grpc_context, stream.ended_because)
        finally:
            self._streams -= 1
            watcher.cancel()
            await stream.close()
            _end(named, "ModelStreamInfer", stream.ended_because or outcome, begun)

    ModelStatistics = _unsupported("ModelStatistics", "GET /metrics over HTTP has counts and durations for Prometheus")
    RepositoryModelLoad = _unsupported("RepositoryModelLoad", _BUNDLE)
    RepositoryModelUnload = _unsupported("RepositoryModelUnload", _BUNDLE)
    SystemSharedMemoryStatus = _unsupported("SystemSharedMemoryStatus", _IN_MESSAGES)
    SystemSharedMemoryRegister = _unsupported("SystemSharedMemoryRegister", _IN_MESSAGES)
    SystemSharedMemoryUnregister = _unsupported("SystemSharedMemoryUnregister", _IN_MESSAGES)
    CudaSharedMemoryStatus = _unsupported("CudaSharedMemoryStatus", _IN_MESSAGES)
    CudaSharedMemoryRegister = _unsupported("CudaSharedMemoryRegister", _IN_MESSAGES)
    CudaSharedMemoryUnregister = _unsupported("CudaSharedMemoryUnregister", _IN_MESSAGES)
    TraceSetting = _unsupported("TraceSetting", _OPERATORS)
    LogSettings = _unsupported("LogSettings", _OPERATORS)


class _InferStream:
    """One call of ModelStreamInfer.

    Args:
        service: of the replica.
        requests: the client's.

    Attributes:
        ended_because: why it was ended on our side.
    """

    def __init__(self, service: SegmentationService, requests: AsyncIterator[service_pb2.ModelInferRequest]) -> None:
        self.ended_because: PolyheadError | None = None
        self._service = service
        self._sequences = Sequences(service)
        # Not so many that one stream alone would be shed.
        self._room = asyncio.Semaphore(min(_MAX_AHEAD, service.settings.max_pictures_inside))
        self._answers: asyncio.Queue[asyncio.Task[ModelStreamInferResponse] | None] = asyncio.Queue()
        self._begun: set[asyncio.Task[ModelStreamInferResponse]] = set()
        self._unread_since_s: float | None = None
        self._reader = asyncio.create_task(self._read(requests), name="oip reader")

    async def answers(self) -> AsyncGenerator[ModelStreamInferResponse, None]:
        """One for each request, in order, until the requests end."""
        while (answer := await self._answers.get()) is not None:
            response = await answer
            self._unread_since_s = time.monotonic()
            yield response
            self._unread_since_s = None
            self._room.release()
        if self.ended_because is None:
            await self._reader  # raises what reading raised

    async def end_in_time(self, call: asyncio.Task[Any] | None, context: GrpcContext) -> None:
        """Wait until the replica stops or the client has stopped reading, and end the call then.

        Requests that came before are still answered, if their answers are taken.
        """
        idle_s = self._service.settings.stream_idle_s
        while self.ended_because is None:
            await asyncio.sleep(_WATCH_PERIOD_S)
            if self._service.streams.stopping:
                self.ended_because = UnavailableError(
                    "this replica is stopping", remedy="open a new stream", retry_after_s=1
                )
            elif self._unread_since_s is not None and time.monotonic() - self._unread_since_s > idle_s:
                self.ended_because = StreamEvictedError(
                    f"answers were not read for {idle_s:g} s",
                    remedy="open a new stream, or raise POLYHEAD_STREAM_IDLE_S",
                )
        self._reader.cancel()
        await asyncio.sleep(_GOODBYE_S)
        set_status(context, self.ended_because)
        if call is not None:
            call.cancel()

    async def close(self) -> None:
        """Free everything, however the call ended."""
        ours = [self._reader, *self._begun]
        for task in ours:
            task.cancel()
        await asyncio.gather(*ours, *self._sequences.cancel(), return_exceptions=True)

    async def _read(self, requests: AsyncIterator[service_pb2.ModelInferRequest]) -> None:
        try:
            async for request in requests:
                await self._room.acquire()
                answer = asyncio.create_task(
                    _stream_answer(self._service, request, await _begin(self._service, request, self._sequences))
                )
                self._begun.add(answer)
                answer.add_done_callback(self._begun.discard)
                self._answers.put_nowait(answer)
        finally:
            self._answers.put_nowait(None)


def read_request(message: service_pb2.ModelInferRequest) -> InferRequest:
    """A message in the form that `serving.oip.calls` reads.

    Raises:
        InvalidOptionError: more or fewer raw contents than inputs.
    """
    raw = list(message.raw_input_contents)
    if raw and len(raw) != len(message.inputs):
        raise InvalidOptionError(
            f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs", remedy="send one for each input, or none"
        )
    inputs = [
        InputTensor(
            tensor.name,
            tensor.datatype,
            tuple(tensor.shape),
            raw[number] if raw else _elements(tensor),
            _parameters(tensor.parameters),
        )
        for number, tensor in enumerate(message.inputs)
    ]
    outputs = {output.name: _parameters(output.parameters) for output in message.outputs}
    return InferRequest(
        message.model_name, message.model_version, message.id, _parameters(message.parameters), inputs, outputs
    )


def to_response(answer: InferAnswer) -> service_pb2.ModelInferResponse:
    """An answer as a message, all tensors in raw contents."""
    response = service_pb2.ModelInferResponse(
        model_name=answer.model, model_version=answer.version, id=answer.request_id
    )
    for name, cost in answer.parameters.items():
        if isinstance(cost, int):
            response.parameters[name].int64_param = cost
        else:
            response.parameters[name].double_param = cost
    for tensor in answer.outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.values.shape)
        response.raw_output_contents.append(tensor.raw())
    return response


def _elements(tensor: service_pb2.ModelInferRequest.InferInputTensor) -> list[Any] | None:
    """The typed contents of an input of one of the datatypes that a model takes."""
    if not tensor.HasField("contents"):
        return None
    return list(tensor.contents.bytes_contents if tensor.datatype == "BYTES" else tensor.contents.uint_contents)


def _parameters(given: Mapping[str, service_pb2.InferParameter]) -> dict[str, Any]:
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in given.items()}
    return {name: getattr(given[name], choice) for name, choice in chosen.items() if choice is not None}


async def _begin(
    service: SegmentationService, message: service_pb2.ModelInferRequest, sequences: Sequences
) -> Coroutine[Any, Any, service_pb2.ModelInferResponse]:
    """Take a stream's request in, in its turn; what is returned awaits its answer."""
    begun = time.perf_counter()
    try:
        request = read_request(message)
        parameters = InferParameters.read(request.parameters)
        if not parameters.sequence_id:
            return infer(service, read_call(service, request, parameters), to_response, begun)
        return _of_frame(service, *await sequences.push(request, parameters))
    except Exception as failure:  # noqa: BLE001  # it is this request's answer
        return _failed(failure)


async def _of_frame(
    service: SegmentationService, call: Call, answer: asyncio.Future[FrameAnswer]
) -> service_pb2.ModelInferResponse:
    frame = await answer
    if frame.error is not None:
        raise frame.error
    assert frame.prediction is not None
    return await render(service, call, [frame.prediction], to_response)


async def _failed(failure: Exception) -> service_pb2.ModelInferResponse:
    raise failure


async def _stream_answer(
    service: SegmentationService,
    message: service_pb2.ModelInferRequest,
    work: Coroutine[Any, Any, service_pb2.ModelInferResponse],
) -> ModelStreamInferResponse:
    begun = time.perf_counter()
    outcome: PolyheadError | str = "CANCELLED"
    try:
        response = await work
        response.parameters["triton_final_response"].bool_param = True
        outcome = "OK"
        return ModelStreamInferResponse(infer_response=response)
    except Exception as failure:  # noqa: BLE001  # logged there
        outcome = _told(failure)
        response = service_pb2.ModelInferResponse(model_name=message.model_name, id=message.id)
        return ModelStreamInferResponse(error_message=error_text(outcome), infer_response=response)
    finally:
        _count(service, "ModelStreamInfer", outcome, begun)


def _told(failure: Exception) -> PolyheadError:
    """A failure as the client hears of it: a bug without its insides, which go to the log."""
    if isinstance(failure, PolyheadError):
        return failure
    logger.error("unexpected failure", exc_info=failure)
    return InternalError("an unexpected failure; the server's log has it", remedy="report it")


def _count(service: SegmentationService, method: str, outcome: PolyheadError | str, begun: float) -> None:
    """Count a request by what it came to: a failure, or the name of a gRPC status."""
    metrics, route, code = service.metrics, _route(method), _code(outcome)
    if not isinstance(outcome, str):
        metrics.count_failure(route, outcome)
    elif code == "CANCELLED":
        metrics.cancelled.labels(route).inc()
    elif code != "OK":
        metrics.rejected.labels(route, code.lower()).inc()
    metrics.count_request(route, code, time.perf_counter() - begun)


def _end(request: RequestContext, method: str, outcome: PolyheadError | str, begun: float) -> None:
    error = None if isinstance(outcome, str) else outcome
    end_call(request, _route(method), _code(outcome), begun, error)


def _route(method: str) -> str:
    return f"/inference.GRPCInferenceService/{method}"


def _code(outcome: PolyheadError | str) -> str:
    return outcome if isinstance(outcome, str) else outcome.grpc_status
