"""Log lines as JSON objects, and the access log: one line a request.

`log_format=text` leaves lines as Python writes them, and the access log to Ray Serve, which has one of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from serving.errors import PolyheadError
from serving.request_context import RequestContext, current_request, working_for

LogFormat = Literal["text", "json"]

PROBES = frozenset(
    {
        "/healthz",
        "/readyz",
        "/metrics",
        "/v2/health/live",
        "/v2/health/ready",
        "/inference.GRPCInferenceService/ServerLive",
        "/inference.GRPCInferenceService/ServerReady",
        "/inference.GRPCInferenceService/ModelReady",
    }
)
"""Routes that machines ask every few seconds: told at DEBUG only, and not traced."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_access = logging.getLogger("polyhead.access")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``; ``request_id`` and ``trace_id`` of the request that
    was worked for, where it is known; ``error``, the traceback; and whatever the record was given as `extra`.

    Args:
        fields: added to every line.
    """

    def __init__(self, fields: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._fields = dict(fields or {})

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request = current_request()
        if request is not None:
            line["request_id"] = request.request_id
            if request.trace_id is not None:
                line["trace_id"] = request.trace_id
        line |= self._fields
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def write_text() -> None:
    """Have this process write its log as text, without the access log."""
    logging.basicConfig(level=logging.INFO)
    _access.disabled = True


def write_json(handler: logging.Handler, fields: Mapping[str, str] | None = None) -> None:
    """Have this process write its log as JSON, with the access log.

    Args:
        handler: that all lines go to.
        fields: added to every line.
    """
    handler.setFormatter(JsonFormatter(fields))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    _access.disabled = False


def log_access(
    request: RequestContext, method: str, route: str, code: str, seconds: float, error: PolyheadError | None = None
) -> None:
    """Write the line of a request that is over.

    Args:
        request: of which its id, tasks and passes are told.
        method: of HTTP, or ``"gRPC"``.
        route: its pattern, or the full name of the gRPC method.
        code: HTTP status or gRPC code.
        seconds: that it took.
        error: that was the answer, if one was.
    """
    level = logging.DEBUG if route in PROBES else logging.INFO
    if _access.isEnabledFor(level):
        told: dict[str, Any] = {
            "method": method,
            "route": route,
            "code": code,
            "ms": round(1e3 * seconds, 3),
            "tasks": list(request.tasks),
            "encoder_passes": request.encoder_passes,
        }
        if error is not None:
            told["reason"] = error.reason
        with working_for(request):
            _access.log(level, "%s %s %s %.1f ms", method, route, code, 1e3 * seconds, extra=told)
