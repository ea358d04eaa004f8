"""Sequences of the Open Inference Protocol (Triton's extension `sequence`) as video streams.

A sequence lives in the gRPC stream that started it and nowhere else, so no client can come into another's state
(triton-inference-server/server#7117). Its tasks and options are those of its first request.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from serving.errors import InternalError, InvalidOptionError, PolyheadError
from serving.oip.calls import Call, InferParameters, InferRequest, read_call
from serving.options import RequestOptions
from serving.service import SegmentationService
from serving.streams.frames import frame_decoder
from serving.streams.stream import Frame, FrameAnswer, StreamConfig, VideoStream

_KEPT = set(RequestOptions.model_fields)
"""Parameters that a sequence's first request sets for those that follow."""

_START_REMEDY = "begin with sequence_start; each gRPC stream has sequences of its own"


logger = logging.getLogger("polyhead.oip")


class Sequences:
    """The sequences of one gRPC stream. `cancel` frees them, and must be called however the stream ends.

    Args:
        service: of the replica.
    """

    def __init__(self, service: SegmentationService) -> None:
        self._service = service
        self._sequences: dict[tuple[str, int | str], _Sequence] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def push(
        self, request: InferRequest, parameters: InferParameters
    ) -> tuple[Call, asyncio.Future[FrameAnswer]]:
        """Take a request in; waits for room in its sequence.

        Args:
            request: with a sequence_id.
            parameters: read from it.

        Returns:
            (what it asks for, its answer to come).

        Raises:
            PolyheadError: the request is wrong, its sequence was not started or has been ended by the server, or there
                are too many.
        """
        key = (request.model, parameters.sequence_id)
        sequence = self._sequences.get(key)
        if parameters.sequence_start:
            call = _one_picture(read_call(self._service, request, parameters))
            if sequence is not None:
                del self._sequences[key]
                await sequence.finish()
            sequence = await self._open(call)
            self._sequences[key] = sequence
        elif sequence is None:
            raise InvalidOptionError(
                f"sequence {parameters.sequence_id!r} of model '{request.model}' was not started in this stream",
                remedy=_START_REMEDY,
            )
        else:
            call = _one_picture(_go_on(self._service, sequence.first, request))
        try:
            return call, await sequence.push(call.pictures[0])
        finally:
            if parameters.sequence_end:
                self._sequences.pop(key, None)
                await sequence.end_input()

    def cancel(self) -> list[asyncio.Task[None]]:
        """Begin to free every sequence, with what is inside; the tasks returned end when that is done."""
        self._sequences.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        return running

    async def _open(self, first: Call) -> _Sequence:
        if len(self._sequences) >= self._service.settings.max_streams:  # those that the server ended are told no more
            self._sequences = {key: one for key, one in self._sequences.items() if not one.ended}
        sequence = _Sequence(self._service, first)
        self._running.add(sequence.task)
        sequence.task.add_done_callback(self._running.discard)
        await sequence.opened()
        return sequence


class _Sequence:
    """One sequence: a `VideoStream`, and a task that holds it open and hands its answers to whoever waits for them.

    Args:
        service: of the replica.
        first: the call that starts it.
    """

    def __init__(self, service: SegmentationService, first: Call) -> None:
        self.first = first
        self._service = service
        self._waiting: dict[int, asyncio.Future[FrameAnswer]] = {}
        self._count = 0
        self._stream: asyncio.Future[VideoStream] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._hold(), name="oip sequence")

    @property
    def ended(self) -> bool:
        """Whether it takes no more frames, by whoever's wish."""
        return self.task.done()

    async def opened(self) -> None:
        """Wait until frames are taken.

        Raises:
            PolyheadError: the server opens no more streams.
        """
        await self._stream

    async def push(self, picture: bytes) -> asyncio.Future[FrameAnswer]:
        """Take a frame in; waits for room.

        Raises:
            PolyheadError: the server has ended the stream.
        """
        number = self._count
        self._count += 1
        future: asyncio.Future[FrameAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._stream.result().push(Frame(number, picture))
        except BaseException:
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # nobody else will look at it
            raise
        return future

    async def end_input(self) -> None:
        """No frame will follow; the state is freed after the last answer."""
        await self._stream.result().end_input()

    async def finish(self) -> None:
        """Wait until what is inside is answered, and everything is freed."""
        await self.end_input()
        await asyncio.wait([self.task])

    async def _hold(self) -> None:
        call, service = self.first, self._service
        config = StreamConfig(call.tasks, call.parameters.options, frame_timeout_s=call.parameters.timeout_s)
        error: PolyheadError | None = None
        try:
            async with service.streams.open(config, frame_decoder("image", service.settings.max_pixels)) as stream:
                self._stream.set_result(stream)
                async for answer in stream.answers():
                    future = self._waiting.pop(answer.frame.frame_id)
                    if not future.done():
                        future.set_result(answer)
        except PolyheadError as failure:
            error = failure
        except Exception as failure:
            logger.exception("a sequence failed")
            error = InternalError(
                f"the sequence failed with a {type(failure).__name__}; the server's log has it", remedy="start another"
            )
        finally:
            futures: list[asyncio.Future[Any]] = [self._stream, *self._waiting.values()]
            for future in futures:
                if future.done():
                    continue
                if error is None:
                    future.cancel()
                else:
                    future.set_exception(error)


def _go_on(service: SegmentationService, first: Call, request: InferRequest) -> Call:
    """A request within a sequence, with the options that the first one set."""
    kept = first.parameters.model_dump(include=_KEPT, exclude_unset=True)
    parameters = InferParameters.read(kept | dict(request.parameters))
    if parameters.options != first.parameters.options:
        raise InvalidOptionError(
            f"other options than those with which sequence {parameters.sequence_id!r} was started",
            remedy="give thresholds and max_side in the first request only, or start another sequence",
        )
    return read_call(service, request, parameters, within=first)


def _one_picture(call: Call) -> Call:
    if len(call.pictures) != 1:
        raise InvalidOptionError(
            f"{len(call.pictures)} pictures in one request of a sequence", remedy="send one request for each frame"
        )
    return call
