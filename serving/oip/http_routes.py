"""Open Inference Protocol v2 over HTTP, with Triton's extension for binary tensors. Knows nothing of Ray.

A failure is answered with its HTTP status (`serving.errors`) and ``{"error": text}``.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect

from serving.errors import (
    InternalError,
    InvalidOptionError,
    PolyheadError,
    TooLargeError,
    UnsupportedMediaTypeError,
    UnsupportedTaskError,
)
from serving.http_timeout import RequestTimeout
from serving.metrics import route_of
from serving.oip.calls import (
    Call,
    InferAnswer,
    InferParameters,
    InferRequest,
    InputTensor,
    OutputTensor,
    error_text,
    infer,
    read_call,
    repository_index,
)
from serving.oip.models import Model, find_model, model_config, model_metadata, server_metadata
from serving.service import SegmentationService

_HEADER_LENGTH = "Inference-Header-Content-Length"
_HEADER_BYTES = 64 * 1024
"""Bytes that a body may have beyond `max_upload_bytes`: the JSON object before the tensors."""

_WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""Content encodings, as zlib names them."""

_COMPRESSION_LEVEL = 1
_MODEL = "/v2/models/{model}"
_VERSION = "/versions/{version}"

logger = logging.getLogger("polyhead.oip")


class _Input(BaseModel):
    """The protocol's $request_input."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: Any = None


class _RequestedOutput(BaseModel):
    """The protocol's $request_output."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class _InferBody(BaseModel):
    """The protocol's $inference_request."""

    id: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[_Input]
    outputs: list[_RequestedOutput] = Field(default_factory=list)


def add_oip_routes(app: FastAPI, service: SegmentationService) -> None:
    """Let `app` answer everything under ``/v2``."""
    router = APIRouter(route_class=_route_class(service), tags=["Open Inference Protocol"])
    _add_status(router, service)
    _add_models(router, service)
    _add_infer(router, service)

    @router.api_route(
        "/v2/{rest:path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
    )
    async def unsupported(request: Request) -> Response:
        raise UnsupportedTaskError(
            f"{request.method} {request.url.path} is not supported", remedy="see /docs for what is"
        )

    app.include_router(router)


def _add_status(router: APIRouter, service: SegmentationService) -> None:
    @router.head("/v2/health/live", include_in_schema=False)
    @router.get("/v2/health/live", summary="Whether the process lives")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.head("/v2/health/ready", include_in_schema=False)
    @router.get("/v2/health/ready", summary="Whether pictures are answered now")
    async def ready() -> dict[str, bool]:
        service.check_ready()
        return {"ready": True}

    @router.get("/v2", summary="Name, version and extensions of the server")
    async def metadata() -> dict[str, Any]:
        return server_metadata()

    @router.post("/v2/repository/index", summary="All models and their states")
    async def index(request: Request) -> list[dict[str, str]]:
        body = await _read_body(request, _HEADER_BYTES)
        try:
            asked = json.loads(body) if body else {}
            only_ready = bool(asked.get("ready"))
        except (ValueError, AttributeError):
            raise InvalidOptionError("the body is no JSON object", remedy='send none, or {"ready": true}') from None
        return repository_index(service, only_ready=only_ready)


def _add_models(router: APIRouter, service: SegmentationService) -> None:
    bundle = service.engine.bundle

    def asked(request: Request, model: str) -> Model:
        return find_model(bundle, model, request.path_params.get("version", ""))

    @router.get(_MODEL + _VERSION, include_in_schema=False)
    @router.get(_MODEL, summary="A model's tensors")
    async def model_tensors(request: Request, model: str) -> dict[str, Any]:
        return model_metadata(asked(request, model))

    @router.head(_MODEL + _VERSION + "/ready", include_in_schema=False)
    @router.head(_MODEL + "/ready", include_in_schema=False)
    @router.get(_MODEL + _VERSION + "/ready", include_in_schema=False)
    @router.get(_MODEL + "/ready", summary="Whether a model answers now")
    async def model_ready(request: Request, model: str) -> dict[str, Any]:
        found = asked(request, model)
        service.check_ready()
        return {"name": found.name, "ready": True}

    @router.get(_MODEL + _VERSION + "/config", include_in_schema=False)
    @router.get(_MODEL + "/config", summary="A model's config, as Triton's clients ask for it")
    async def config(request: Request, model: str) -> dict[str, Any]:
        return model_config(asked(request, model), bundle, service.settings)


def _add_infer(router: APIRouter, service: SegmentationService) -> None:
    tensors = {"type": "array", "items": {"type": "object", "required": ["name"]}}
    asked = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": InferParameters.model_json_schema(),
            "inputs": tensors,
            "outputs": tensors,
        },
    }
    body_schema = {
        "requestBody": {
            "required": True,
            "description": "The protocol's inference request. With Triton's extension for binary data, tensors follow "
            f"the JSON object, whose length {_HEADER_LENGTH} tells.",
            "content": {
                "application/json": {"schema": asked},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    }

    @router.post(_MODEL + _VERSION + "/infer", include_in_schema=False)
    @router.post(_MODEL + "/infer", summary="Run a model on one picture or several", openapi_extra=body_schema)
    async def model_infer(
        request: Request,
        model: str,
        x_request_timeout_s: RequestTimeout = None,
    ) -> Response:
        settings, headers = service.settings, request.headers
        version = request.path_params.get("version", "")
        find_model(service.engine.bundle, model, version)  # before the body is read
        most = settings.max_upload_bytes + _HEADER_BYTES
        async with service.admitted(x_request_timeout_s or settings.default_timeout_s) as deadline_s:
            body = await _read_body(request, most)

        def read() -> tuple[Call, Mapping[str, Mapping[str, Any]]]:
            asked = _read_request(model, version, headers, _decompressed(body, headers, most))
            return read_call(service, asked, InferParameters.read(asked.parameters)), asked.outputs

        call, outputs = await service.in_pool(read)

        def encode(answer: InferAnswer) -> Response:
            binary = {
                name: outputs.get(name, {}).get("binary_data", call.parameters.binary_data_output)
                for name in call.outputs
            }
            return _response(answer, binary, headers.get("accept-encoding", ""))

        timeout_s = max(0.0, deadline_s - time.monotonic())
        return await infer(service, call, encode, request.state.begun, timeout_s)


def _route_class(service: SegmentationService) -> type[APIRoute]:
    """A route that answers failures as the protocol has it."""

    class OipRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    return await handler(request)
                except PolyheadError as error:
                    return _failure(service, request, error)
                except RequestValidationError as error:
                    wrong = "; ".join(f"{e['loc'][-1]}={e['input']!r}: {e['msg']}" for e in error.errors())
                    return _failure(service, request, InvalidOptionError(wrong, remedy="see /docs"))
                except ClientDisconnect:
                    raise
                except Exception:
                    logger.exception("unexpected failure")
                    bug = InternalError("an unexpected failure; the server's log has it", remedy="report it")
                    return _failure(service, request, bug)

            return answer

    return OipRoute


def _failure(service: SegmentationService, request: Request, error: PolyheadError) -> Response:
    service.metrics.count_failure(route_of(request.scope), error)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(int(error.retry_after_s))}
    return JSONResponse({"error": error_text(error)}, error.status, headers=headers)


async def _read_body(request: Request, most: int) -> bytes:
    body = bytearray()
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen <= most:
            body += chunk
        elif seen > 4 * most:
            break  # read on for a while, so that an honest client gets to see the answer; then give up
    if seen > most:
        raise _too_large(most)
    return bytes(body)


def _decompressed(body: bytes, headers: Mapping[str, str], most: int) -> bytes:
    """The body without its content encoding, never holding more than `most` bytes of it."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMediaTypeError(
            f"the body is encoded as {encoding[:32]}", remedy=f"send it as it is, or as {' or '.join(_WINDOW_BITS)}"
        )
    decoder = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = decoder.decompress(body, most + 1)
    except zlib.error as error:
        raise InvalidOptionError(f"the body is no {encoding}: {error}", remedy="send it as it is") from None
    if len(plain) > most:
        raise _too_large(most)
    if not decoder.eof:
        raise InvalidOptionError(f"the {encoding} body is cut short", remedy="send all of it")
    return plain


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the request is over {most:,} bytes", remedy="send fewer or smaller pictures at once")


def _read_request(model: str, version: str, headers: Mapping[str, str], body: bytes) -> InferRequest:
    told = headers.get(_HEADER_LENGTH)
    if told is not None and not (told.isascii() and told.isdigit() and int(told) <= len(body)):
        raise InvalidOptionError(
            f"{_HEADER_LENGTH} is {told[:32]!r}, the body has {len(body):,} bytes",
            remedy="send the length of the JSON object before the binary data",
        )
    length = len(body) if told is None else int(told)
    try:
        parsed = _InferBody.model_validate_json(body[:length])
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()[:8])
        raise InvalidOptionError(
            f"the body is no inference request: {wrong}",
            remedy=f"send the protocol's JSON object; with binary data after it, say its length in {_HEADER_LENGTH}",
        ) from None
    inputs = []
    for tensor in parsed.inputs:
        data, size = tensor.data, tensor.parameters.get("binary_data_size")
        if size is not None:
            if not isinstance(size, int) or not 0 <= size <= len(body) - length:
                raise InvalidOptionError(
                    f"input '{tensor.name[:64]}' has a binary_data_size of {size!r}, but {len(body) - length:,} bytes "
                    "are left after the JSON object and the inputs before it",
                    remedy=f"send all binary data, and the length of the JSON object in {_HEADER_LENGTH}",
                )
            data = body[length : length + size]
            length += size
        elif data is not None and not isinstance(data, list):
            raise InvalidOptionError(f"the data of input '{tensor.name[:64]}' are no list", remedy="send a list")
        inputs.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data, tensor.parameters))
    if length != len(body):
        raise InvalidOptionError(
            f"{len(body) - length:,} bytes of binary data belong to no input",
            remedy="say in each input's parameters how many are its own: binary_data_size",
        )
    outputs = {output.name: output.parameters for output in parsed.outputs}
    return InferRequest(model, version, parsed.id, parsed.parameters, inputs, outputs)


def _response(answer: InferAnswer, binary: Mapping[str, Any], accept_encoding: str) -> Response:
    told: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.request_id:
        told["id"] = answer.request_id
    told["parameters"] = answer.parameters
    told["outputs"] = outputs = []
    section = []
    for tensor in answer.outputs:
        item: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.values.shape}
        if binary[tensor.name]:
            section.append(tensor.raw())
            item["parameters"] = {"binary_data_size": len(section[-1])}
        else:
            item["data"] = _elements(tensor)
        outputs.append(item)
    header = json.dumps(told, allow_nan=False).encode()
    body, headers, media_type = header, {}, "application/json"
    if section:
        body = b"".join((header, *section))
        headers[_HEADER_LENGTH] = str(len(header))
        media_type = "application/octet-stream"
    # Only if it is asked for on purpose: the list that HTTP libraries send of themselves would cost more than it saves.
    encoding = accept_encoding.strip().lower()
    if encoding in _WINDOW_BITS:
        encoder = zlib.compressobj(_COMPRESSION_LEVEL, wbits=_WINDOW_BITS[encoding])
        body = encoder.compress(body) + encoder.flush()
        headers["Content-Encoding"] = encoding
    return Response(body, headers=headers, media_type=media_type)


def _elements(tensor: OutputTensor) -> list[Any]:
    """Flat and row-major, as JSON has it."""
    flat = tensor.values.ravel().tolist()
    return [item.decode() for item in flat] if tensor.datatype == "BYTES" else flat
