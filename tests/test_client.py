"""The client: what it sends and makes of answers, and how a video goes on when its stream breaks.

Against a server in this process that does what a test says; the real one stands in tests/serving.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
from PIL import Image

from decoders.base import PostprocessOptions
from decoders.results import DepthResult, EmbeddingResult
from polyhead import client as client_module
from polyhead.client import AsyncClient, Client, Picture, Retry, VideoAnswer, VideoFrame
from serving.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidImageError,
    InvalidOptionError,
    OverloadedError,
    PolyheadError,
    StreamEvictedError,
    TooLargeError,
    UnavailableError,
    UnsupportedTaskError,
)
from serving.gateways.grpc_messages import segment_response
from serving.grpc_status import problem_message, set_status
from serving.protos import segmentation_pb2 as pb
from serving.protos.segmentation_pb2_grpc import add_SegmentationServiceServicer_to_server
from serving.types import Prediction, PredictOptions, Timing

Value = TypeVar("Value")
Life = Callable[["Server", Any, Any], AsyncIterator[pb.VideoResponse]]
QUICK = Retry(first_s=0.001, longest_s=0.01, give_up_s=5, answer_s=5)
STOPPING = UnavailableError("this replica is stopping", remedy="open a new stream", retry_after_s=0.001)
PREDICTION = Prediction((4, 6), (4, 6), {"depth": DepthResult(np.full((4, 6), 1.5, np.float32))}, {}, Timing())


def answer_to(frame: pb.VideoFrame, **fields: Any) -> pb.VideoResponse:
    result = pb.Result(embedding=pb.EmbeddingResult(vector=[len(frame.data)]))
    given: dict[str, Any] = {"captured_at_us": frame.captured_at_us, "results": {"size": result}} | fields
    return pb.VideoResponse(frame_id=frame.frame_id, **given)


async def good(server: Server, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:
    """Every frame is answered with its size."""
    async for request in requests:
        server.seen[-1].append(request.frame.frame_id)
        yield answer_to(request.frame)


def ends_after(count: int, error: PolyheadError | grpc.StatusCode | None) -> Life:
    """So many frames are answered; with the next one the stream ends, without an answer to it."""

    async def life(server: Server, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:
        async for request in requests:
            server.seen[-1].append(request.frame.frame_id)
            if len(server.seen[-1]) > count:
                break
            yield answer_to(request.frame)
        if isinstance(error, PolyheadError):
            set_status(context, error)
        elif error is not None:
            context.set_code(error)

    return life


async def silent(server: Server, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:
    """Frames are taken, nothing is answered."""
    async for request in requests:
        server.seen[-1].append(request.frame.frame_id)
    return
    yield


class Server:
    """Answers calls in their order as `lives` says, then well.

    Attributes:
        configs, seen: of each stream, its config and the numbers of the frames that came.
        requests: of Segment.
        ended: streams, however.
    """

    def __init__(self, *lives: Life) -> None:
        self.lives = iter(lives)
        self.configs: list[pb.VideoConfig] = []
        self.seen: list[list[int]] = []
        self.requests: list[pb.SegmentRequest] = []
        self.ended = 0
        self.error: PolyheadError | None = None
        self.port = 0
        self._server: Any = None

    async def start(self, **options: Any) -> None:
        """Listen on the port that it had, or on a free one."""
        self._server = grpc.aio.server(options=list(options.items()))
        add_SegmentationServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill(self) -> None:
        """Cut all connections."""
        await self._server.stop(None)

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def Segment(self, request: pb.SegmentRequest, context: Any) -> pb.SegmentResponse:  # noqa: N802  # the proto's
        self.requests.append(request)
        if self.error is not None:
            set_status(context, self.error)
        return segment_response(PREDICTION, request_id="r-1", bundle="tiny")

    async def SegmentVideo(self, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:  # noqa: N802
        first = await anext(requests)
        assert first.WhichOneof("request") == "config"
        self.configs.append(first.config)
        self.seen.append([])
        life = next(self.lives, good)
        try:
            async for response in life(self, requests, context):
                yield response
        finally:
            self.ended += 1


@asynccontextmanager
async def started(*lives: Life, retry: Retry = QUICK, **options: Any) -> AsyncIterator[tuple[Server, AsyncClient]]:
    server = Server(*lives)
    await server.start(**options)
    try:
        async with AsyncClient(server.target, retry=retry) as client:
            yield server, client
    finally:
        await server.kill()


def run(work: Coroutine[Any, Any, Value]) -> Value:
    """Fails instead of hanging."""
    return asyncio.run(asyncio.wait_for(work, 60))


async def taken(answers: AsyncIterator[VideoAnswer]) -> list[VideoAnswer]:
    return [answer async for answer in answers]


def ids(answers: Sequence[VideoAnswer]) -> list[int]:
    return [answer.frame_id for answer in answers]


def lost(answers: Sequence[VideoAnswer]) -> list[int]:
    """The frames whose answers say that the stream began anew."""
    return [answer.frame_id for answer in answers if answer.state_lost]


FRAMES = [bytes(number) for number in range(1, 13)]

# Segment


def test_a_picture_s_answer_is_typed() -> None:
    async def scenario() -> Any:
        async with started() as (server, client):
            options = PredictOptions(PostprocessOptions(score_threshold=0.25), max_side=64)
            answer = await client.segment(b"file", ["depth"], options=options, masks="none", timeout_s=3)
            return answer, server.requests[0]

    answer, request = run(scenario())
    assert isinstance(answer, Prediction)
    assert (answer.request_id, answer.bundle, answer.image_size, answer.output_size) == ("r-1", "tiny", (4, 6), (4, 6))
    np.testing.assert_allclose(answer.results["depth"].depth_m, 1.5)
    assert (request.image, list(request.tasks), request.timeout_s) == (b"file", ["depth"], 3)
    assert request.options == pb.Options(score_threshold=0.25, max_side=64, masks=pb.MASK_FORMAT_NONE)


def test_a_picture_may_be_a_file_or_pixels(draw_picture: Callable[..., Image.Image], tmp_path: Path) -> None:
    image = draw_picture(9, 7)
    image.save(tmp_path / "photo.png")
    pictures: list[Picture] = [
        (tmp_path / "photo.png").read_bytes(), tmp_path / "photo.png", str(tmp_path / "photo.png"), image,
        np.asarray(image),
    ]  # fmt: skip

    async def scenario() -> list[bytes]:
        async with started() as (server, client):
            for picture in pictures:
                await client.segment(picture)
            return [request.image for request in server.requests]

    for sent in run(scenario()):
        (tmp_path / "sent").write_bytes(sent)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sent")), np.asarray(image))


def test_a_failure_of_the_server_is_raised_as_what_it_is() -> None:
    async def scenario() -> PolyheadError:
        async with started() as (server, client):
            server.error = UnsupportedTaskError("no head for 'dpth'", remedy="ask for depth", retry_after_s=7)
            with pytest.raises(UnsupportedTaskError) as failed:
                await client.segment(b"file")
            return failed.value

    error = run(scenario())
    assert (error.detail, error.remedy, error.retry_after_s) == ("no head for 'dpth'", "ask for depth", 7)


def test_a_server_that_is_not_there_is_told_with_its_address() -> None:
    async def scenario() -> None:
        async with started() as (server, client):
            await server.kill()
            with pytest.raises(UnavailableError, match=server.target):
                await client.segment(b"file")
            with pytest.raises(UnavailableError, match=f"no server answers at {server.target}"):
                await taken(client.video(FRAMES))

    run(scenario())


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceededError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, OverloadedError),
        (grpc.StatusCode.UNKNOWN, UnavailableError),
        (grpc.StatusCode.UNIMPLEMENTED, PolyheadError),
    ],
)
def test_a_failure_on_the_way_has_a_class_too(code: grpc.StatusCode, kind: type[PolyheadError]) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "what the proxy said")
    failure = client_module.failure_of(error, "host:9000")
    assert type(failure) is kind
    assert failure.detail == f"host:9000: {code.name}: what the proxy said"
    assert failure.remedy


def test_polygons_are_not_offered() -> None:
    client = AsyncClient()
    with pytest.raises(InvalidOptionError, match="polygon"):
        client.video(FRAMES, masks="polygon")
    with pytest.raises(InvalidOptionError, match="polygon"):
        run(client.segment(b"", masks="polygon"))


# Video


def test_frames_are_answered_in_their_order() -> None:
    async def scenario() -> Any:
        async with started() as (server, client):
            return await taken(client.video(FRAMES, ["size"], max_in_flight=3)), server.configs

    answers, [config] = run(scenario())
    assert ids(answers) == list(range(12))
    sizes = [answer.results["size"] for answer in answers]
    assert [size.vector.tolist() for size in sizes if isinstance(size, EmbeddingResult)] == [[n] for n in range(1, 13)]
    assert not any(answer.state_lost or answer.error or answer.dropped_since_last for answer in answers)
    assert (list(config.tasks), config.max_in_flight) == (["size"], 3)
    assert (config.frame_format, config.drop_policy) == (pb.FRAME_FORMAT_IMAGE, pb.DROP_POLICY_BLOCK)


def test_frames_keep_the_names_and_times_that_they_have() -> None:
    frames = [VideoFrame(b"x", frame_id=7, captured_at_us=2**63), VideoFrame(b"y", 7, 5), b"z"]

    async def scenario() -> list[VideoAnswer]:
        async with started() as (_, client):
            return await taken(client.video(frames))

    assert [(answer.frame_id, answer.captured_at_us) for answer in run(scenario())] == [(7, 2**63), (7, 5), (2, 0)]


async def counted(total: int, pause: Callable[[], Awaitable[None]]) -> AsyncIterator[bytes]:
    for number in range(total):
        await pause()
        yield bytes(number)


def test_frames_may_come_from_an_async_iterator() -> None:
    async def scenario() -> list[VideoAnswer]:
        async with started() as (_, client):
            return await taken(client.video(counted(5, lambda: asyncio.sleep(0))))

    assert ids(run(scenario())) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("form", ["image", "h264", "hevc"])
def test_a_format_that_is_named_is_asked_for(form: Any) -> None:
    async def scenario() -> list[pb.VideoConfig]:
        async with started() as (server, client):
            await taken(client.video([b"x"], frame_format=form, frame_timeout_s=0.5, drop_policy="reject"))
            return server.configs

    [config] = run(scenario())
    assert config.frame_format == client_module.frame_format_number(form)
    assert (config.frame_timeout_s, config.drop_policy) == (0.5, pb.DROP_POLICY_REJECT)


@pytest.mark.parametrize("number", [0, 65])
def test_a_number_of_frames_that_no_server_takes_is_refused_here(number: int) -> None:
    with pytest.raises(InvalidOptionError, match=f"max_in_flight is {number}"):
        AsyncClient().video(FRAMES, max_in_flight=number)


def test_no_frames_are_no_stream() -> None:
    async def scenario() -> Any:
        async with started() as (server, client):
            return await taken(client.video([])), server.configs

    assert run(scenario()) == ([], [])


@pytest.mark.parametrize("as_array", [False, True])
def test_pixels_are_sent_raw(draw_picture: Callable[..., Image.Image], as_array: bool) -> None:
    images = [draw_picture(4, 6), draw_picture(5, 3)]
    frames: list[Picture] = [np.asarray(image) for image in images] if as_array else [*images]

    async def scenario() -> Any:
        async with started() as (server, client):
            return await taken(client.video(frames)), server.configs

    answers, [config] = run(scenario())
    assert config.frame_format == pb.FRAME_FORMAT_RGB24
    sizes = [answer.results["size"] for answer in answers]
    assert [size.vector.tolist() for size in sizes if isinstance(size, EmbeddingResult)] == [[72], [45]]


@pytest.mark.parametrize(
    ("frame", "form", "words"),
    [
        (np.zeros((4, 6), np.uint8), None, r"an array \[4, 6\] of uint8 is no picture"),
        (b"file", "rgb24", "a frame of rgb24 is bytes"),
        (Image.new("RGB", (4, 4)), "h264", "a frame of h264 is a Image"),
    ],
)
def test_a_frame_that_does_not_fit_the_format_is_refused_here(frame: Any, form: Any, words: str) -> None:
    async def scenario() -> None:
        async with started() as (_, client):
            with pytest.raises(InvalidOptionError, match=words):
                await taken(client.video([frame], frame_format=form))

    run(scenario())


def test_a_frame_that_failed_has_its_error() -> None:
    async def one_fails(server: Server, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:
        async for request in requests:
            error = InvalidImageError("no image", remedy="send one") if request.frame.frame_id == 1 else None
            fields = {"results": {}, "error": problem_message(error)} if error else {}
            yield answer_to(request.frame, **fields)

    async def scenario() -> list[VideoAnswer]:
        async with started(one_fails) as (_, client):
            return await taken(client.video(FRAMES[:3]))

    answers = run(scenario())
    assert [type(answer.error) for answer in answers] == [type(None), InvalidImageError, type(None)]
    assert not answers[1].results


def test_no_more_frames_are_taken_than_may_be_inside() -> None:
    took: list[int] = []

    def frames() -> Iterator[bytes]:
        for number in range(20):
            took.append(number)
            yield b"x"

    async def scenario() -> tuple[int, list[VideoAnswer]]:
        release = asyncio.Event()

        async def held(server: Server, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:
            async for request in requests:
                server.seen[-1].append(request.frame.frame_id)
                if len(server.seen[-1]) == 3:
                    await release.wait()
                yield answer_to(request.frame)

        async with started(held) as (server, client):
            reading = asyncio.create_task(taken(client.video(frames(), max_in_flight=3)))
            while not server.seen or len(server.seen[-1]) < 3:
                await asyncio.sleep(0.001)
            for _ in range(50):  # it has every chance to take more
                await asyncio.sleep(0.001)
            took_meanwhile = len(took)
            release.set()
            return took_meanwhile, await reading

    took_meanwhile, answers = run(scenario())
    assert took_meanwhile <= 5  # two were answered, three are inside
    assert ids(answers) == list(range(20))


# A stream that breaks


def assert_taken_up(answers: Sequence[VideoAnswer], server: Server, *, at: int) -> None:
    """Every frame was answered once and in order, and the new stream began with the first that had no answer."""
    assert ids(answers) == list(range(12))
    assert lost(answers) == [at]
    assert server.seen[-1] == list(range(at, 12))


@pytest.mark.parametrize(
    "error",
    [
        STOPPING,
        StreamEvictedError("idle", remedy="open a new one"),
        InternalError("a bug", remedy="open a new one"),
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        None,
    ],
    ids=lambda error: getattr(error, "name", None) or getattr(error, "reason", "ends well"),
)
def test_a_stream_that_breaks_is_taken_up_where_it_was(error: Any) -> None:
    async def scenario() -> None:
        async with started(ends_after(5, error)) as (server, client):
            assert_taken_up(await taken(client.video(FRAMES)), server, at=5)
            assert len(server.seen) == 2

    run(scenario())


def test_a_server_that_is_killed_and_started_again_is_found_again() -> None:
    async def scenario() -> None:
        async with started() as (server, client):
            answers = []
            async for answer in client.video(FRAMES):
                answers.append(answer)
                if answer.frame_id == 4:
                    await server.kill()
                    await server.start()
            assert ids(answers) == list(range(12))
            assert len(lost(answers)) == 1
            assert len(server.seen) == 2
            answered_before = server.seen[1][0]
            assert answered_before >= 5
            assert server.seen[1] == list(range(answered_before, 12))

    run(scenario())


def test_a_server_that_is_away_for_a_while_is_waited_for() -> None:
    async def scenario() -> None:
        async with started(silent) as (server, client):
            reading = asyncio.create_task(taken(client.video(FRAMES)))
            while not server.seen or not server.seen[-1]:
                await asyncio.sleep(0.001)
            await server.kill()
            for _ in range(30):
                await asyncio.sleep(0.001)
            assert not reading.done()
            await server.start()
            answers = await reading
            assert ids(answers) == list(range(12))
            assert lost(answers) == []  # every frame was sent again, from the first

    run(scenario())


def test_breaks_in_a_row_are_survived_as_long_as_answers_come() -> None:
    lives = [ends_after(1, STOPPING)] * 11
    retry = Retry(first_s=0.03, factor=1, give_up_s=0.1)  # less than they take together

    async def scenario() -> None:
        async with started(*lives, retry=retry) as (server, client):
            answers = await taken(client.video(FRAMES))
            assert ids(answers) == list(range(12))
            assert lost(answers) == list(range(1, 12))
            assert len(server.seen) == 12

    run(scenario())


def test_a_server_that_answers_nothing_is_given_up_with_its_last_failure() -> None:
    retry = Retry(first_s=0.01, longest_s=0.02, give_up_s=0.2)

    async def scenario() -> int:
        async with started(ends_after(2, None), *[ends_after(0, STOPPING)] * 1000, retry=retry) as (server, client):
            answers = client.video(FRAMES)
            assert ids([await anext(answers), await anext(answers)]) == [0, 1]
            with pytest.raises(UnavailableError, match="this replica is stopping"):
                await anext(answers)
            return len(server.seen)

    assert 5 < run(scenario()) < 100


def test_a_server_that_went_for_good_is_given_up() -> None:
    async def scenario() -> None:
        async with started(retry=Retry(first_s=0.01, give_up_s=0.1)) as (server, client):
            answers = client.video(FRAMES)
            await anext(answers)
            await server.kill()
            with pytest.raises(UnavailableError):
                await taken(answers)

    run(scenario())


@pytest.mark.parametrize(
    "error",
    [
        UnsupportedTaskError("no head for 'x'", remedy="ask for y"),
        InvalidOptionError("max_in_flight is 99", remedy="ask for less"),
        OverloadedError("64 streams are open", remedy="close one"),
        grpc.StatusCode.UNIMPLEMENTED,
    ],
    ids=lambda error: getattr(error, "name", None) or getattr(error, "reason", ""),
)
def test_what_another_try_would_not_mend_is_raised_at_once(error: Any) -> None:
    async def scenario() -> int:
        async with started(ends_after(0, error)) as (server, client):
            with pytest.raises(type(error) if isinstance(error, PolyheadError) else PolyheadError):
                await taken(client.video(FRAMES))
            return len(server.seen)

    assert run(scenario()) == 1


def test_a_server_that_is_full_when_a_stream_comes_back_is_asked_again() -> None:
    full = OverloadedError("64 streams are open", remedy="close one", retry_after_s=30)  # a place is free long before

    async def scenario() -> None:
        async with started(ends_after(3, STOPPING), ends_after(0, full), ends_after(0, full)) as (server, client):
            assert_taken_up(await taken(client.video(FRAMES)), server, at=3)

    run(scenario())


def test_a_server_that_owes_an_answer_for_too_long_is_left() -> None:
    async def scenario() -> None:
        retry = Retry(first_s=0.001, answer_s=0.1)
        async with started(silent, retry=retry) as (server, client):
            answers = await taken(client.video(FRAMES[:3]))
            assert ids(answers) == [0, 1, 2]
            assert server.seen == [[0, 1, 2], [0, 1, 2]]
            assert server.ended == 2

    run(scenario())


def test_a_pause_between_frames_is_no_debt_of_the_server_s() -> None:
    async def scenario() -> None:
        retry = Retry(first_s=0.001, answer_s=0.05)
        async with started(retry=retry) as (server, client):
            answers = await taken(client.video(counted(3, lambda: asyncio.sleep(0.12))))
            assert ids(answers) == [0, 1, 2]
            assert len(server.seen) == 1

    run(scenario())


def test_an_idle_stream_that_was_ended_is_opened_again_for_the_next_frame_only() -> None:
    evicted = StreamEvictedError("no frame came for 30 s", remedy="open a new stream")

    async def scenario() -> None:
        ended, go_on = asyncio.Event(), asyncio.Event()

        async def life(server: Server, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:
            yield answer_to((await anext(requests)).frame)
            set_status(context, evicted)
            ended.set()

        async def frames() -> AsyncIterator[bytes]:
            yield b"x"
            await go_on.wait()
            yield b"y"

        retry = Retry(first_s=30, give_up_s=0.01)  # a try would be too late: none is due
        async with started(life, retry=retry) as (server, client):
            reading = asyncio.create_task(taken(client.video(frames())))
            await ended.wait()
            for _ in range(30):
                await asyncio.sleep(0.001)
            assert len(server.seen) == 1
            go_on.set()
            answers = await reading
            assert (ids(answers), lost(answers)) == ([0, 1], [1])

    run(scenario())


def test_a_break_after_the_last_answer_is_no_failure() -> None:
    async def scenario() -> None:
        async def life(server: Server, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:
            async for request in requests:
                yield answer_to(request.frame)
            set_status(context, STOPPING)

        async with started(life) as (server, client):
            assert ids(await taken(client.video(FRAMES))) == list(range(12))
            assert len(server.seen) == 1

    run(scenario())


def test_a_frame_is_never_answered_twice() -> None:
    async def twice(server: Server, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:
        async for request in requests:
            yield answer_to(request.frame)
            yield answer_to(request.frame)

    async def scenario() -> list[VideoAnswer]:
        async with started(twice) as (_, client):
            return await taken(client.video(FRAMES))

    assert ids(run(scenario())) == list(range(12))


def test_a_frame_too_large_for_the_server_is_told_and_not_sent_again() -> None:
    limit = {"grpc.max_receive_message_length": 1000}

    async def scenario() -> int:
        async with started(**limit) as (server, client):
            with pytest.raises(TooLargeError, match="larger than max"):
                await taken(client.video([b"x", bytes(2000)]))
            return len(server.seen)

    assert run(scenario()) == 1


# Drop policies


def test_what_the_server_drops_is_told() -> None:
    async def drops(server: Server, requests: Any, context: Any) -> AsyncIterator[pb.VideoResponse]:
        async for request in requests:
            if request.frame.frame_id % 3 == 2:
                yield answer_to(request.frame, dropped_since_last=2)

    async def scenario() -> list[VideoAnswer]:
        async with started(drops) as (_, client):
            return await taken(client.video(FRAMES, drop_policy="latest", max_in_flight=64))

    answers = run(scenario())
    assert ids(answers) == [2, 5, 8, 11]
    assert [answer.dropped_since_last for answer in answers] == [2, 2, 2, 2]


@pytest.mark.parametrize("policy", ["latest", "reject"])
def test_live_frames_are_not_sent_again_but_counted(policy: Any) -> None:
    async def scenario() -> None:
        async with started(ends_after(5, STOPPING)) as (server, client):

            async def camera() -> AsyncIterator[bytes]:
                for number in range(12):
                    yield bytes(number)
                    while number == 5 and not server.ended:
                        await asyncio.sleep(0.001)
                    await asyncio.sleep(0.005)  # a camera's pace

            answers = await taken(client.video(camera(), drop_policy=policy, max_in_flight=2))
            first, second = server.seen
            assert not set(first) & set(second)
            assert ids(answers) == [*range(5), *second]
            assert answers[5].dropped_since_last == second[0] - 5
            assert lost(answers) == second[:1]
            assert second[-1] == 11

    run(scenario())


def test_under_latest_a_link_that_is_down_does_not_hold_back_the_camera() -> None:
    async def scenario() -> None:
        async with started() as (server, client):
            answers: list[VideoAnswer] = []
            shown = shown_while_down = 0

            async def camera() -> AsyncIterator[bytes]:
                nonlocal shown, shown_while_down
                while shown < 200:
                    shown += 1
                    yield bytes(shown)
                    if shown == 5:
                        while not answers:
                            await asyncio.sleep(0.001)
                        await server.kill()
                    if shown == 100:
                        shown_while_down = shown - 5
                        await server.start()
                    await asyncio.sleep(0.001)

            async for answer in client.video(camera(), drop_policy="latest", max_in_flight=2):
                answers.append(answer)
            assert (shown, shown_while_down) == (200, 95)
            assert ids(answers) == sorted(set(ids(answers)))
            assert ids(answers)[-1] == 199
            assert sum(answer.dropped_since_last for answer in answers) + len(answers) == 200
            assert len(lost(answers)) == 1

    run(scenario())


# Frames that fail, and callers that leave


def test_a_failure_of_the_frames_is_raised_after_the_answers_before_it() -> None:
    def frames() -> Iterator[bytes]:
        yield b"x"
        yield b"y"
        raise OSError("the camera is gone")

    async def scenario() -> list[int]:
        async with started() as (_, client):
            answers = client.video(frames())
            found = [await anext(answers), await anext(answers)]
            with pytest.raises(OSError, match="the camera is gone"):
                await anext(answers)
            return ids(found)

    assert run(scenario()) == [0, 1]


def test_a_caller_that_leaves_leaves_the_server_too() -> None:
    closed = threading.Event()

    def frames() -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    async def scenario() -> None:
        async with started() as (server, client):
            answers = client.video(frames())
            await anext(answers)
            await answers.aclose()  # type: ignore[attr-defined]  # an async generator
            while not server.ended:
                await asyncio.sleep(0.001)
            assert await asyncio.to_thread(closed.wait, 30)
            tasks = {task.get_name() for task in asyncio.all_tasks()}
            assert not tasks & {"frames of a video", "sender of a video"}

    run(scenario())


def test_a_caller_that_is_cancelled_leaves_the_server_too() -> None:
    async def scenario() -> None:
        async with started(silent) as (server, client):
            reading = asyncio.create_task(taken(client.video(FRAMES)))
            while not server.seen or not server.seen[-1]:
                await asyncio.sleep(0.001)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            while not server.ended:
                await asyncio.sleep(0.001)

    run(scenario())


# Without asyncio


@contextmanager
def background(*lives: Life) -> Iterator[tuple[Server, Client]]:
    """A server in the loop that clients without one share, since gRPC likes a process to have one only."""
    server = Server(*lives)
    client_module._run(server.start())
    try:
        with Client(server.target, retry=QUICK) as client:
            yield server, client
    finally:
        client_module._run(server.kill())


def test_the_client_without_asyncio_answers_pictures_and_videos() -> None:
    with background(ends_after(5, STOPPING)) as (server, client):
        assert client.segment(b"file").bundle == "tiny"
        answers = list(client.video(FRAMES, ["size"], max_in_flight=3))
        assert_taken_up(answers, server, at=5)
        assert server.configs[0].max_in_flight == 3


def test_the_client_without_asyncio_raises_what_the_server_says() -> None:
    with background(ends_after(0, UnsupportedTaskError("no head", remedy="another"))) as (server, client):
        server.error = UnsupportedTaskError("no head", remedy="another")
        with pytest.raises(UnsupportedTaskError):
            client.segment(b"file")
        with pytest.raises(UnsupportedTaskError):
            list(client.video(FRAMES))


def test_a_loop_that_is_left_early_leaves_the_server() -> None:
    with background() as (server, client):
        for answer in client.video(iter(lambda: b"x", None)):
            if answer.frame_id == 3:
                break
        del answer
        give_up_at_s = time.monotonic() + 30
        while not server.ended and time.monotonic() < give_up_at_s:
            time.sleep(0.001)
        assert server.ended == 1


def test_several_threads_may_use_one_client() -> None:
    with background() as (server, client):
        found: dict[int, list[int]] = {}
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: ids(list(client.video(FRAMES)))})) for n in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == {n: list(range(12)) for n in range(3)}
        assert len(server.seen) == 3


def test_a_program_ends_though_its_camera_blocks() -> None:
    program = """
import threading, time
from polyhead.client import Client
def camera():
    yield b"x"
    threading.Event().wait()
try:
    next(Client("127.0.0.1:1").video(camera()))
except Exception as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "UnavailableError", done.stderr
    assert done.returncode == 0


def test_importing_the_client_starts_no_ray() -> None:
    program = "import sys; import polyhead.client; print(sorted({'ray', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_pauses_grow_to_a_bound_and_differ_by_chance() -> None:
    retry = Retry(first_s=1, factor=2, longest_s=5)
    for tries, longest in enumerate([1, 2, 4, 5, 5]):
        pauses = [retry.pause_s(tries) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert retry.pause_s(10**6) <= 5
