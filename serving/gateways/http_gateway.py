"""HTTP: parse a request, call the service, render the answer or the problem. Knows nothing of Ray."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from pydantic import ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import metrics
from serving.answers.render import PICTURE_KINDS, no_picture, overlay_png, prediction_json, prediction_npz, result_png
from serving.answers.schemas import SegmentAnswer
from serving.errors import InternalError, InvalidOptionError, MissingBlocksError, PolyheadError, UnsupportedTaskError
from serving.gateways.feature_routes import add_feature_route
from serving.gateways.http_pictures import check_repeats, picture_body, problem_answers, read_picture, server_timing
from serving.gateways.ws_gateway import add_video_socket
from serving.http_timeout import RequestTimeout
from serving.logs import PROBES, log_access
from serving.metrics import route_of
from serving.metrics_hub import Snapshot
from serving.oip.http_routes import add_oip_routes
from serving.options import RequestOptions
from serving.pictures import decode_picture
from serving.request_context import TRACE_HEADERS, RequestContext, add_stage, working_for
from serving.service import SegmentationService
from serving.tracing import AttributeValue
from serving.types import Prediction, parse_tasks

_WEB = Path(__file__).parents[1] / "web"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
mimetypes.add_type("text/javascript", ".js")  # a system's own table may say otherwise, and browsers then refuse modules
_REQUEST_ID = re.compile(r"[!-~]{1,128}")

logger = logging.getLogger("polyhead.http")


class SegmentQuery(RequestOptions):
    """The options of `POST /segment`; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid")

    tasks: str | None = Field(
        None, description="Tasks, separated by commas; all share one encoder pass. Default: the bundle's.",
        examples=["panoptic,depth"],
    )  # fmt: skip
    format: Literal["json", "png", "overlay", "npz"] = Field(
        "json", description="png and overlay take exactly one task. npz: arrays for NumPy."
    )
    features: str | None = Field(
        None, min_length=1, description="The id that POST /features gave: no encoder pass, if they are still kept."
    )

    def task_list(self) -> list[str] | None:
        """The tasks, or None for the default ones."""
        return parse_tasks(self.tasks)


def create_app(
    service: SegmentationService,
    *,
    host_gives_request_id: bool = False,
    total_metrics: Callable[[], Awaitable[Snapshot]] | None = None,
) -> FastAPI:
    """The HTTP application of one replica.

    Args:
        service: that answers.
        host_gives_request_id: the server around it (Ray Serve) puts X-Request-Id on every answer itself.
        total_metrics: of all replicas; None: this is the only one.
    """
    app = FastAPIOffline(
        title="polyhead",
        summary="One frozen vision encoder, one pass per picture, many heads.",
        version=version("polyhead"),
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours cover gRPC too; see `serving.tracing`
    )
    _add_segment(app, service)
    add_feature_route(app, service)
    add_video_socket(app, service)
    add_oip_routes(app, service)
    _add_status(app, service, total_metrics)
    _add_pages(app)
    _add_problems(app, service)
    app.add_middleware(_Observed, service=service, host_gives_request_id=host_gives_request_id)
    return app


def _add_segment(app: FastAPI, service: SegmentationService) -> None:
    answers: dict[int | str, dict[str, Any]] = {
        200: {"model": SegmentAnswer, "description": "Every asked task is in `results` or in `errors`."}
    }

    @app.post(
        "/segment",
        openapi_extra=picture_body(" Not needed with `features`.", required=False),
        summary="Run tasks on one picture",
        response_model=None,
        responses=answers | problem_answers(UnsupportedTaskError, MissingBlocksError),
    )
    async def segment(
        request: Request,
        query: Annotated[SegmentQuery, Query()],
        x_request_timeout_s: RequestTimeout = None,
    ) -> Response:
        """Answers JSON, or with `format` one task's PNG or overlay, or all arrays as an npz archive."""
        check_repeats(request)
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
            reading_s = time.perf_counter()
            data = await read_picture(request, service.settings.max_upload_bytes)
            add_stage("read", reading_s)
            service.metrics.admission_s.observe(time.perf_counter() - request.state.begun)
            if query.features and query.format == "overlay" and not data:
                raise InvalidOptionError(
                    "format=overlay shows the picture, and it did not come", remedy="send it along, or ask for png"
                )
            prediction = await service.predict(data, tasks, query.options, deadline_s, query.features)
            if not prediction.results:
                raise next(iter(prediction.errors.values()))
            response = await service.in_pool(lambda: _render(query, prediction, data, request, service))
        response.headers["Server-Timing"] = server_timing(prediction.timing)
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
    service.metrics.render_s.observe(time.perf_counter() - begun)
    add_stage("render", begun)
    return response


def _add_status(
    app: FastAPI, service: SegmentationService, total_metrics: Callable[[], Awaitable[Snapshot]] | None
) -> None:
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
        total = await total_metrics() if total_metrics else service.metrics.snapshot()
        text = await asyncio.to_thread(service.metrics.render, total)
        return Response(text, media_type=metrics.CONTENT_TYPE)


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
        return _problem(service, request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def invalid_option(request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}={e['input']!r}: {e['msg']}" for e in error.errors())
        mistake = InvalidOptionError(wrong, remedy="see /docs for the options and their values")
        return _problem(service, request.scope, mistake)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        reason = HTTPStatus(error.status_code).name.lower().replace("_", "-")
        service.metrics.rejected.labels(route_of(request.scope), reason).inc()
        problem = {"type": "about:blank", "title": error.detail, "status": error.status_code}
        detail = f"{request.method} {request.url.path}: {error.detail.lower()}"
        return JSONResponse(
            problem | {"detail": detail, "remedy": "see /docs for the paths and methods"},
            error.status_code,
            headers=error.headers,
            media_type="application/problem+json",
        )


def _problem(service: SegmentationService, scope: Scope, error: PolyheadError) -> Response:
    service.metrics.count_failure(route_of(scope), error)
    scope["state"]["error"] = error
    headers = {} if error.retry_after_s is None else {"Retry-After": str(int(error.retry_after_s))}
    return JSONResponse(error.problem(), error.status, headers=headers, media_type="application/problem+json")


class _Observed:
    """Gives every request an id and a trace, counts requests by route and status, and writes the access log."""

    def __init__(self, app: ASGIApp, service: SegmentationService, host_gives_request_id: bool) -> None:
        self._app = app
        self._service = service
        self._host_gives_request_id = host_gives_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        headers = {name.decode("latin-1").lower(): value for name, value in scope["headers"]}
        request_id = headers.get("x-request-id", b"").decode("latin-1")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, begun=begun)
        request = self._begin(scope, request_id, headers)
        given_back = {name.encode(): value.encode("latin-1") for name, value in request.answer_headers.items()}
        if not self._host_gives_request_id:
            given_back[b"x-request-id"] = request_id.encode("latin-1")
        with working_for(request):
            if scope["type"] == "websocket":
                await self._observe_socket(request, scope, receive, send)
            else:
                await self._observe_request(request, given_back, scope, receive, send)

    def _begin(self, scope: Scope, request_id: str, headers: Mapping[str, bytes]) -> RequestContext:
        given = {name: headers[name].decode("latin-1") for name in TRACE_HEADERS if name in headers}
        request = RequestContext(request_id, given)
        if self._service.tracer is not None and scope["path"] not in PROBES:
            method = _method(scope)
            attributes = {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope["scheme"]}
            request.span = self._service.tracer.begin(method, request_id, given, attributes)
        return request

    def _end(self, request: RequestContext, scope: Scope, code: int) -> None:
        method, route, error = _method(scope), route_of(scope), scope["state"].get("error")
        failed = error if error is not None and error.status >= 500 else None
        attributes: dict[str, AttributeValue] = {"http.route": route, "http.response.status_code": code}
        request.end_span(attributes, failed, name=f"{method} {route}")
        log_access(request, method, route, str(code), time.perf_counter() - scope["state"]["begun"], error)

    async def _observe_socket(self, request: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        """A web socket counts itself; its code here is 101, that of a refusal, or that of a close for a reason."""
        code = metrics.SWITCHED

        async def observe(message: Message) -> None:
            nonlocal code
            if message["type"] == "websocket.http.response.start":
                code = message["status"]
            elif message["type"] == "websocket.close" and message.get("code", 1000) != 1000:
                code = message["code"]
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            self._end(request, scope, code)

    async def _observe_request(
        self, request: RequestContext, given_back: Mapping[bytes, bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        status = metrics.CLIENT_CLOSED  # until something else is sent

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
            logger.exception("unexpected failure of request %s", request.request_id)
            if status != metrics.CLIENT_CLOSED:
                raise
            bug = InternalError("an unexpected failure; the server's log has it", remedy="report the X-Request-Id")
            await _problem(self._service, scope, bug)(scope, receive, observe)
        finally:
            route = route_of(scope)
            if status == metrics.CLIENT_CLOSED:
                self._service.metrics.cancelled.labels(route).inc()
            self._service.metrics.count_request(route, status, time.perf_counter() - scope["state"]["begun"])
            self._end(request, scope, status)


def _method(scope: Scope) -> str:
    return "GET" if scope["type"] == "websocket" else scope["method"]
