"""Video streams: frames in, answers out in order, and the state that belongs to a stream and to nobody else.

A frame is *waiting* from its arrival until the stream takes it, and then *under way* until its answer is read. Of one
stream, three stages overlap: decoding and resizing (one frame ahead), one encoder pass at a time (the next frame's
heads need this frame's state), and post-processing. Frames of many streams and still pictures share encoder batches,
since each pass goes through the same `PassRunner`. Nothing here knows of gRPC or web sockets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from PIL import Image

from decoders.online import StreamState
from serving.engine import PassInput, PassOutput, count_pass
from serving.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidOptionError,
    OverloadedError,
    PolyheadError,
    StreamEvictedError,
    TooLargeError,
)
from serving.options import MAX_IN_FLIGHT, TIMEOUT_S
from serving.request_context import RequestContext, add_stage, current_request, working_for
from serving.types import Prediction, PredictOptions, Timing

if TYPE_CHECKING:
    from serving.service import SegmentationService

logger = logging.getLogger("polyhead.streams")

Value = TypeVar("Value")

_MAX_REFUSED = 64
"""Refused frames that wait for their answer to be read, before the sender is made to wait."""

DropPolicy = Literal["block", "latest", "reject"]
"""When a stream has `max_in_flight` frames inside: make the sender wait, drop the oldest waiting frame, or refuse."""


class FrameDecoder(Protocol):
    """Turns what a client sends into pictures, in the stream's order; may hold a codec's state.

    Called from many threads, but never from two at once, unless a `push` was cancelled.
    """

    def decode(self, frame: Frame) -> list[DecodedFrame]:
        """What comes out when `frame` goes in: for most codecs one picture, for a video codec none or several.

        Raises:
            PolyheadError: the frame can't be decoded; the next one may be.
        """
        ...

    def flush(self) -> list[DecodedFrame]:
        """What is still inside when no frame will follow; nothing the second time."""
        ...

    @property
    def keeps_state(self) -> bool:
        """Whether every frame must be decoded, also one that will be dropped; if not, each gives one picture."""
        ...


@dataclass(frozen=True)
class StreamConfig:
    """What a client wants of a stream, once and for all.

    Attributes:
        tasks: heads, checked.
        options: thresholds and output size.
        drop_policy: see `DropPolicy`.
        max_in_flight: frames inside at once, from their arrival to the reading of their answer, within
            `options.MAX_IN_FLIGHT`.
            With ``latest`` one more may wait, the newest.
        frame_timeout_s: a frame older than this when its turn comes is answered with an error; None: never.

    Raises:
        InvalidOptionError: a number is out of range.
    """

    tasks: tuple[str, ...]
    options: PredictOptions = field(default_factory=PredictOptions)
    drop_policy: DropPolicy = "block"
    max_in_flight: int = 4
    frame_timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.max_in_flight not in MAX_IN_FLIGHT:
            raise InvalidOptionError(f"max_in_flight is {self.max_in_flight}", remedy=f"ask for {MAX_IN_FLIGHT} frames")
        if self.frame_timeout_s is not None and self.frame_timeout_s not in TIMEOUT_S:
            raise InvalidOptionError(
                f"frame_timeout_s is {self.frame_timeout_s}", remedy=f"give {TIMEOUT_S} seconds, or none"
            )


@dataclass(frozen=True)
class Frame:
    """One frame as it arrived.

    Attributes:
        frame_id: the client's.
        data: encoded or raw.
        captured_at_us: the client's clock, given back as it is.
        size: (height, width) of raw pixels.
        arrived_s: on `time.monotonic`.
    """

    frame_id: int
    data: bytes
    captured_at_us: int = 0
    size: tuple[int, int] | None = None
    arrived_s: float = field(default_factory=time.monotonic)


DecodedFrame = tuple[Frame, Image.Image | PolyheadError]
"""A frame that went into a decoder, and its RGB picture or why it gave none."""


@dataclass(frozen=True)
class FrameAnswer:
    """The answer for one frame: a prediction or an error.

    Attributes:
        frame: which, without its data.
        prediction: None if the frame failed as a whole.
        error: why.
        dropped_since_last: frames between the last answer's and this one that were dropped.
        age_s: from the frame's arrival to the reading of this answer.
    """

    frame: Frame
    prediction: Prediction | None
    error: PolyheadError | None
    dropped_since_last: int
    age_s: float


@dataclass(eq=False)
class _Job:
    """A frame from its arrival to its answer.

    Attributes:
        frame: as it came.
        image: decoded; gone once the inputs are made.
        image_size: (height, width) of it.
        inputs: for the encoder, without the stream's states.
        timing: so far.
        prediction, error: the answer.
        ready_s: when there was an answer, on `time.monotonic`; None: there is none yet.
        dropped: frames that were dropped between the one before and this one.
        counted: it takes one of the stream's places; a frame that was refused does not.
        request: of the stream, with the frame's own span; from the moment that it is taken.
    """

    frame: Frame
    image: Image.Image | None = None
    image_size: tuple[int, int] = (0, 0)
    inputs: Sequence[PassInput] = ()
    timing: Timing = field(default_factory=Timing)
    prediction: Prediction | None = None
    error: PolyheadError | None = None
    ready_s: float | None = None
    dropped: int = 0
    counted: bool = True
    request: RequestContext | None = None


class VideoStream:
    """One client's stream. `push` frames, iterate over `answers`, and `close` whatever happens.

    A stream takes frames until `end_input`, and then answers what is inside; or it is ended, by `evict` or `close`,
    and from then on `push` and `answers` raise the reason. Everything that it held is let go at that moment.

    Args:
        service: of the replica.
        config: checked.
        decoder: of this stream alone.
        on_change: told when the states may have grown.

    Attributes:
        config: as given.
        active_s: when a frame last came or an answer was last read, on `time.monotonic`.
        num_frames: that went through the encoder.
    """

    def __init__(
        self,
        service: SegmentationService,
        config: StreamConfig,
        decoder: FrameDecoder,
        on_change: Callable[[VideoStream], None] = lambda stream: None,
    ) -> None:
        self.config = config
        self.active_s = time.monotonic()
        self.num_frames = 0
        self._service = service
        self._request = current_request()
        if self._request is not None:
            self._request.add_tasks(config.tasks)
        self._decoder: FrameDecoder | None = decoder
        self._on_change = on_change
        self._states: dict[str, StreamState] = {}
        self._waiting: deque[_Job] = deque()
        self._under_way: deque[_Job] = deque()
        self._read_s = self.active_s
        self._input_ended = False
        self._worked_off = False
        self._failure: PolyheadError | None = None
        self._changed = asyncio.Event()
        self._push_order = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._start(self._work())

    @property
    def state_bytes(self) -> int:
        """Memory that the stream's heads keep between frames."""
        return sum(state.num_bytes for state in list(self._states.values()))  # it is also asked from other threads

    @property
    def busy(self) -> bool:
        """Whether a frame is inside, from its arrival to the reading of its answer."""
        return bool(self._waiting or self._under_way)

    @property
    def idle_since_s(self) -> float | None:
        """Since when only the client can go on: an answer waits to be read, or no frame is inside.

        On `time.monotonic`; None: it is our turn.
        """
        if not self.busy:
            return self.active_s
        ready_s = self._under_way[0].ready_s if self._under_way else None
        return None if ready_s is None else max(ready_s, self._read_s)

    async def push(self, frame: Frame) -> None:
        """Take a frame in. Under ``block`` this waits for room, which is the back-pressure that the client feels.

        What is wrong with the frame itself is told in its answer.

        Raises:
            PolyheadError: the stream was ended, says why; or its input had ended.
        """
        self.active_s = time.monotonic()
        await asyncio.sleep(0)  # a sender who never has to wait must leave the others their turn
        async with self._push_order:
            self._check_open()
            for job in await self._receive(frame):
                await self._admit(job)

    async def end_input(self) -> None:
        """No frame will follow those that were pushed: answers end after the last one."""
        async with self._push_order:
            self._input_ended = True
            self._notify()

    def evict(self, error: PolyheadError) -> None:
        """End the stream now; whoever waits in `push` or for an answer gets `error`. May be called in any thread."""
        if self._loop.is_closed():
            return
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._end(error)
        else:
            self._loop.call_soon_threadsafe(self._end, error)

    async def wait_ended(self) -> PolyheadError:
        """Wait until the stream was ended on our side, and why; a client that does not read never gets to `answers`."""
        while self._failure is None:
            await self._changed.wait()
        return self._failure

    async def close(self) -> None:
        """Free everything; safe to call twice, and after any end."""
        self._end(StreamEvictedError("the stream was closed", remedy="open a new one"))
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def answers(self) -> AsyncIterator[FrameAnswer]:
        """One answer for each accepted frame, in order. May be left and taken up again.

        Raises:
            PolyheadError: the stream was ended; says why.
        """
        while True:
            await self._until(lambda: self._next_is_ready or (self._worked_off and not self._under_way))
            if not self._under_way:
                return
            job = self._under_way.popleft()
            self._read_s = self.active_s = now_s = time.monotonic()
            self._notify()
            age_s = now_s - job.frame.arrived_s
            metrics = self._service.metrics
            metrics.frames.labels(job.error.reason if job.error else "ok").inc()
            metrics.frame_age_s.observe(age_s)
            yield FrameAnswer(job.frame, job.prediction, job.error, job.dropped, age_s)

    # The two sides of the door

    async def _receive(self, frame: Frame) -> list[_Job]:
        """What a frame that arrives makes to do; a codec that keeps state must see every frame, so it does here."""
        limit = self._service.settings.max_upload_bytes
        if len(frame.data) > limit:
            error = TooLargeError(
                f"frame {frame.frame_id} has {len(frame.data)} bytes; at most {limit} are taken",
                remedy="send smaller frames, or raise POLYHEAD_MAX_UPLOAD_BYTES",
            )
            return [_Job(_without_data(frame), error=error)]
        decoder = self._decoder
        assert decoder is not None
        if not decoder.keeps_state:
            return [_Job(frame)]
        decoded = await self._try_in_pool(lambda: _timed(lambda: decoder.decode(frame)))
        if isinstance(decoded, PolyheadError):
            return [_Job(_without_data(frame), error=decoded)]
        return [_decoded_job(item, decoded[1]) for item in decoded[0]]

    async def _admit(self, job: _Job) -> None:
        limit, policy = self.config.max_in_flight, self.config.drop_policy
        await self._until(
            lambda: (
                self._places_taken < limit
                or policy == "latest"
                or (policy == "reject" and self._refused < _MAX_REFUSED)
            )
        )
        if self._places_taken >= limit:
            if policy == "reject":
                job.counted, job.frame, job.image = False, _without_data(job.frame), None
                job.error = job.error or OverloadedError(
                    f"{self._places_taken} frames of this stream are inside, as many as are let in",
                    remedy="send fewer frames, or choose drop_policy latest or block",
                )
            elif self._waiting:  # or else all that is inside is under way, and this one may wait
                oldest = self._waiting.popleft()
                self._service.metrics.frames_dropped.inc()
                (self._waiting[0] if self._waiting else job).dropped += 1 + oldest.dropped
        self._waiting.append(job)
        self._notify()

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._input_ended:
            raise InvalidOptionError("a frame came after the end of the stream's input", remedy="open a new stream")

    @property
    def _places_taken(self) -> int:
        return sum(job.counted for job in (*self._waiting, *self._under_way))

    @property
    def _refused(self) -> int:
        return len(self._waiting) + len(self._under_way) - self._places_taken

    @property
    def _next_is_ready(self) -> bool:
        return bool(self._under_way) and self._under_way[0].ready_s is not None

    # The way of a frame

    async def _work(self) -> None:
        """Frames in order through the encoder; the next one is decoded and resized meanwhile."""
        try:
            ahead = self._start(self._take())
            while (job := await ahead) is not None:
                ahead = self._start(self._take())
                passed = None if job.error is not None else await self._encode(job)
                if passed is None:
                    self._ready(job)
                else:
                    self._start(self._finish(job, *passed))
        except asyncio.CancelledError:
            self._end(StreamEvictedError("the stream was cancelled", remedy="open a new one"))
            raise
        except Exception as error:
            logger.exception("a video stream failed")
            self._end(_internal(f"the stream failed with a {type(error).__name__}", remedy="open a new one"))
        finally:
            self._states.clear()
            self._worked_off = True
            self._notify()

    async def _take(self) -> _Job | None:
        """The next frame, ready for the encoder or failed; None after the last one."""
        while True:
            await self._until(lambda: self._may_take or (self._input_ended and not self._waiting))
            if self._waiting:
                break
            left = await self._flush()
            if not left:
                return None
            self._waiting.extend(left)
        job = self._waiting.popleft()
        self._under_way.append(job)
        self._notify()
        job.request = self._begin_request(job)
        if job.error is None:
            self._service.metrics.admission_s.observe(time.monotonic() - job.frame.arrived_s)
            with working_for(job.request):
                error = await self._try_in_pool(lambda: self._prepare(job))
            job.error = job.error or error
            job.frame = _without_data(job.frame)
        return job

    def _begin_request(self, job: _Job) -> RequestContext | None:
        """What the stream's request is for one frame: the same, with a span of its own from the frame's arrival on."""
        if self._request is None or self._request.span is None:
            return self._request
        arrived_s = time.perf_counter() - (time.monotonic() - job.frame.arrived_s)
        span = self._request.span.child("frame", arrived_s, {"polyhead.frame_id": str(job.frame.frame_id)})
        if job.image is not None:  # a codec that keeps state decodes at once
            span.stage("decode", arrived_s, arrived_s + job.timing.decode_ms / 1e3)
        return replace(self._request, span=span, encoder_passes=0)

    @property
    def _may_take(self) -> bool:
        return bool(self._waiting) and sum(job.counted for job in self._under_way) < self.config.max_in_flight

    async def _flush(self) -> list[_Job]:
        decoder = self._decoder
        assert decoder is not None
        if not decoder.keeps_state:
            return []
        decoded = await self._try_in_pool(decoder.flush)
        return [] if isinstance(decoded, PolyheadError) else [_decoded_job(item, 0.0) for item in decoded]

    def _prepare(self, job: _Job) -> None:
        """Decode and resize, in a thread."""
        self._check_age(job)
        decoder = self._decoder
        if job.image is None and decoder is not None:
            [(_, decoded)], job.timing.decode_ms = _timed(lambda: decoder.decode(job.frame), "decode")
            if isinstance(decoded, PolyheadError):
                raise decoded
            job.image = decoded
        image = job.image
        if image is None:
            return  # the stream was ended
        job.image_size, job.image = (image.height, image.width), None
        engine, config = self._service.engine, self.config
        job.inputs, job.timing.preprocess_ms = _timed(
            lambda: engine.prepare(image, config.tasks, config.options), "preprocess"
        )

    async def _encode(self, job: _Job) -> tuple[Sequence[PassInput], list[PassOutput]] | None:
        """One frame through its passes, with the states that the last one left; keeps those that it leaves.

        A frame that fails leaves the states as they were.
        """
        service = self._service
        inputs = [
            replace(item, states={task: self._states[task] for task in item.tasks if task in self._states})
            for item in job.inputs
        ]
        try:
            deadline_s = self._check_age(job)
            with service.admission.frame():
                answers = await service.run_passes(inputs, deadline_s, job.request)
        except PolyheadError as error:
            job.error = error.with_traceback(None)
            return None
        for answer in answers:
            count_pass(job.timing, answer.output)
            job.timing.queue_ms = max(job.timing.queue_ms, 1e3 * answer.queue_s)
            self._states.update(answer.output.states)
        self.num_frames += 1
        if self._request is not None and job.request is not self._request:
            self._request.encoder_passes += job.timing.encoder_passes
        self._on_change(self)
        return job.inputs, [answer.output for answer in answers]

    async def _finish(self, job: _Job, inputs: Sequence[PassInput], outputs: Sequence[PassOutput]) -> None:
        service = self._service

        def finish() -> Prediction:
            (results, errors), job.timing.postprocess_ms = _timed(
                lambda: service.engine.finish(inputs, outputs, self.config.options), "postprocess"
            )
            job.timing.total_ms = 1e3 * (time.monotonic() - job.frame.arrived_s)
            prediction = Prediction(job.image_size, inputs[0].geometry.output_size, results, errors, job.timing)
            service.metrics.count_prediction(prediction)
            return prediction

        with working_for(job.request):
            outcome = await self._try_in_pool(finish)
        if isinstance(outcome, PolyheadError):
            job.error = outcome
        else:
            job.prediction = outcome
        self._ready(job)

    def _ready(self, job: _Job) -> None:
        job.inputs = ()
        job.ready_s = time.monotonic()
        self._end_span(job, job.error)
        self._notify()

    def _end_span(self, job: _Job, error: PolyheadError | None) -> None:
        if job.request is not None and job.request is not self._request:
            job.request.end_span(error=error)

    def _check_age(self, job: _Job) -> float | None:
        """The frame's deadline on `time.monotonic`, if it has one that has not passed."""
        timeout_s = self.config.frame_timeout_s
        if timeout_s is None:
            return None
        deadline_s = job.frame.arrived_s + timeout_s
        if time.monotonic() > deadline_s:
            raise DeadlineExceededError(
                f"the frame waited longer than {timeout_s:g} s",
                remedy="allow more time, send fewer frames, or choose drop_policy latest",
            )
        return deadline_s

    # Waiting, and the end

    def _notify(self) -> None:
        """Something changed: whoever waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, or raise why the stream was ended."""
        while self._failure is None and not condition():
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _start(self, work: Coroutine[Any, Any, Value]) -> asyncio.Task[Value]:
        task = asyncio.create_task(work, name="video stream")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _try_in_pool(self, function: Callable[[], Value]) -> Value | PolyheadError:
        """Run work in the picture threads; what goes wrong there fails one frame and not the stream."""
        try:
            return await self._service.in_pool(function)
        except PolyheadError as error:
            return error.with_traceback(None)  # which would keep the frame's pixels alive
        except Exception as error:
            logger.exception("a frame failed")
            return _internal(
                f"the frame failed with a {type(error).__name__}", remedy="send the next one, or report it"
            )

    def _end(self, error: PolyheadError) -> None:
        """Let go of everything, once; from now on `error` is what the stream has to say."""
        if self._failure is not None:
            return
        self._failure = error
        for job in self._under_way:
            if job.ready_s is None:
                self._end_span(job, error)
        for task in self._tasks:
            task.cancel()
        self._states.clear()
        self._waiting.clear()
        self._under_way.clear()
        self._decoder = None
        self._notify()


def _decoded_job(decoded: DecodedFrame, decode_ms: float) -> _Job:
    frame, outcome = _without_data(decoded[0]), decoded[1]
    if isinstance(outcome, PolyheadError):
        return _Job(frame, error=outcome)
    return _Job(frame, image=outcome, timing=Timing(decode_ms=decode_ms))


def _without_data(frame: Frame) -> Frame:
    """What a reader must know of a frame: many may wait to be read."""
    return replace(frame, data=b"")


def _timed(function: Callable[[], Value], stage: str | None = None) -> tuple[Value, float]:
    """What a function returns, and the milliseconds that it took; `stage` is what the frame's trace calls it."""
    begun = time.perf_counter()
    value = function()
    ended = time.perf_counter()
    if stage is not None:
        add_stage(stage, begun, ended)
    return value, 1e3 * (ended - begun)


def _internal(detail: str, *, remedy: str) -> InternalError:
    return InternalError(f"{detail}; the server's log has it", remedy=remedy)
