"""A typed client of a polyhead server over gRPC: pictures and video, for ordinary code and for asyncio.

>>> from polyhead.client import Client
>>> with Client("127.0.0.1:9000") as client:
...     answer = client.segment("photo.jpg", tasks=["panoptic", "depth"])
...     for frame in client.video(frames, tasks=["panoptic"]):
...         print(frame.frame_id, len(frame.results["panoptic"].segments))

`AsyncClient` is the same with ``await`` and ``async for``. Failures are raised as what they are on the server, see
`serving.errors`. A video goes on when its stream breaks: another one is opened, and frames without an answer are sent
again (``block``) or given up and counted as dropped (``latest``, ``reject``). No frame is answered twice.
"""

from __future__ import annotations

import asyncio
import io
import queue
import random
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.results import Result
from serving.answers.render import MaskFormat
from serving.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidOptionError,
    OverloadedError,
    PolyheadError,
    StreamEvictedError,
    TooLargeError,
    UnavailableError,
)
from serving.gateways.grpc_messages import (
    drop_policy_number,
    frame_format_number,
    options_message,
    parse_prediction,
    parse_problem,
)
from serving.options import MAX_IN_FLIGHT
from serving.protos import segmentation_pb2 as pb
from serving.protos.segmentation_pb2_grpc import SegmentationServiceStub
from serving.streams.frames import FrameFormat
from serving.streams.stream import DropPolicy
from serving.types import Prediction, PredictOptions, Timing

Picture = bytes | str | Path | Image.Image | NDArray[np.uint8]
"""A picture file's bytes or path, a Pillow image, or an RGB array [H, W, 3] uint8."""

Value = TypeVar("Value")
Item = TypeVar("Item")

DEFAULT_TARGET = "127.0.0.1:9000"

_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),  # gRPC's default of 4 MB is less than the maps of one large picture
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),  # a peer that went without a word is noticed after 40 s
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, perhaps to another replica
)
_GRACE_S = 5.0
"""How much longer than the server we wait for an answer with a deadline, so that its own words come through."""
_CONNECT_S = 10.0
_STATUS_S = 1.0
_WRITE_FAILED = "Internal error from Core"
"""grpc.aio's words when it could not send, on a call whose status has not come yet."""
_REORDERED = 32
"""Frames by which a codec's answers may come out of the order in which the frames were sent, with room to spare."""
_TRANSIENT = (UnavailableError, StreamEvictedError, InternalError, OverloadedError)
"""After these another stream may go better."""


@dataclass(frozen=True)
class Answer(Prediction):
    """The answer for one picture, as `serving.types.Prediction`, with where it came from.

    Attributes:
        request_id: in the server's log.
        bundle: name of the server's bundle.
    """

    request_id: str = ""
    bundle: str = ""


@dataclass(frozen=True)
class VideoFrame:
    """A frame with a name and a time; a bare `Picture` does as well.

    Attributes:
        picture: as the stream's `frame_format` says.
        frame_id: given back with the answer; None: frames are counted from 0.
        captured_at_us: microseconds on any clock, given back with the answer.
    """

    picture: Picture
    frame_id: int | None = None
    captured_at_us: int = 0


@dataclass(frozen=True)
class VideoAnswer:
    """The answer for one frame: `results` and `errors` by task, or, if the frame failed as a whole, `error` alone.

    Attributes:
        frame_id, captured_at_us: of the frame.
        image_size: (height, width) of the frame.
        results, errors: by task.
        timing: where the time went.
        error: why there are no results at all.
        dropped_since_last: frames that were dropped between the answer before this one and this one.
        age_ms: from the frame's arrival at the server to the answer.
        state_lost: the stream had broken, and another one began here: tracks have new ids, classes are averaged anew.
    """

    frame_id: int
    captured_at_us: int
    image_size: tuple[int, int]
    results: Mapping[str, Result]
    errors: Mapping[str, PolyheadError]
    timing: Timing
    error: PolyheadError | None
    dropped_since_last: int
    age_ms: float
    state_lost: bool


@dataclass(frozen=True)
class Retry:
    """How a broken video stream is taken up again; times in seconds.

    Attributes:
        first_s, factor, longest_s: the pause before the first try, how it grows, and its bound; each is shortened by
            chance, by up to a half. A server that says when to come again is heeded within that bound.
        give_up_s: without any answer for this long the last failure is raised.
        answer_s: a stream that owes an answer for this long is taken for broken.
    """

    first_s: float = 0.1
    factor: float = 2.0
    longest_s: float = 5.0
    give_up_s: float = 60.0
    answer_s: float = 60.0

    def pause_s(self, tries: int) -> float:
        """Before the next try, after so many that failed."""
        longest = min(self.longest_s, self.first_s * self.factor ** min(tries, 64))
        return longest * random.uniform(0.5, 1)  # noqa: S311  # jitter, not a secret


class AsyncClient:
    """A client of one server, for asyncio; used by one event loop.

    Args:
        target: host and port, or any gRPC target.
        credentials: for TLS; None: without.
        metadata: sent with every call.
        retry: of video streams.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        retry: Retry | None = None,
    ) -> None:
        self.target = target
        self.metadata = tuple(metadata)
        self.retry = retry or Retry()
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def segment(
        self,
        picture: Picture,
        tasks: Iterable[str] | None = None,
        *,
        options: PredictOptions | None = None,
        masks: MaskFormat = "rle",
        timeout_s: float | None = None,
    ) -> Answer:
        """Run tasks on one picture.

        Args:
            picture: a file goes as it is, pixels go as PNG.
            tasks: heads to run; None: the server's default.
            options: thresholds and output size.
            masks: ``"rle"``, or ``"none"`` to be told classes, scores and boxes only; maps are then empty.
            timeout_s: give up after this; None: the server's default.

        Raises:
            PolyheadError: of the server, or `UnavailableError` if there is none.
        """
        _check_masks(masks)
        request = pb.SegmentRequest(
            image=await asyncio.to_thread(_file_of, picture),
            tasks=tasks or (),
            options=options_message(options or PredictOptions(), masks),
            timeout_s=timeout_s,
        )
        self._channel = self._channel or self.open_channel()
        limit_s = None if timeout_s is None else timeout_s + _GRACE_S
        try:
            response = await SegmentationServiceStub(self._channel).Segment(
                request, timeout=limit_s, metadata=self.metadata
            )
        except grpc.aio.AioRpcError as error:
            raise failure_of(error, self.target) from None
        prediction = await asyncio.to_thread(parse_prediction, response)
        return Answer(**vars(prediction), request_id=response.request_id, bundle=response.bundle)

    def video(
        self,
        frames: Iterable[Picture | VideoFrame] | AsyncIterable[Picture | VideoFrame],
        tasks: Iterable[str] | None = None,
        *,
        options: PredictOptions | None = None,
        masks: MaskFormat = "rle",
        frame_format: FrameFormat | None = None,
        drop_policy: DropPolicy = "block",
        max_in_flight: int = 4,
        frame_timeout_s: float | None = None,
    ) -> AsyncGenerator[VideoAnswer, None]:
        """Run tasks on the frames of a video, with what heads remember from frame to frame.

        Frames are taken as the server has room for them, in a thread of their own if `frames` is no async iterable, and
        under ``block`` at most `max_in_flight` are kept. Of a codec, a stream that broke can only go on at the next key
        frame: the frames until then are answered with an error.

        Args:
            frames: pictures, or access units as bytes.
            tasks, options, masks: as in `segment`.
            frame_format: None: ``"image"`` if the first frame is a file, ``"rgb24"`` if it is pixels.
            drop_policy: if frames come faster than answers: ``"block"``, ``"latest"`` or ``"reject"``; see
                serving/protos/segmentation.proto.
            max_in_flight: frames inside the server at once.
            frame_timeout_s: a frame older than this when its turn comes is answered with an error; None: never.

        Yields:
            One answer for each frame that was not dropped, in their order.

        Raises:
            PolyheadError: the stream can't be opened, or broke and could not be taken up again.
        """
        _check_masks(masks)
        if max_in_flight not in MAX_IN_FLIGHT:
            raise InvalidOptionError(f"max_in_flight is {max_in_flight}", remedy=f"ask for {MAX_IN_FLIGHT} frames")
        config = pb.VideoConfig(
            tasks=tasks or (),
            options=options_message(options or PredictOptions(), masks),
            frame_format=None if frame_format is None else frame_format_number(frame_format),
            drop_policy=drop_policy_number(drop_policy),
            max_in_flight=max_in_flight,
            frame_timeout_s=frame_timeout_s,
        )
        return _Video(self, frames, config, frame_format, drop_policy).answers()

    def open_channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, options=_CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(self.target, self._credentials, options=_CHANNEL_OPTIONS)


class Client:
    """`AsyncClient` without asyncio; may be used by several threads.

    Args:
        target, credentials, metadata, retry: as in `AsyncClient`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        metadata: Sequence[tuple[str, str]] = (),
        retry: Retry | None = None,
    ) -> None:
        self._client = AsyncClient(target, credentials=credentials, metadata=metadata, retry=retry)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        _run(self._client.close())

    def segment(
        self,
        picture: Picture,
        tasks: Iterable[str] | None = None,
        *,
        options: PredictOptions | None = None,
        masks: MaskFormat = "rle",
        timeout_s: float | None = None,
    ) -> Answer:
        """As `AsyncClient.segment`."""
        return _run(self._client.segment(picture, tasks, options=options, masks=masks, timeout_s=timeout_s))

    def video(
        self,
        frames: Iterable[Picture | VideoFrame],
        tasks: Iterable[str] | None = None,
        *,
        options: PredictOptions | None = None,
        masks: MaskFormat = "rle",
        frame_format: FrameFormat | None = None,
        drop_policy: DropPolicy = "block",
        max_in_flight: int = 4,
        frame_timeout_s: float | None = None,
    ) -> Iterator[VideoAnswer]:
        """As `AsyncClient.video`; `frames` is gone through in a thread of its own."""
        answers = self._client.video(
            frames,
            tasks,
            options=options,
            masks=masks,
            frame_format=frame_format,
            drop_policy=drop_policy,
            max_in_flight=max_in_flight,
            frame_timeout_s=frame_timeout_s,
        )
        return _iterated(answers)


class _Kept:
    """A frame without an answer. `request` is None once it was sent and will not be sent again."""

    __slots__ = ("captured_at_us", "frame_id", "request", "sent_s")

    def __init__(self, frame_id: int, captured_at_us: int, request: pb.VideoRequest) -> None:
        self.frame_id = frame_id
        self.captured_at_us = captured_at_us
        self.request: pb.VideoRequest | None = request
        self.sent_s: float | None = None


class _Status:
    """What a call ended with.

    If a message was being sent at that moment, grpc.aio forgets the status and says that sending failed.
    """

    def __init__(self, call: Any) -> None:
        self._error: grpc.aio.AioRpcError | None = None
        self._known = asyncio.Event()
        call.add_done_callback(self._note)  # called for each status in turn, the true one among them

    def _note(self, call: Any) -> None:
        details = _at_once(call.details())
        if self._error is None and details != _WRITE_FAILED:
            self._error = grpc.aio.AioRpcError(
                _at_once(call.code()), grpc.aio.Metadata(), _at_once(call.trailing_metadata()), details
            )
            self._known.set()

    async def told(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The true status, or the one that grpc.aio gave."""
        if error.details() == _WRITE_FAILED:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._known.wait(), _STATUS_S)
        return self._error or error


def _at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


@dataclass
class _Link:
    """One stream to the server. `sending`: of frames; `reading`: of the next answer."""

    channel: grpc.aio.Channel
    call: Any
    status: _Status
    responses: AsyncIterator[pb.VideoResponse]
    sending: asyncio.Task[None]
    reading: asyncio.Future[pb.VideoResponse | None] | None = None

    async def close(self) -> None:
        """Leave it, in whatever state it is."""
        self.call.cancel()
        self.sending.cancel()
        left = [self.sending] if self.reading is None else [self.sending, self.reading]
        await asyncio.gather(*left, return_exceptions=True)
        await self.channel.close()


class _Video:
    """A video on one stream after the other. On the wire, frames are numbered from 0.

    Three tasks: one takes frames (it outlives a stream, since what it waits for can't be given back), one sends, and
    the caller's own reads.
    """

    def __init__(
        self,
        client: AsyncClient,
        frames: Iterable[Picture | VideoFrame] | AsyncIterable[Picture | VideoFrame],
        config: pb.VideoConfig,
        frame_format: FrameFormat | None,
        drop_policy: DropPolicy,
    ) -> None:
        self._client = client
        self._retry = client.retry
        self._frames = frames
        self._config = config
        self._format = frame_format
        self._policy = drop_policy
        self._unanswered: dict[int, _Kept] = {}  # in their order, sent or not
        self._unsent: deque[_Kept] = deque()
        self._num_taken = 0
        self._frames_ended = False
        self._frames_failure: Exception | None = None
        self._changed = asyncio.Event()
        self._connected = False  # once; so there is a server
        self._num_answers = 0
        self._dropped = 0
        self._state_lost = False

    async def answers(self) -> AsyncGenerator[VideoAnswer, None]:
        """See `AsyncClient.video`."""
        taking = asyncio.create_task(self._take_frames(), name="frames of a video")
        tries, since_s = 0, None
        try:
            while await self._something_to_send():
                try:
                    link = await self._open()
                    try:
                        while (response := await self._read(link)) is not None:
                            tries, since_s = 0, None
                            if (answer := await self._answer(response)) is not None:
                                yield answer
                    finally:
                        await link.close()
                    if self._frames_ended and not (self._unanswered if self._policy == "block" else self._unsent):
                        break
                    failure: PolyheadError = UnavailableError(
                        "the server ended the stream before the last frame", remedy="see its log"
                    )
                except PolyheadError as error:
                    failure = error
                self._check_worth_while(failure)
                self._lose()
                if self._unanswered:  # or else nobody waits, and the next stream is opened for the next frame
                    since_s = asyncio.get_running_loop().time() if since_s is None else since_s
                    await self._pause(failure, tries, since_s)
                    tries += 1
            if self._frames_failure is not None:
                raise self._frames_failure
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    # Frames

    async def _take_frames(self) -> None:
        frames = self._frames if isinstance(self._frames, AsyncIterable) else _in_thread(self._frames)
        iterator = aiter(frames)
        try:
            while True:
                await self._until(self._has_room)
                try:
                    frame = await anext(iterator)
                except StopAsyncIteration:
                    break
                kept = await self._kept(frame)
                if self._policy == "latest" and len(self._unsent) >= self._config.max_in_flight:
                    oldest = self._unsent.popleft()  # the link is slow, or down
                    del self._unanswered[next(n for n, each in self._unanswered.items() if each is oldest)]
                    self._dropped += 1
                self._unanswered[self._num_taken] = kept
                self._unsent.append(kept)
                self._num_taken += 1
                self._notify()
        except Exception as error:  # noqa: BLE001  # the caller's own; it gets it back after the answers before it
            self._frames_failure = error
        finally:
            self._frames_ended = True
            self._notify()
            if hasattr(iterator, "aclose"):
                await iterator.aclose()

    def _has_room(self) -> bool:
        limit = self._config.max_in_flight
        match self._policy:
            case "block":
                return len(self._unanswered) < limit
            case "reject":
                return len(self._unsent) < limit
            case "latest":
                return True

    async def _kept(self, frame: Picture | VideoFrame) -> _Kept:
        if not isinstance(frame, VideoFrame):
            frame = VideoFrame(frame)
        picture = frame.picture
        if self._format is None:
            self._format = "image" if isinstance(picture, (bytes, str, Path)) else "rgb24"
            self._config.frame_format = frame_format_number(self._format)
        sent = pb.VideoFrame(frame_id=self._num_taken, captured_at_us=frame.captured_at_us)
        if self._format == "rgb24":
            pixels = await asyncio.to_thread(_pixels_of, picture)
            sent.height, sent.width = pixels.shape[:2]
            sent.data = pixels.tobytes()
        elif isinstance(picture, bytes):
            sent.data = picture
        elif self._format == "image":
            sent.data = await asyncio.to_thread(_file_of, picture)
        else:
            raise InvalidOptionError(
                f"a frame of {self._format} is a {type(picture).__name__}", remedy="give access units as bytes"
            )
        frame_id = self._num_taken if frame.frame_id is None else frame.frame_id
        return _Kept(frame_id, frame.captured_at_us, pb.VideoRequest(frame=sent))

    # One stream

    async def _something_to_send(self) -> bool:
        await self._until(lambda: bool(self._unsent) or self._frames_ended)
        return bool(self._unsent)

    async def _open(self) -> _Link:
        channel = self._client.open_channel()
        try:
            await _connect(channel, self._client.target)
        except BaseException:
            await channel.close()
            raise
        self._connected = True
        call = SegmentationServiceStub(channel).SegmentVideo(metadata=self._client.metadata)
        sending = asyncio.create_task(self._send(call), name="sender of a video")
        return _Link(channel, call, _Status(call), aiter(call), sending)  # `read` would forget what came before the end

    async def _send(self, call: Any) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it is over, as reading will say
            await call.write(pb.VideoRequest(config=self._config))
            while await self._something_to_send():
                kept = self._unsent.popleft()
                request, kept.sent_s = kept.request, asyncio.get_running_loop().time()
                if self._policy != "block":
                    kept.request = None
                await call.write(request)
                self._notify()
            await call.done_writing()

    async def _read(self, link: _Link) -> pb.VideoResponse | None:
        """The next answer, or None after the last one."""
        link.reading = asyncio.ensure_future(anext(link.responses, None))
        while True:
            done, _ = await asyncio.wait({link.reading}, timeout=self._retry.answer_s)
            if done:
                try:
                    return link.reading.result()
                except grpc.aio.AioRpcError as error:
                    status = await link.status.told(error)
                    if status.code() is grpc.StatusCode.OK:
                        return None
                    raise failure_of(status, self._client.target) from None
            sent_s = [kept.sent_s for kept in self._unanswered.values() if kept.sent_s is not None]
            if sent_s and asyncio.get_running_loop().time() - sent_s[0] > self._retry.answer_s:
                raise UnavailableError(
                    f"no answer from {self._client.target} for {self._retry.answer_s:g} s", remedy="see its log"
                )

    async def _answer(self, response: pb.VideoResponse) -> VideoAnswer | None:
        kept = self._unanswered.pop(response.frame_id, None)
        if kept is None:
            return None  # nobody waits for it
        if self._policy == "latest":
            self._forget_dropped(response.frame_id)
        self._notify()
        dropped, self._dropped = self._dropped + response.dropped_since_last, 0
        state_lost, self._state_lost = self._state_lost, False
        self._num_answers += 1
        prediction = await asyncio.to_thread(parse_prediction, response)
        return VideoAnswer(
            frame_id=kept.frame_id,
            captured_at_us=kept.captured_at_us,
            image_size=prediction.image_size,
            results=prediction.results,
            errors=prediction.errors,
            timing=prediction.timing,
            error=parse_problem(response.error) if response.HasField("error") else None,
            dropped_since_last=dropped,
            age_ms=response.age_ms,
            state_lost=state_lost,
        )

    def _forget_dropped(self, answered: int) -> None:
        """Frames before one that was answered were dropped, as its answer says."""
        end = answered - (0 if self._format in ("image", "rgb24") else _REORDERED)
        while self._unanswered and (oldest := next(iter(self._unanswered))) < end:
            del self._unanswered[oldest]

    # The way from one stream to the next

    def _lose(self) -> None:
        """What was sent and not answered is sent again, or given up."""
        sent = [number for number, kept in self._unanswered.items() if kept.sent_s is not None]
        if self._policy == "block":
            self._unsent = deque(self._unanswered.values())
            for kept in self._unsent:
                kept.sent_s = None
        else:
            for number in sent:
                del self._unanswered[number]
            self._dropped += len(sent)
        self._state_lost = self._state_lost or bool(self._num_answers or (sent and self._policy != "block"))

    def _check_worth_while(self, failure: PolyheadError) -> None:
        """Raise a failure after which another stream would go no better."""
        hopeless = not self._connected or (isinstance(failure, OverloadedError) and not self._num_answers)
        if hopeless or not isinstance(failure, _TRANSIENT):
            raise failure

    async def _pause(self, failure: PolyheadError, tries: int, since_s: float) -> None:
        """Wait before the next try, or raise `failure` if it has taken too long."""
        pause_s = max(self._retry.pause_s(tries), min(failure.retry_after_s or 0, self._retry.longest_s))
        if asyncio.get_running_loop().time() + pause_s - since_s > self._retry.give_up_s:
            raise failure
        await asyncio.sleep(pause_s)

    # Waiting

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()


def failure_of(error: grpc.aio.AioRpcError, target: str) -> PolyheadError:
    """What a call's status says: the server's own failure, or one on the way to it."""
    for name, value in error.trailing_metadata() or ():
        if name == "problem-bin" and isinstance(value, bytes):
            return parse_problem(pb.Problem.FromString(value))
    detail = f"{target}: {error.code().name}: {error.details()}"
    match error.code():
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in (error.details() or ""):
            return TooLargeError(detail, remedy="send smaller pictures, or ask for smaller results with max_side")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return OverloadedError(detail, remedy="try again later")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceededError(detail, remedy="allow more time, or ask for fewer tasks")
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED | grpc.StatusCode.INTERNAL:
            return UnavailableError(detail, remedy="is the server running? its log may say more")
        case grpc.StatusCode.UNKNOWN:  # the proxy's, while it has no replica
            return UnavailableError(detail, remedy="is the server ready? its log may say more")
        case _:
            return PolyheadError(detail, remedy="is it a polyhead server, of this version?")


async def _connect(channel: grpc.aio.Channel, target: str) -> None:
    try:
        async with asyncio.timeout(_CONNECT_S):
            while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    break
                await channel.wait_for_state_change(state)
            else:
                return
    except TimeoutError:
        pass
    raise UnavailableError(
        f"no server answers at {target}", remedy="start one with 'polyhead serve', or give another address"
    )


def _check_masks(masks: MaskFormat) -> None:
    if masks == "polygon":
        raise InvalidOptionError("masks='polygon' has no typed result", remedy="ask for 'rle'; outlines come over HTTP")


def _file_of(picture: Picture) -> bytes:
    """A picture as a file."""
    match picture:
        case bytes():
            return picture
        case str() | Path():
            return Path(picture).read_bytes()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(_checked(picture))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _pixels_of(picture: Picture) -> NDArray[np.uint8]:
    """A picture as [H, W, 3]."""
    match picture:
        case Image.Image():
            return np.asarray(picture.convert("RGB"))
        case np.ndarray():
            return _checked(picture)
    raise InvalidOptionError(
        f"a frame of rgb24 is {type(picture).__name__}", remedy="give pixels, or choose frame_format='image'"
    )


def _checked(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InvalidOptionError(
            f"an array {list(pixels.shape)} of {pixels.dtype} is no picture", remedy="give [H, W, 3] uint8, RGB"
        )
    return pixels


# From ordinary code to asyncio and back


async def _in_thread(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Go through what may block in a thread of its own, which a program that ends does not wait for."""
    loop = asyncio.get_running_loop()
    asked: queue.SimpleQueue[asyncio.Future[tuple[Item] | None] | None] = queue.SimpleQueue()

    def work() -> None:
        iterator = iter(items)
        while (future := asked.get()) is not None:
            got, failure = None, None
            try:
                got = (next(iterator),)
            except StopIteration:
                pass
            except Exception as error:  # noqa: BLE001  # the caller's own, raised where it waits
                failure = error
            with suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(_settle, future, got, failure)
        if hasattr(iterator, "close"):
            iterator.close()

    threading.Thread(target=work, name="frames of a video", daemon=True).start()
    try:
        while True:
            future: asyncio.Future[tuple[Item] | None] = loop.create_future()
            asked.put(future)
            if (got := await future) is None:
                return
            yield got[0]
    finally:
        asked.put(None)


def _settle(future: asyncio.Future[Value], value: Value, failure: Exception | None) -> None:
    if future.cancelled():
        return
    if failure is None:
        future.set_result(value)
    else:
        future.set_exception(failure)


class _Background:
    """One event loop in a thread, for all clients of this process that have none; gRPC likes to have only one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop; started when it is first asked for."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="polyhead client", daemon=True).start()
            return self._loop


_background = _Background()


def _run(work: Coroutine[Any, Any, Value]) -> Value:
    """Do asyncio's work from ordinary code."""
    future = asyncio.run_coroutine_threadsafe(work, _background.loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()  # Ctrl-C, say
        raise


def _iterated(items: AsyncGenerator[Item, None]) -> Iterator[Item]:
    """Go through an async generator from ordinary code."""
    one_at_a_time = asyncio.Lock()  # a step that was left with Ctrl-C may still be ending

    async def step() -> tuple[Item] | None:
        async with one_at_a_time:
            try:
                return (await anext(items),)
            except StopAsyncIteration:
                return None

    async def close() -> None:
        async with one_at_a_time:
            await items.aclose()

    try:
        while (got := _run(step())) is not None:
            yield got[0]
    finally:
        _run(close())
