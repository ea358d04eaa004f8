"""What is known of the request that is being served, wherever in the server it has got to: its id, its trace, its cost.

A gateway begins the context and ends it; a context variable carries it through the event loop's tasks and into the
picture threads, and `PassInput.request` into the accelerator's thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.engine import PassOutput
    from serving.tracing import AttributeValue, Span

TRACE_HEADERS = ("traceparent", "tracestate")
"""Of W3C Trace Context, in HTTP headers and gRPC metadata; taken and given back."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}.*")


@dataclass(eq=False)
class RequestContext:
    """One request: an HTTP request, a gRPC call, a web socket; a stream is one for as long as it lives.

    Attributes:
        request_id: the client's or ours.
        given: the trace headers that came with it.
        span: the server span, if the request is traced.
        tasks: that it runs, as soon as they are known.
        encoder_passes: that served it so far.
    """

    request_id: str
    given: Mapping[str, str]
    span: Span | None = None
    tasks: tuple[str, ...] = ()
    encoder_passes: int = 0

    @property
    def trace_id(self) -> str | None:
        """Of our span or else of the client's, 32 hexadecimal digits."""
        if self.span is not None:
            return self.span.trace_id
        found = _TRACEPARENT.fullmatch(self.given.get("traceparent", ""))
        return found[1] if found else None

    @property
    def answer_headers(self) -> Mapping[str, str]:
        """The trace headers of the answer: our span as the new parent, or what came, unchanged."""
        return self.given if self.span is None else self.span.headers

    def add_tasks(self, tasks: Iterable[str]) -> None:
        """Note tasks that it runs."""
        self.tasks = tuple(dict.fromkeys((*self.tasks, *tasks)))

    def add_pass(self, output: PassOutput, queue_s: float) -> None:
        """Note a pass that served it, in its cost and in its trace; arguments as in `Span.pass_stages`."""
        self.encoder_passes += output.report.batch_size > 0
        if self.span is not None:
            others = {id(other): other for other in output.report.requests if other is not self}
            siblings = [other.span for other in others.values() if other.span is not None]
            self.span.pass_stages(output, queue_s, siblings)

    def end_span(
        self,
        attributes: Mapping[str, AttributeValue] | None = None,
        error: BaseException | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """End its span, if it has one, with what is known by now; arguments as in `Span.set` and `Span.end`."""
        if self.span is not None:
            self.span.set({"polyhead.tasks": self.tasks, "polyhead.encoder_passes": self.encoder_passes})
            self.span.set(attributes or {})
            self.span.end(error, name=name)


_current: ContextVar[RequestContext | None] = ContextVar("polyhead_request", default=None)


def current_request() -> RequestContext | None:
    """The request that the running task or thread works for, if it is known."""
    return _current.get()


def add_tasks(tasks: Iterable[str]) -> None:
    """Note tasks that the current request runs."""
    request = _current.get()
    if request is not None:
        request.add_tasks(tasks)


def add_stage(name: str, begun_s: float, ended_s: float | None = None) -> None:
    """Tell the current request's trace, if it has one, of a stage that is over.

    Args:
        name: of the stage.
        begun_s, ended_s: on `time.perf_counter`; it ends now by default.
    """
    request = _current.get()
    if request is not None and request.span is not None:
        request.span.stage(name, begun_s, time.perf_counter() if ended_s is None else ended_s)


@contextmanager
def working_for(request: RequestContext | None) -> Iterator[None]:
    """Make `request` the current one.

    By value and not by token: what an async generator does between two yields may run in different contexts.
    """
    before = _current.get()
    _current.set(request)
    try:
        yield
    finally:
        _current.set(before)
