"""HTTP: parse a request, call the service, render the answer or the problem. Knows nothing of Ray."""

from __future__ import annotations

import logging
import mimetypes
import re
import time
import uuid
from collections.abc import AsyncGenerator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from decoders.base import PostprocessOptions
from serving import metrics
from serving.answers.render import PICTURE_KINDS, no_picture, overlay_png, prediction_json, prediction_npz, result_png
from serving.answers.schemas import Problem, SegmentAnswer
from serving.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidImageError,
    InvalidOptionError,
    OverloadedError,
    PolyheadError,
    TooLargeError,
    UnavailableError,
    UnsupportedMediaTypeError,
    UnsupportedTaskError,
    UnusableImageError,
)
from serving.gateways.ws_gateway import add_video_socket
from serving.oip.http_routes import add_oip_routes
from serving.pictures import decode_picture
from serving.service import SegmentationService
from serving.types import Prediction, PredictOptions, Timing, parse_tasks

_WEB = Path(__file__).parents[1] / "web"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
mimetypes.add_type("text/javascript", ".js")  # a system's own table may say otherwise, and browsers then refuse modules
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_CLIENT_CLOSED = 499
"""The status under which a request is counted whose client went away (nginx's number)."""

_MULTIPART_OVERHEAD = 64 * 1024
"""Bytes that a form may have beyond its picture: boundaries, headers, small fields."""

logger = logging.getLogger("polyhead.http")


class SegmentQuery(BaseModel):
    """The options of `POST /segment`; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid")

    tasks: str | None = Field(
        None, description="Tasks, separated by commas; all share one encoder pass. Default: the bundle's.",
        examples=["panoptic,depth"],
    )  # fmt: skip
    format: Literal["json", "png", "overlay", "npz"] = Field(
        "json", description="png and overlay take exactly one task. npz: arrays for NumPy."
    )
    masks: Literal["rle", "polygon", "none"] = Field("rle", description="How segments are told in JSON.")
    score_threshold: float | None = Field(None, ge=0, le=1, description="Least class probability.")
    mask_threshold: float | None = Field(None, ge=0, le=1, description="Probability from which a pixel is in a mask.")
    overlap_threshold: float | None = Field(None, ge=0, le=1, description="Least part of a mask left by better ones.")
    max_side: int | None = Field(None, ge=16, le=16384, description="Results' longer side, pixels.")

    def task_list(self) -> list[str] | None:
        """The tasks, or None for the default ones."""
        return parse_tasks(self.tasks)

    def options(self) -> PredictOptions:
        """The thresholds and the output size."""
        return PredictOptions(
            PostprocessOptions(self.score_threshold, self.mask_threshold, self.overlap_threshold), self.max_side
        )


def create_app(service: SegmentationService, *, host_gives_request_id: bool = False) -> FastAPI:
    """The HTTP application of one replica.

    Args:
        service: that answers.
        host_gives_request_id: the server around it (Ray Serve) puts X-Request-Id on every answer itself.
    """
    app = FastAPIOffline(
        title="polyhead",
        summary="One frozen vision encoder, one pass per picture, many heads.",
        version=version("polyhead"),
        redoc_url=None,
    )
    _add_segment(app, service)
    add_video_socket(app, service)
    add_oip_routes(app, service)
    _add_status(app, service)
    _add_pages(app)
    _add_problems(app, service)
    app.add_middleware(_Observed, service=service, host_gives_request_id=host_gives_request_id)
    return app


def _add_segment(app: FastAPI, service: SegmentationService) -> None:
    problem_schema = Problem.model_json_schema()
    picture_body = {
        "requestBody": {
            "required": True,
            "description": "The picture: as the raw body, or as the form field `image`.",
            "content": {
                "image/*": {"schema": {"type": "string", "format": "binary"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["image"],
                        "properties": {"image": {"type": "string", "format": "binary"}},
                    }
                },
            },
        }
    }

    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": SegmentAnswer, "description": "Every asked task is in `results` or in `errors`."}
    }
    answers |= {
        error.status: {"description": error.title, "content": {"application/problem+json": {"schema": problem_schema}}}
        for error in (
            InvalidImageError,
            UnsupportedTaskError,
            TooLargeError,
            UnsupportedMediaTypeError,
            UnusableImageError,
            OverloadedError,
            UnavailableError,
            DeadlineExceededError,
        )
    }

    @app.post(
        "/segment",
        openapi_extra=picture_body,
        summary="Run tasks on one picture",
        response_model=None,
        responses=answers,
    )
    async def segment(
        request: Request,
        query: Annotated[SegmentQuery, Query()],
        x_request_timeout_s: Annotated[
            float | None, Header(gt=0, le=3600, description="Give up after this many seconds.")
        ] = None,
    ) -> Response:
        """Answers JSON, or with `format` one task's PNG or overlay, or all arrays as an npz archive."""
        _check_repeats(request)
        tasks = service.engine.check_tasks(query.task_list())
        if query.format in ("png", "overlay") and len(tasks) != 1:
            raise InvalidOptionError(
                f"format={query.format} takes exactly one task, not {len(tasks)} ({', '.join(tasks)})",
                remedy=f"name one, e.g. tasks={tasks[0]}",
            )
        kind = service.engine.bundle.heads[tasks[0]].decoder.kind
        if query.format in ("png", "overlay") and kind not in PICTURE_KINDS:
            raise no_picture(kind, query.format)
        async with service.admitted(x_request_timeout_s or service.settings.default_timeout_s) as deadline_s:
            data = await _read_picture(request, service.settings.max_upload_bytes)
            prediction = await service.predict(data, tasks, query.options(), deadline_s)
            if not prediction.results:
                raise next(iter(prediction.errors.values()))
            response = await service.in_pool(lambda: _render(query, prediction, data, request, service))
        response.headers["Server-Timing"] = _server_timing(prediction.timing)
        return response


def _render(
    query: SegmentQuery, prediction: Prediction, data: bytes, request: Request, service: SegmentationService
) -> Response:
    begun = time.perf_counter()
    task, result = next(iter(prediction.results.items()))
    label_set = service.engine.bundle.label_sets.get(task)
    match query.format:
        case "json":
            response: Response = JSONResponse(
                prediction_json(
                    prediction,
                    request_id=request.state.request_id,
                    bundle=service.engine.bundle.name,
                    masks=query.masks,
                )
            )
        case "png":
            response = Response(result_png(result, label_set), media_type="image/png")
        case "overlay":
            picture = decode_picture(data, max_pixels=service.settings.max_pixels)
            response = Response(overlay_png(result, picture, label_set), media_type="image/png")
        case "npz":
            response = Response(prediction_npz(prediction), media_type="application/octet-stream")
    service.metrics.stage_s.labels("render", "").observe(time.perf_counter() - begun)
    return response


def _add_status(app: FastAPI, service: SegmentationService) -> None:
    @app.get("/tasks", summary="What the loaded bundle can do")
    async def tasks() -> dict[str, Any]:
        bundle = service.engine.bundle
        spec = bundle.encoder.spec
        return {
            "bundle": bundle.name,
            "encoder": {"name": spec.name, "revision": spec.revision, "patch_size": spec.patch_size},
            "default_tasks": bundle.default_tasks,
            "tasks": [
                {
                    "name": head.task,
                    "kind": head.decoder.kind,
                    "description": head.description,
                    "input_size": head.geometry.typical_size,
                    "labels": [
                        {"label_id": x.label_id, "name": x.name, "is_thing": x.is_thing, "color": x.color}
                        for x in (bundle.label_sets[head.task].labels if head.task in bundle.label_sets else ())
                    ],
                }
                for head in bundle.heads.values()
            ],
        }

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", summary="Whether pictures are answered now")
    async def readyz() -> dict[str, str]:
        service.check_ready()
        return {"status": "ready"}

    @app.get("/metrics", summary="Prometheus metrics", response_model=None)
    async def prometheus() -> Response:
        return Response(service.metrics.render(), media_type=metrics.CONTENT_TYPE)


def _add_pages(app: FastAPI) -> None:
    app.mount("/static", _PageFiles(directory=_WEB), name="static")

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def playground() -> FileResponse:
        return FileResponse(_WEB / "index.html", headers=_PAGE_HEADERS)


class _PageFiles(StaticFiles):
    """The page's files, always asked for anew: their names carry no version."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_PAGE_HEADERS)
        return response


def _add_problems(app: FastAPI, service: SegmentationService) -> None:
    @app.exception_handler(PolyheadError)
    async def polyhead_error(request: Request, error: PolyheadError) -> Response:
        return _problem(service, error)

    @app.exception_handler(RequestValidationError)
    async def invalid_option(request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}={e['input']!r}: {e['msg']}" for e in error.errors())
        return _problem(service, InvalidOptionError(wrong, remedy="see /docs for the options and their values"))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        problem = {"type": "about:blank", "title": error.detail, "status": error.status_code}
        detail = f"{request.method} {request.url.path}: {error.detail.lower()}"
        return JSONResponse(
            problem | {"detail": detail, "remedy": "see /docs for the paths and methods"},
            error.status_code,
            headers=error.headers,
            media_type="application/problem+json",
        )


def _problem(service: SegmentationService, error: PolyheadError) -> Response:
    service.metrics.refused.labels(error.reason).inc()
    headers = {} if error.retry_after_s is None else {"Retry-After": str(int(error.retry_after_s))}
    return JSONResponse(error.problem(), error.status, headers=headers, media_type="application/problem+json")


def _check_repeats(request: Request) -> None:
    names = [name for name, _ in request.query_params.multi_items()]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidOptionError(
            f"{', '.join(repeated)} given more than once", remedy="give each once, tasks separated by commas"
        )


async def _read_picture(request: Request, max_bytes: int) -> bytes:
    """The picture's bytes from a raw body or a form, never holding more than `max_bytes` of it."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_form(request, max_bytes)
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise UnsupportedMediaTypeError(
            f"the body is declared as {kind}",
            remedy="declare it as Content-Type: image/jpeg (or image/png, …), or send the form field 'image'",
        )
    body = bytearray()
    async for chunk in _limited(request, max_bytes, max_bytes):
        body += chunk
    return bytes(body)


async def _read_form(request: Request, max_bytes: int) -> bytes:
    limited = _limited(request, max_bytes + _MULTIPART_OVERHEAD, max_bytes)
    try:
        form = await MultiPartParser(request.headers, limited, max_files=8, max_fields=8).parse()
    except MultiPartException as error:
        raise InvalidOptionError(
            f"the form can't be read: {error.message}", remedy="send one file as 'image'"
        ) from None
    images = form.getlist("image")
    if len(images) != 1 or isinstance(images[0], str):
        found = f"{len(images)} fields 'image'" if images else f"no field 'image', only {sorted(form)}"
        if len(images) == 1:
            found = "a field 'image' that is text, not a file"
        raise InvalidOptionError(f"the form has {found}", remedy="send exactly one file as the field 'image'")
    data = await images[0].read()
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


async def _limited(request: Request, max_total: int, max_bytes: int) -> AsyncGenerator[bytes, None]:
    declared = request.headers.get("content-length", "")
    seen = 0
    refused = declared.isdigit() and int(declared) > max_total
    async for chunk in request.stream():
        seen += len(chunk)
        refused = refused or seen > max_total
        if not refused:
            yield chunk
        elif seen > 4 * max_total:
            break  # read on for a while, so that an honest client gets to see the answer; then give up
    if refused:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(
        f"the picture is over {max_bytes:,} bytes", remedy="send a smaller file; results would not get finer"
    )


def _server_timing(timing: Timing) -> str:
    stages = {name: getattr(timing, f"{name}_ms") for name in ("queue", "decode", "preprocess", "encoder")}
    stages |= timing.heads_ms | {"postprocess": timing.postprocess_ms, "total": timing.total_ms}
    return ", ".join(f"{name};dur={milliseconds:.1f}" for name, milliseconds in stages.items())


class _Observed:
    """Gives every request an id, gives back what the caller's tracing sent, and counts requests by route and status."""

    def __init__(self, app: ASGIApp, service: SegmentationService, host_gives_request_id: bool) -> None:
        self._app = app
        self._service = service
        self._host_gives_request_id = host_gives_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = {name.decode("latin-1").lower(): value for name, value in scope["headers"]}
        request_id = headers.get("x-request-id", b"").decode("latin-1")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        given_back = {b"x-request-id": request_id.encode("latin-1")}
        if "traceparent" in headers:
            given_back[b"traceparent"] = headers["traceparent"]
        if self._host_gives_request_id:
            del given_back[b"x-request-id"]
        status = _CLIENT_CLOSED  # until something else is sent

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] += given_back.items()
            await send(message)

        try:
            await self._app(scope, receive, observe)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except Exception:
            logger.exception("unexpected failure of request %s", request_id)
            if status != _CLIENT_CLOSED:
                raise
            bug = InternalError("an unexpected failure; the server's log has it", remedy="report the X-Request-Id")
            await _problem(self._service, bug)(scope, receive, observe)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._service.metrics.requests.labels(route, str(status)).inc()
            self._service.metrics.request_s.labels(route).observe(time.perf_counter() - begun)
