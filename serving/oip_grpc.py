"""Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`, by tritonclient's own stubs.

Knows nothing of Ray. A failure of a unary call is the call's status; one in `ModelStreamInfer` is that request's
answer, and the stream goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2, service_pb2

from serving.errors import InternalError, PolyheadError, UnavailableError
from serving.oip import (
    InferAnswer,
    InferParameters,
    InferRequest,
    InputTensor,
    error_text,
    infer,
    read_call,
    render,
)
from serving.oip_models import VERSION, find_model, model_config, model_metadata, model_names, server_metadata
from serving.oip_sequences import Sequences
from serving.service import SegmentationService

Response = TypeVar("Response", bound=Message)

_MAX_AHEAD = 8
"""Requests of one stream that are worked at while the answer to the oldest is not yet read."""

logger = logging.getLogger("polyhead.oip")


class GrpcContext(Protocol):
    """What is used of the call's context, gRPC's own or Ray's."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Of the call."""
        ...

    def set_details(self, details: str) -> None:
        """Beside the code, for people."""
        ...


def _answered(response: type[Response]) -> Callable[[Any], Callable[..., Coroutine[Any, Any, Response]]]:
    """Of a unary method: counts the call, and turns a failure into the call's status, with an empty `response`."""

    def decorate(
        method: Callable[[Any, Any], Awaitable[Response]],
    ) -> Callable[..., Coroutine[Any, Any, Response]]:
        @wraps(method)
        async def call(self: OipMethods, request: Any, grpc_context: GrpcContext) -> Response:
            begun = time.perf_counter()
            code = "CANCELLED"
            try:
                answer = await method(self, request)
                code = "OK"
                return answer
            except Exception as failure:  # noqa: BLE001  # logged there
                error = _known(self.service, failure)
                code = error.grpc_status
                grpc_context.set_code(grpc.StatusCode[code])
                grpc_context.set_details(error_text(error))
                return response()
            finally:
                self._count(method.__name__, code, begun)

        return call

    return decorate


def _unsupported(response: type[Response], remedy: str) -> Callable[..., Coroutine[Any, Any, Response]]:
    """A method that answers UNIMPLEMENTED."""

    async def call(self: OipMethods, request: Any, grpc_context: GrpcContext) -> Response:
        grpc_context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        grpc_context.set_details(f"{type(request).__name__.removesuffix('Request')} is not supported; {remedy}")
        return response()

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

    @_answered(service_pb2.ServerLiveResponse)
    async def ServerLive(self, request: service_pb2.ServerLiveRequest) -> service_pb2.ServerLiveResponse:  # noqa: N802  # the proto names it, here and below
        """Whether the process lives."""
        return service_pb2.ServerLiveResponse(live=True)

    @_answered(service_pb2.ServerReadyResponse)
    async def ServerReady(self, request: service_pb2.ServerReadyRequest) -> service_pb2.ServerReadyResponse:  # noqa: N802
        """Whether pictures are answered now."""
        return service_pb2.ServerReadyResponse(ready=not_ready_because(self.service) is None)

    @_answered(service_pb2.ModelReadyResponse)
    async def ModelReady(self, request: service_pb2.ModelReadyRequest) -> service_pb2.ModelReadyResponse:  # noqa: N802
        """Whether a model answers now; like Triton, an unknown one is not ready."""
        known = request.name in model_names(self.service.engine.bundle) and request.version in ("", VERSION)
        return service_pb2.ModelReadyResponse(ready=known and not_ready_because(self.service) is None)

    @_answered(service_pb2.ServerMetadataResponse)
    async def ServerMetadata(self, request: service_pb2.ServerMetadataRequest) -> service_pb2.ServerMetadataResponse:  # noqa: N802
        """Name, version, extensions."""
        return service_pb2.ServerMetadataResponse(**server_metadata())

    @_answered(service_pb2.ModelMetadataResponse)
    async def ModelMetadata(self, request: service_pb2.ModelMetadataRequest) -> service_pb2.ModelMetadataResponse:  # noqa: N802
        """A model's tensors."""
        model = find_model(self.service.engine.bundle, request.name, request.version)
        return ParseDict(model_metadata(model), service_pb2.ModelMetadataResponse())

    @_answered(service_pb2.ModelConfigResponse)
    async def ModelConfig(self, request: service_pb2.ModelConfigRequest) -> service_pb2.ModelConfigResponse:  # noqa: N802
        """A model's tensors as Triton's clients ask for them."""
        bundle = self.service.engine.bundle
        model = find_model(bundle, request.name, request.version)
        config = ParseDict(model_config(model, bundle, self.service.settings), model_config_pb2.ModelConfig())
        return service_pb2.ModelConfigResponse(config=config)

    @_answered(service_pb2.RepositoryIndexResponse)
    async def RepositoryIndex(self, request: service_pb2.RepositoryIndexRequest) -> service_pb2.RepositoryIndexResponse:  # noqa: N802
        """All models."""
        return ParseDict(
            {"models": repository_index(self.service, only_ready=request.ready)}, service_pb2.RepositoryIndexResponse()
        )

    @_answered(service_pb2.ModelInferResponse)
    async def ModelInfer(self, request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:  # noqa: N802
        """Answer pictures, which belong to no sequence."""
        asked = read_request(request)
        call = read_call(self.service, asked, InferParameters.read(asked.parameters))
        return await infer(self.service, call, to_response)

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[service_pb2.ModelInferRequest], grpc_context: GrpcContext
    ) -> AsyncIterator[service_pb2.ModelStreamInferResponse]:
        """Answer requests in their order; those with a sequence_id are frames of a video.

        Args:
            requests: until their end, which is no proof that the client is content.
            grpc_context: of the call.
        """
        sequences = Sequences(self.service)
        answers: asyncio.Queue[asyncio.Task[service_pb2.ModelStreamInferResponse] | None] = asyncio.Queue(_MAX_AHEAD)
        reader = asyncio.create_task(self._read(requests, sequences, answers), name="oip stream")
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
            await reader  # raises what reading raised
        finally:
            reader.cancel()
            begun = [reader]
            while not answers.empty():
                if (answer := answers.get_nowait()) is not None:
                    answer.cancel()
            await sequences.close()

    ModelStatistics = _unsupported(
        service_pb2.ModelStatisticsResponse, "GET /metrics over HTTP has counts and durations for Prometheus"
    )
    RepositoryModelLoad = _unsupported(service_pb2.RepositoryModelLoadResponse, _BUNDLE)
    RepositoryModelUnload = _unsupported(service_pb2.RepositoryModelUnloadResponse, _BUNDLE)
    SystemSharedMemoryStatus = _unsupported(service_pb2.SystemSharedMemoryStatusResponse, _IN_MESSAGES)
    SystemSharedMemoryRegister = _unsupported(service_pb2.SystemSharedMemoryRegisterResponse, _IN_MESSAGES)
    SystemSharedMemoryUnregister = _unsupported(service_pb2.SystemSharedMemoryUnregisterResponse, _IN_MESSAGES)
    CudaSharedMemoryStatus = _unsupported(service_pb2.CudaSharedMemoryStatusResponse, _IN_MESSAGES)
    CudaSharedMemoryRegister = _unsupported(service_pb2.CudaSharedMemoryRegisterResponse, _IN_MESSAGES)
    CudaSharedMemoryUnregister = _unsupported(service_pb2.CudaSharedMemoryUnregisterResponse, _IN_MESSAGES)
    TraceSetting = _unsupported(service_pb2.TraceSettingResponse, _OPERATORS)
    LogSettings = _unsupported(service_pb2.LogSettingsResponse, _OPERATORS)
