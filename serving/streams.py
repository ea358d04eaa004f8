"""Video streams: frames in, answers out in order, and the state that belongs to a stream and to nobody else.

A stream's frames go through three stages that overlap: decoding (in the stream's own order), one encoder pass at a time
(the next frame's heads need this frame's state), and post-processing. Frames of many streams and still pictures share
encoder batches, since each pass goes through the same `PassRunner`. Nothing here knows of gRPC or web sockets.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from PIL import Image

from decoders.online import StreamState
from serving.engine import PassInput, count_pass
from serving.errors import (
    DeadlineExceededError,
    InternalError,
    OverloadedError,
    PolyheadError,
    StreamEvictedError,
)
from serving.types import Prediction, PredictOptions, Timing

if TYPE_CHECKING:
    from serving.service import SegmentationService

_MAX_REFUSED = 64
"""Refused frames that wait for their answer to be read, before the sender is made to wait."""

DropPolicy = Literal["block", "latest", "reject"]
"""When a stream has `max_in_flight` frames inside: make the sender wait, drop the oldest waiting frame, or refuse."""


class FrameDecoder(Protocol):
    """Turns what a client sends into pictures, in the stream's order; may hold a codec's state."""

    def decode(self, frame: Frame) -> list[tuple[Frame, Image.Image]]:
        """The pictures that come out when `frame` goes in: for most codecs one, for a video codec none or several.

        Raises:
            PolyheadError: the frame can't be decoded; the next one may be.
        """
        ...

    @property
    def keeps_state(self) -> bool:
        """Whether every frame must be decoded, also one that will be dropped."""
        ...


@dataclass(frozen=True)
class StreamConfig:
    """What a client wants of a stream, once and for all.

    Attributes:
        tasks: heads, checked.
        options: thresholds and output size.
        drop_policy: see `DropPolicy`.
        max_in_flight: frames inside at once, from their arrival to their answer.
        frame_timeout_s: a frame older than this when its turn comes is answered with an error; None: never.
    """

    tasks: tuple[str, ...]
    options: PredictOptions = field(default_factory=PredictOptions)
    drop_policy: DropPolicy = "block"
    max_in_flight: int = 4
    frame_timeout_s: float | None = None


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


@dataclass(frozen=True)
class FrameAnswer:
    """The answer for one frame: a prediction or an error.

    Attributes:
        frame: which.
        prediction: None if the frame failed as a whole.
        error: why.
        dropped_since_last: frames that were dropped since the answer before.
        age_s: from the frame's arrival to this answer.
    """

    frame: Frame
    prediction: Prediction | None
    error: PolyheadError | None
    dropped_since_last: int
    age_s: float


@dataclass
class _Waiting:
    """A frame inside, not yet before the encoder: still encoded, decoded, or already failed.

    `counted`: it takes one of the stream's places; a frame that was refused does not.
    """

    frame: Frame
    image: Image.Image | None = None
    decode_ms: float = 0.0
    error: PolyheadError | None = None
    counted: bool = True


_Answer = tuple[_Waiting, int, asyncio.Task[Prediction] | None]
"""A frame, the frames dropped before it, and the post-processing under way (None: the frame failed)."""


class VideoStream:
    """One client's stream. `push` frames, iterate over answers, and `close` whatever happens.

    Args:
        service: of the replica.
        config: checked.
        decoder: of this stream alone.
        on_change: told when the state's size or the time of the last activity changes.
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
        self._decoder = decoder
        self._on_change = on_change
        self._states: dict[str, StreamState] = {}
        self._waiting: deque[_Waiting] = deque()
        self._inside = 0  # frames that count against max_in_flight
        self._dropped = 0
        self._changed = asyncio.Condition()
        self._input_ended = False
        self._failure: PolyheadError | None = None
        self._answers: asyncio.Queue[_Answer | None] = asyncio.Queue(config.max_in_flight)
        self._decode_lock = asyncio.Lock()
        self._worker = asyncio.create_task(self._work(), name="video stream")

    @property
    def state_bytes(self) -> int:
        """Memory that the stream's heads keep between frames."""
        return sum(state.num_bytes for state in self._states.values())

    @property
    def busy(self) -> bool:
        """Whether a frame is inside, from its arrival to its answer."""
        return self._inside > 0

    async def push(self, frame: Frame) -> None:
        """Take a frame in. Under ``block`` this waits for room, which is the back-pressure that the client feels.

        Raises:
            PolyheadError: the stream has ended on our side.
        """
        self._touch()
        if self._decoder.keeps_state:
            for waiting in await self._decode(_Waiting(frame)):
                await self._admit(waiting)
        else:
            await self._admit(_Waiting(frame))

    async def end_input(self) -> None:
        """No frame will follow: answers end after the last one."""
        async with self._changed:
            self._input_ended = True
            self._changed.notify_all()

    def evict(self, error: PolyheadError) -> None:
        """End the stream now; whoever waits in `push` or for an answer gets `error`."""
        if self._failure is None:
            self._failure = error
            self._worker.cancel()

    async def close(self) -> None:
        """Free everything; safe to call twice, and after any end."""
        self._failure = self._failure or StreamEvictedError("the stream was closed", remedy="open a new one")
        self._worker.cancel()
        with suppress(asyncio.CancelledError):
            await self._worker
        self._states.clear()
        self._waiting.clear()
        self._forget_answers()
        self._on_change(self)

    async def answers(self) -> AsyncIterator[FrameAnswer]:
        """One answer for each accepted frame, in order.

        Raises:
            PolyheadError: the stream was ended on our side; says why.
        """
        while True:
            answer = await self._answers.get()
            if answer is None:
                if self._failure is not None:
                    raise self._failure
                return
            waiting, dropped, finishing = answer
            prediction, error = None, waiting.error
            if finishing is not None:
                try:
                    prediction = await finishing
                except PolyheadError as failure:
                    error = failure
            if waiting.counted:
                await self._leave()
            self._touch()
            yield FrameAnswer(waiting.frame, prediction, error, dropped, time.monotonic() - waiting.frame.arrived_s)

    def _touch(self) -> None:
        self.active_s = time.monotonic()
        self._on_change(self)

    async def _admit(self, waiting: _Waiting) -> None:
        async with self._changed:
            if self._failure is not None:
                raise self._failure
            if self._inside >= self.config.max_in_flight:
                match self.config.drop_policy:
                    case "block":
                        await self._wait_until(lambda: self._inside < self.config.max_in_flight)
                    case "latest" if self._waiting:  # or else all that is inside is under way, and one may wait
                        self._waiting.popleft()
                        self._inside -= 1
                        self._dropped += 1
                    case "reject":
                        await self._wait_until(lambda: len(self._waiting) < _MAX_REFUSED)  # if answers are not read
                        waiting.counted = False
                        waiting.error = OverloadedError(
                            f"{self._inside} frames of this stream are inside, as many as are let in",
                            remedy="send fewer frames, or choose drop_policy latest or block",
                        )
            self._inside += waiting.counted
            self._waiting.append(waiting)
            self._changed.notify_all()

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        await self._changed.wait_for(lambda: condition() or self._failure is not None)
        if self._failure is not None:
            raise self._failure

    async def _leave(self) -> None:
        async with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    async def _next(self) -> _Waiting | None:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._waiting) or self._input_ended)
            if not self._waiting:
                return None
            waiting = self._waiting.popleft()
            self._changed.notify_all()
            return waiting

    async def _decode(self, waiting: _Waiting) -> list[_Waiting]:
        """The pictures that come out of the decoder, in order; a frame that fails comes back with its error."""

        def decode() -> list[_Waiting]:
            begun = time.perf_counter()
            pictures = self._decoder.decode(waiting.frame)
            decode_ms = 1e3 * (time.perf_counter() - begun)
            return [_Waiting(frame, image, decode_ms) for frame, image in pictures]

        async with self._decode_lock:
            try:
                return await self._service.in_pool(decode)
            except PolyheadError as error:
                waiting.error = error
                return [waiting]

    async def _work(self) -> None:
        """Frames in order through the encoder; the next one is decoded meanwhile."""
        ahead: asyncio.Task[_Waiting | None] | None = None
        try:
            ahead = asyncio.create_task(self._next_decoded())
            while (waiting := await ahead) is not None:
                ahead = asyncio.create_task(self._next_decoded())
                finishing = None if waiting.error is not None else await self._encode(waiting)
                dropped, self._dropped = self._dropped, 0
                await self._answers.put((waiting, dropped, finishing))
                self.num_frames += 1
        except asyncio.CancelledError:
            pass
        except Exception as error:  # noqa: BLE001  # whatever it is, the client must hear of it
            self._failure = self._failure or InternalError(
                f"the stream failed with a {type(error).__name__}; the server's log has it", remedy="open a new one"
            )
        finally:
            if ahead is not None:
                ahead.cancel()
            if self._failure is not None:
                self._forget_answers()
                async with self._changed:
                    self._changed.notify_all()
            await self._answers.put(None)

    def _forget_answers(self) -> None:
        while not self._answers.empty():
            answer = self._answers.get_nowait()
            if answer is not None and answer[2] is not None:
                answer[2].cancel()

    async def _next_decoded(self) -> _Waiting | None:
        waiting = await self._next()
        if waiting is None or waiting.error is not None or waiting.image is not None:
            return waiting
        [decoded] = await self._decode(waiting)
        return decoded

    async def _encode(self, waiting: _Waiting) -> asyncio.Task[Prediction] | None:
        """One frame through its passes; keeps the states, and leaves post-processing to a task of its own."""
        service, config = self._service, self.config
        assert waiting.image is not None
        image, timing = waiting.image, Timing(decode_ms=waiting.decode_ms)
        deadline_s = None if config.frame_timeout_s is None else waiting.frame.arrived_s + config.frame_timeout_s
        try:
            if deadline_s is not None and time.monotonic() > deadline_s:
                raise DeadlineExceededError(
                    f"the frame waited longer than {config.frame_timeout_s:g} s",
                    remedy="allow more time, send fewer frames, or choose drop_policy latest",
                )
            begun = time.perf_counter()
            inputs: Sequence[PassInput] = await service.in_pool(
                lambda: service.engine.prepare(image, config.tasks, config.options, self._states)
            )
            timing.preprocess_ms = 1e3 * (time.perf_counter() - begun)
            with service.admission.frame():
                answers = await service.run_passes(inputs, deadline_s)
        except PolyheadError as error:
            waiting.error = error
            return None
        for answer in answers:
            count_pass(timing, answer.output)
            timing.queue_ms = max(timing.queue_ms, 1e3 * answer.queue_s)
            self._states.update(answer.output.states)
        self._on_change(self)
        outputs = [answer.output for answer in answers]

        def finish() -> Prediction:
            begun = time.perf_counter()
            results, errors = service.engine.finish(inputs, outputs, config.options)
            timing.postprocess_ms = 1e3 * (time.perf_counter() - begun)
            timing.total_ms = 1e3 * (time.monotonic() - waiting.frame.arrived_s)
            size = (image.height, image.width)
            prediction = Prediction(size, inputs[0].geometry.output_size, results, errors, timing)
            service.metrics.count_prediction(prediction)
            return prediction

        return asyncio.create_task(service.in_pool(finish))
