"""What every gRPC service of ours does with a call: id, trace, access log, a failure as its status. Knows no Ray."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import grpc

from serving.errors import PolyheadError
from serving.logs import PROBES, log_access
from serving.protos import segmentation_pb2 as pb
from serving.request_context import TRACE_HEADERS, RequestContext
from serving.tracing import Tracer

_MAX_TEXT_BYTES = 1200
"""Of one text in a call's trailers, which must stay under 8 KB in all, and grow on the wire."""


class GrpcContext(Protocol):
    """What is used of a call's context; grpc.aio's and Ray Serve's have it."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What the client sent beside its messages."""
        ...

    def trailing_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """What goes out with the status."""
        ...

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Replace it (Ray Serve keeps its request_id)."""
        ...

    def set_code(self, code: grpc.StatusCode) -> None:
        """Of the call."""
        ...

    def set_details(self, details: str) -> None:
        """Beside the code, for people."""
        ...


def set_status(context: GrpcContext, error: PolyheadError) -> None:
    """Make a failure the status of a call, as serving/protos/segmentation.proto tells it."""
    told = problem_message(error)
    told.detail, told.remedy = _clipped(told.detail), _clipped(told.remedy)
    metadata: list[tuple[str, str | bytes]] = [("reason", error.reason), ("problem-bin", told.SerializeToString())]
    if error.retry_after_s is not None:
        metadata.append(("retry-after-s", str(math.ceil(error.retry_after_s))))
    context.set_code(grpc.StatusCode[error.grpc_status])
    context.set_details(_clipped(f"{error.detail}; {error.remedy}"))
    _add_trailers(context, metadata)


def _clipped(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= _MAX_TEXT_BYTES else encoded[: _MAX_TEXT_BYTES - 3].decode(errors="ignore") + "…"


def _add_trailers(context: GrpcContext, metadata: Sequence[tuple[str, str | bytes]]) -> None:
    """Send metadata with the status, beside the call's id and trace."""
    kept = [pair for pair in context.trailing_metadata() or () if pair[0] in ("request_id", *TRACE_HEADERS)]
    context.set_trailing_metadata([*(pair for pair in kept if pair[0] != "request_id"), *metadata])
    if kept and not _request_id_of(context):  # Ray Serve keeps it, grpc.aio does not
        context.set_trailing_metadata([*kept, *metadata])


def _request_id_of(context: GrpcContext) -> list[tuple[str, str | bytes]]:
    return [pair for pair in context.trailing_metadata() or () if pair[0] == "request_id"]


def name_request(context: GrpcContext) -> str:
    """The call's id: the host's, or the client's, or a new one; it goes back with the status."""
    for name, value in (*_request_id_of(context), *(context.invocation_metadata() or ())):
        if name == "request_id" and isinstance(value, str):
            request_id = value
            break
    else:
        request_id = uuid.uuid4().hex
    if not _request_id_of(context):
        context.set_trailing_metadata([("request_id", request_id)])
    return request_id


def begin_call(tracer: Tracer | None, context: GrpcContext, route: str) -> RequestContext:
    """Name a call and begin its span; its trace goes back with the status.

    Args:
        tracer: of the replica, if requests are traced.
        context: of the call.
        route: ``/service/Method``.
    """
    request_id = name_request(context)
    given = {
        name: value
        for name, value in context.invocation_metadata() or ()
        if name in TRACE_HEADERS and isinstance(value, str)
    }
    request = RequestContext(request_id, given)
    if tracer is not None and route not in PROBES:
        _, service, method = route.split("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        request.span = tracer.begin(route[1:], request_id, given, attributes)
    if request.answer_headers:
        _add_trailers(context, list(request.answer_headers.items()))
    return request


def end_call(request: RequestContext, route: str, code: str, begun_s: float, error: PolyheadError | None) -> None:
    """End a call's span and write its line in the access log.

    Args:
        request: from `begin_call`.
        route: ``/service/Method``.
        code: name of the gRPC status.
        begun_s: on `time.perf_counter`.
        error: that was the reason, if one was.
    """
    failed = error if error is not None and error.status >= 500 else None
    request.end_span({"rpc.grpc.status_code": grpc.StatusCode[code].value[0]}, failed)
    log_access(request, "gRPC", route, code, time.perf_counter() - begun_s, error)


def problem_message(error: PolyheadError) -> pb.Problem:
    """A failure as a message."""
    return pb.Problem(**error.problem(), retry_after_s=error.retry_after_s)
