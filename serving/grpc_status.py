"""What every gRPC service of ours does with a call: its id, and a failure as its status. Knows nothing of Ray."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import grpc

from serving.errors import PolyheadError
from serving.protos import segmentation_pb2 as pb

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
    request_id = _request_id_of(context)
    context.set_trailing_metadata(metadata)
    if not _request_id_of(context):  # Ray Serve keeps it, grpc.aio does not
        context.set_trailing_metadata([*request_id, *metadata])


def _clipped(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= _MAX_TEXT_BYTES else encoded[: _MAX_TEXT_BYTES - 3].decode(errors="ignore") + "…"


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


def problem_message(error: PolyheadError) -> pb.Problem:
    """A failure as a message."""
    return pb.Problem(**error.problem(), retry_after_s=error.retry_after_s)
