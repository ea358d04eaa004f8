"""Video streams: order, state, flow control, failures, and that nothing hangs or stays behind."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import io
import logging
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from fractions import Fraction
from typing import Any, TypeVar

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from decoders.labels import load_label_set
from decoders.online import StreamState
from decoders.results import DepthResult, PanopticResult
from decoders.video import VideoPanopticDecoder
from serving.bundles.loading import Bundle
from serving.errors import (
    DeadlineExceededError,
    EncoderFailedError,
    HeadFailedError,
    InternalError,
    InvalidImageError,
    InvalidOptionError,
    OverloadedError,
    PolyheadError,
    StreamEvictedError,
    TooLargeError,
    UnavailableError,
)
from serving.service import SegmentationService
from serving.streams.frames import frame_decoder
from serving.streams.stream import (
    _MAX_REFUSED,
    DecodedFrame,
    Frame,
    FrameAnswer,
    FrameDecoder,
    StreamConfig,
    VideoStream,
)
from serving.types import Prediction, PredictOptions

Value = TypeVar("Value")
MakeService = Callable[..., SegmentationService]
MakeBundle = Callable[..., Bundle]
EncodePicture = Callable[..., bytes]

GONE = UnavailableError("gone", remedy="none")


def run(scenario: Coroutine[Any, Any, Value]) -> Value:
    """Run a scenario in a loop of its own; one that hangs fails."""
    return asyncio.run(asyncio.wait_for(scenario, 60))


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until something is so."""
    while not condition():
        await asyncio.sleep(0)


async def settle() -> None:
    """Let others run for as long as anything that can happen without a thread could take."""
    for _ in range(50):
        await asyncio.sleep(0)


async def read(stream: VideoStream, number: int | None = None) -> list[FrameAnswer]:
    """The next answers, or all that come."""
    found: list[FrameAnswer] = []
    if number == 0:
        return found
    async for answer in stream.answers():
        found.append(answer)
        if len(found) == number:
            break
    return found


async def play(
    service: SegmentationService, frames: Sequence[Frame], *tasks: str, form: Any = "image", **config: Any
) -> list[FrameAnswer]:
    """A stream from its beginning to its end."""
    stream_config = StreamConfig(tasks or ("count",), **config)
    async with service.streams.open(stream_config, frame_decoder(form)) as stream, asyncio.TaskGroup() as group:
        reading = group.create_task(read(stream))
        for frame in frames:
            await stream.push(frame)
        await stream.end_input()
    return reading.result()


def opened(
    service: SegmentationService, *tasks: str, decoder: FrameDecoder | None = None, form: Any = "image", **config: Any
) -> Any:
    """`service.streams.open` with less to write."""
    return service.streams.open(StreamConfig(tasks or ("count",), **config), decoder or frame_decoder(form))


def ids(answers: Sequence[FrameAnswer]) -> list[int]:
    return [answer.frame.frame_id for answer in answers]


def counts(answers: Sequence[FrameAnswer]) -> list[int | None]:
    """What the counting head said of each frame: which one of its stream it was; None for a failed frame."""
    found: list[int | None] = []
    for answer in answers:
        result = None if answer.prediction is None else answer.prediction.results.get("count")
        assert result is None or isinstance(result, DepthResult)
        found.append(None if result is None else int(result.depth_m[0, 0]))
    return found


def failures(answers: Sequence[FrameAnswer]) -> list[type[PolyheadError] | None]:
    return [None if answer.error is None else type(answer.error) for answer in answers]


@pytest.fixture(scope="session")
def counting_head() -> type[Any]:
    """A class of heads that remember how many frames of a stream they saw, and answer that number as depth."""
    from decoders.base import DecoderModule

    class CountingHead(DecoderModule):
        kind = "depth"
        out_indices = (1,)

        def __init__(self, on_step: Callable[[list[int]], None] = lambda seen: None) -> None:
            super().__init__()
            self._on_step = on_step

        def forward(self, features: Any) -> dict[str, Tensor]:
            return self.step(features, [None] * features.batch_size)[0]

        def step(
            self, features: Any, states: Sequence[StreamState | None]
        ) -> tuple[dict[str, Tensor], list[StreamState]]:
            assert len(states) == features.batch_size
            seen = [1 if state is None else state.num_frames + 1 for state in states]
            self._on_step(seen)
            raw = {"value": torch.tensor(seen, dtype=torch.float32)[:, None, None]}
            return raw, [StreamState(torch.zeros(4, 8), torch.zeros(4, 3), number) for number in seen]

        def postprocess(self, raw: Any, geometry: Any, options: Any) -> DepthResult:
            return DepthResult(np.full(geometry.output_size, raw["value"].item(), dtype=np.float32))

    return CountingHead


STATE_BYTES = 4 * (4 * 8 + 4 * 3)
"""Of the counting head, for one stream."""


@pytest.fixture
def make_counting(
    make_service: MakeService, make_bundle: MakeBundle, counting_head: type[Any]
) -> Callable[..., SegmentationService]:
    """A service whose head "count" remembers; keyword arguments as for `make_service`, `heads` are added."""

    def make(
        *, heads: dict[str, Any] | None = None, on_step: Callable[[list[int]], None] = lambda seen: None, **given: Any
    ) -> SegmentationService:
        return make_service(make_bundle(count=counting_head(on_step), **(heads or {})), **given)

    return make


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., list[Frame]]:
    """Builds frames, as picture files of coloured squares, numbered from `first`; each seed's frames are alike."""

    def make(number: int, *, seed: int = 0, first: int = 0, size: tuple[int, int] = (60, 90)) -> list[Frame]:
        frames = []
        for i in range(number):
            squares = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
            picture = Image.fromarray(np.roll(squares, i, axis=1)).resize((size[1], size[0]), Image.Resampling.BOX)
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            frames.append(Frame(first + i, buffer.getvalue(), 1000 * i))
        return frames

    return make


MakeFrames = Callable[..., list[Frame]]


def gate_of(service: SegmentationService) -> Any:
    """The `Gate` of a gated service."""
    return service.engine.run_pass


async def at_gate(service: SegmentationService) -> Any:
    """The gate, once a batch stands before it."""
    gate = gate_of(service)
    assert await asyncio.to_thread(gate.entered.wait, 60)
    return gate


async def ask(service: SegmentationService, data: bytes, *tasks: str) -> Prediction:
    """A still picture."""
    async with service.admitted(60) as deadline_s:
        return await service.predict(data, tasks, PredictOptions(), deadline_s)


# Answers


def test_each_frame_is_answered_once_and_in_order(make_counting: MakeService, make_frames: MakeFrames) -> None:
    answers = run(play(make_counting(), make_frames(9, first=100), "count", "panoptic"))
    assert ids(answers) == list(range(100, 109))
    assert counts(answers) == list(range(1, 10))
    assert [answer.frame.captured_at_us for answer in answers] == list(range(0, 9000, 1000))
    assert [answer.dropped_since_last for answer in answers] == [0] * 9
    assert failures(answers) == [None] * 9
    assert all(a.prediction and a.prediction.results.keys() == {"count", "panoptic"} for a in answers)


def test_a_stream_of_many_frames_with_one_place_never_stalls(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    assert counts(run(play(make_counting(), make_frames(40), max_in_flight=1))) == list(range(1, 41))


def test_every_stage_of_a_frame_is_timed(make_counting: MakeService, make_frames: MakeFrames) -> None:
    frames = [dataclasses.replace(frame, arrived_s=time.monotonic()) for frame in make_frames(2)]
    for answer in run(play(make_counting(), frames, "panoptic")):
        assert answer.prediction is not None
        timing = answer.prediction.timing
        stages = [timing.decode_ms, timing.preprocess_ms, timing.encoder_ms, *timing.heads_ms.values()]
        assert all(stage > 0 for stage in (*stages, timing.postprocess_ms))
        assert timing.queue_ms >= 0
        assert (timing.encoder_passes, timing.batch_size) == (1, 1)
        assert sum(stages) <= timing.total_ms <= 1e3 * answer.age_s


def test_sizes_and_options_are_as_for_still_pictures(make_counting: MakeService, make_frames: MakeFrames) -> None:
    [answer] = run(play(make_counting(), make_frames(1), "panoptic", options=PredictOptions(max_side=45)))
    assert answer.prediction is not None
    assert (answer.prediction.image_size, answer.prediction.output_size) == ((60, 90), (30, 45))
    result = answer.prediction.results["panoptic"]
    assert isinstance(result, PanopticResult)
    assert result.segment_map.shape == (30, 45)


@pytest.mark.parametrize("keeps_state", [False, True])
@pytest.mark.parametrize("policy", ["block", "reject"])
def test_what_waits_to_be_read_holds_no_data(
    policy: Any, keeps_state: bool, make_counting: MakeService, make_frames: MakeFrames
) -> None:
    class Pictures:
        def __init__(self) -> None:
            self.keeps_state = keeps_state

        def decode(self, frame: Frame) -> list[DecodedFrame]:
            return frame_decoder("image").decode(frame)

        def flush(self) -> list[DecodedFrame]:
            return []

    service = make_counting(gated=policy == "reject")

    async def scenario() -> list[FrameAnswer]:
        frames = make_frames(5)
        frames[2] = dataclasses.replace(frames[2], data=b"no picture")
        async with opened(service, decoder=Pictures(), max_in_flight=3, drop_policy=policy) as stream:
            for frame in frames[:3]:
                await stream.push(frame)
            if policy == "reject":
                for frame in frames[3:]:
                    await stream.push(frame)
                held = [(job.frame.data, job.image) for job in stream._waiting if job.error and not job.counted]
                assert held == [(b"", None)] * 2
                gate_of(service).opened.set()
            await until(lambda: stream.num_frames == 2)
            await stream.end_input()
            return await read(stream)

    answers = run(scenario())
    assert ids(answers) == list(range(3 if policy == "block" else 5))
    assert {answer.frame.data for answer in answers} == {b""}


def test_frames_are_counted_as_pictures_are(make_counting: MakeService, make_frames: MakeFrames) -> None:
    service = make_counting()
    run(play(service, make_frames(3)))
    service.drain()
    assert service.metrics.registry.get_sample_value("polyhead_encoder_passes_total") == 3


def test_answers_come_in_order_even_if_later_ones_are_ready_first(
    make_counting: MakeService, make_frames: MakeFrames, probe_head: Any
) -> None:
    finished: list[int] = []
    others_done = threading.Event()

    def hold_the_first(raw: Any) -> None:
        with threading.Lock():
            number = len(finished)
            finished.append(number)
        if number == 0:
            assert others_done.wait(60)
        elif number == 3:
            others_done.set()

    service = make_counting(heads={"probe": probe_head(on_postprocess=hold_the_first)}, decode_threads=3)
    answers = run(play(service, make_frames(4), "probe"))
    assert ids(answers) == [0, 1, 2, 3]
    assert finished == [0, 1, 2, 3]


def test_the_end_before_any_frame_ends_the_answers(make_counting: MakeService) -> None:
    assert run(play(make_counting(), [])) == []


def test_the_end_reaches_a_reader_who_already_waits(make_counting: MakeService) -> None:
    service = make_counting()

    async def scenario() -> list[FrameAnswer]:
        async with opened(service) as stream:
            reading = asyncio.create_task(read(stream))
            await settle()
            await stream.end_input()
            return await reading

    assert run(scenario()) == []


def test_answers_may_be_left_and_taken_up_again(make_counting: MakeService, make_frames: MakeFrames) -> None:
    service = make_counting()

    async def scenario() -> tuple[list[FrameAnswer], list[FrameAnswer], list[FrameAnswer]]:
        async with opened(service, max_in_flight=8) as stream:
            for frame in make_frames(5):
                await stream.push(frame)
            await stream.end_input()
            return await read(stream, 2), await read(stream), await read(stream)

    first, second, third = run(scenario())
    assert (ids(first), ids(second), ids(third)) == ([0, 1], [2, 3, 4], [])


def test_a_reader_who_is_cancelled_loses_no_answer_and_holds_no_place(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting(gated=True)

    async def scenario() -> list[FrameAnswer]:
        async with opened(service, max_in_flight=1) as stream:
            await stream.push(make_frames(1)[0])
            reading = asyncio.create_task(read(stream))
            await at_gate(service)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            gate_of(service).opened.set()
            found = await read(stream, 1)
            await stream.push(make_frames(1, first=1)[0])
            await stream.end_input()
            return found + await read(stream)

    assert ids(run(scenario())) == [0, 1]


def test_a_reader_cancelled_during_post_processing_loses_no_answer(
    make_counting: MakeService, make_frames: MakeFrames, probe_head: Any
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(raw: Any) -> None:
        begun.set()
        assert go_on.wait(60)

    service = make_counting(heads={"probe": probe_head(on_postprocess=wait)})

    async def scenario() -> list[FrameAnswer]:
        async with opened(service, "probe") as stream:
            await stream.push(make_frames(1)[0])
            reading = asyncio.create_task(read(stream))
            assert await asyncio.to_thread(begun.wait, 60)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            go_on.set()
            return await read(stream, 1)

    [answer] = run(scenario())
    assert answer.prediction is not None


# State


@pytest.fixture
def video_bundle(make_bundle: MakeBundle) -> Bundle:
    """The tiny bundle with a head "video", PMT's online decoder with seeded weights; it lets every segment through."""
    labels = load_label_set("coco_supercategories")
    bundle = make_bundle()
    head = VideoPanopticDecoder(
        bundle.encoder.spec,
        label_set=labels,
        out_indices=(0, 2),
        num_queries=8,
        num_blocks=1,
        score_threshold=0,
        overlap_threshold=0,
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.ndim > 1:
                scale = 3.0 if name.endswith("queries") else 2 / parameter[0].numel() ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
        head.mask_decoder.class_head.bias[-1] = -1e4  # never "no object"
    return make_bundle(video=head.eval().requires_grad_(False))


def assert_same(answers: Sequence[FrameAnswer], expected: Sequence[FrameAnswer], task: str = "video") -> None:
    """Frame for frame the same segments, tracks and maps."""
    assert ids(answers) == ids(expected)
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.prediction and theirs.prediction, (ours.error, theirs.error)
        mine, other = ours.prediction.results[task], theirs.prediction.results[task]
        assert isinstance(mine, PanopticResult) and isinstance(other, PanopticResult)
        assert np.mean(mine.segment_map == other.segment_map) > 0.999
        assert [(s.segment_id, s.label_id, s.track_id) for s in mine.segments] == [
            (s.segment_id, s.label_id, s.track_id) for s in other.segments
        ]
        assert [s.score for s in mine.segments] == pytest.approx([s.score for s in other.segments], abs=1e-4)


def differing(answers: Sequence[FrameAnswer], others: Sequence[FrameAnswer]) -> list[bool]:
    """For each frame, whether the segment maps are far apart."""
    return [
        bool(
            np.mean(mine.prediction.results["video"].segment_map == other.prediction.results["video"].segment_map) < 0.9
        )
        for mine, other in zip(answers, others, strict=True)
        if mine.prediction and other.prediction
    ]


PAIRS = {"max_batch_size": 2, "max_wait_ms": 60_000.0}
"""Settings under which a frame waits until another stream's can run with it."""


def test_two_clips_streamed_together_give_what_they_give_alone(
    make_service: MakeService, video_bundle: Bundle, make_frames: MakeFrames
) -> None:
    clips = [make_frames(6, seed=10), make_frames(6, seed=20, size=(90, 60))]
    alone = [run(play(make_service(video_bundle, max_batch_size=1), clip, "video")) for clip in clips]
    pairs = make_service(video_bundle, **PAIRS)

    async def together() -> list[list[FrameAnswer]]:
        return await asyncio.gather(*(play(pairs, clip, "video") for clip in clips))

    found = run(together())
    for answers, expected in zip(found, alone, strict=True):
        assert_same(answers, expected)
        assert [answer.prediction.timing.batch_size for answer in answers if answer.prediction] == [2] * 6


def test_what_a_frame_gives_depends_on_the_frames_before_it(
    make_service: MakeService, video_bundle: Bundle, make_frames: MakeFrames
) -> None:
    """Or else the tests around this one would show nothing."""
    service = make_service(video_bundle)
    clip, other = make_frames(4, seed=10), make_frames(4, seed=20)
    in_order = run(play(service, clip, "video"))
    each_alone = [answer for frame in clip for answer in run(play(service, [frame], "video"))]
    after_others = run(play(service, [*other[:3], clip[3]], "video"))
    assert differing(in_order, each_alone) == [False, True, True, True]
    assert differing(in_order[3:], after_others[3:]) == [True]


def test_a_stream_gives_what_the_head_gives_when_its_states_are_carried_by_hand(
    make_service: MakeService, video_bundle: Bundle, make_frames: MakeFrames
) -> None:
    service = make_service(video_bundle)
    frames = make_frames(4)
    head: Any = video_bundle.heads["video"].decoder
    state = None
    for frame, answer in zip(frames, run(play(service, frames, "video")), strict=True):
        [item] = service.engine.prepare(Image.open(io.BytesIO(frame.data)), ["video"], PredictOptions())
        raw, [state] = head.step(video_bundle.encoder(item.pixels, (0, 2)), [state])
        row = {name: tensor[0] for name, tensor in raw.items()}
        expected = head.postprocess(row, item.geometry, PredictOptions().postprocess)
        assert answer.prediction is not None
        found = answer.prediction.results["video"]
        assert isinstance(found, PanopticResult)
        assert np.mean(found.segment_map == expected.segment_map) > 0.999
        assert [s.track_id for s in found.segments] == [s.track_id for s in expected.segments]


def test_a_stream_in_the_place_of_a_cancelled_one_begins_without_state_and_the_other_goes_on(
    make_service: MakeService, video_bundle: Bundle, make_frames: MakeFrames
) -> None:
    stays, leaves, comes = (make_frames(6, seed=10), make_frames(2, seed=20), make_frames(4, seed=30))
    alone = make_service(video_bundle, max_batch_size=1)
    expected_stays, expected_comes = run(play(alone, stays, "video")), run(play(alone, comes, "video"))
    service = make_service(video_bundle, max_streams=2, **PAIRS)

    async def scenario() -> tuple[list[FrameAnswer], list[FrameAnswer], list[FrameAnswer]]:
        staying = asyncio.create_task(play(service, stays, "video"))
        read_by_leaver: list[FrameAnswer] = []

        async def leave() -> None:
            async with opened(service, "video") as stream:
                for frame in leaves:
                    await stream.push(frame)
                async for answer in stream.answers():
                    read_by_leaver.append(answer)

        leaving = asyncio.create_task(leave())
        await until(lambda: len(read_by_leaver) == 2)
        with pytest.raises(OverloadedError):
            await play(service, comes, "video")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        came = await play(service, comes, "video")
        return await staying, read_by_leaver, came

    stayed, left, came = run(scenario())
    assert_same(stayed, expected_stays)
    assert_same(came, expected_comes)
    assert ids(left) == [0, 1]
    assert [a.prediction.timing.batch_size for a in (*stayed, *left, *came) if a.prediction] == [2] * 12
    assert len(service.streams) == service.streams.state_bytes == 0


def test_a_stream_cancelled_while_its_frame_is_in_the_encoder_leaves_nothing_to_the_next(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting(gated=True, max_streams=1)

    async def scenario() -> list[FrameAnswer]:
        first = asyncio.create_task(play(service, make_frames(5)))
        gate = await at_gate(service)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert service.admission.inside == 0
        gate.opened.set()
        return await play(service, make_frames(3))

    assert counts(run(scenario())) == [1, 2, 3]


def test_a_still_picture_between_frames_neither_sees_nor_leaves_state(
    make_counting: MakeService, make_frames: MakeFrames, encode_picture: EncodePicture
) -> None:
    service = make_counting()

    async def scenario() -> tuple[list[FrameAnswer], Prediction]:
        async with opened(service) as stream:
            first, second = make_frames(2)
            await stream.push(first)
            found = await read(stream, 1)
            still = await ask(service, encode_picture(), "count")
            await stream.push(second)
            await stream.end_input()
            return found + await read(stream), still

    answers, still = run(scenario())
    assert counts(answers) == [1, 2]
    assert isinstance(still.results["count"], DepthResult)
    assert still.results["count"].depth_m[0, 0] == 1


def test_the_state_s_size_is_told_and_goes_with_the_stream(make_counting: MakeService, make_frames: MakeFrames) -> None:
    service = make_counting()

    async def scenario() -> list[int]:
        async with opened(service, "count", "panoptic") as stream:
            sizes = [stream.state_bytes]
            for frame in make_frames(2):
                await stream.push(frame)
                await read(stream, 1)
                sizes += [stream.state_bytes, service.streams.state_bytes]
            await stream.end_input()
            await read(stream)
            sizes.append(stream.state_bytes)
        return [*sizes, service.streams.state_bytes]

    assert run(scenario()) == [0, *[STATE_BYTES] * 4, 0, 0]


def test_the_video_head_s_state_has_the_size_of_its_tensors(
    make_service: MakeService, video_bundle: Bundle, make_frames: MakeFrames
) -> None:
    service = make_service(video_bundle)

    async def scenario() -> int:
        async with opened(service, "video") as stream:
            await stream.push(make_frames(1)[0])
            await read(stream, 1)
            return stream.state_bytes

    classes = len(load_label_set("coco_supercategories")) + 1
    assert run(scenario()) == 4 * 8 * (32 + classes)


@pytest.mark.parametrize("end", ["closed", "finished", "cancelled", "evicted", "failed"])
def test_no_state_outlives_its_stream_however_it_ends(
    end: str, make_counting: MakeService, make_frames: MakeFrames, encode_picture: EncodePicture
) -> None:
    service = make_counting()
    states: list[weakref.ref[Any]] = []
    streams: list[weakref.ref[Any]] = []

    async def stay() -> None:
        async with opened(service) as stream:
            streams.append(weakref.ref(stream))
            for frame in make_frames(3):
                await stream.push(frame)
            await read(stream, 3)
            [state] = stream._states.values()
            states.extend((weakref.ref(state), weakref.ref(state.queries), weakref.ref(state.class_logits)))
            del state
            match end:
                case "finished":
                    await stream.end_input()
                    await read(stream)
                case "cancelled":
                    await asyncio.Event().wait()
                case "evicted":
                    stream.evict(GONE)
                case "failed":
                    raise ConnectionError

    async def scenario() -> None:
        staying = asyncio.create_task(stay())
        await until(lambda: len(states) == 3)
        if end == "cancelled":
            staying.cancel()
        await asyncio.wait({staying})
        assert staying.cancelled() == (end == "cancelled")
        if not staying.cancelled():
            assert isinstance(staying.exception(), ConnectionError) == (end == "failed")
        del staying
        await ask(service, encode_picture(), "depth")  # the accelerator's thread may hold on to its last batch

    run(scenario())
    gc.collect()
    assert len(states) == 3
    assert [ref() for ref in (*states, *streams)] == [None] * 4
    assert service.admission.inside == 0


def test_an_ended_stream_lets_go_at_once_even_if_its_holder_stays(
    make_counting: MakeService, make_frames: MakeFrames, encode_picture: EncodePicture
) -> None:
    service = make_counting()

    async def scenario() -> list[Any]:
        decoder = frame_decoder("image")
        frames = make_frames(2)
        async with opened(service, decoder=decoder) as stream:
            for frame in frames:
                await stream.push(frame)
            await read(stream, 1)
            held = [weakref.ref(stream._states["count"]), weakref.ref(frames[1]), weakref.ref(decoder)]
            del decoder, frames, frame
            stream.evict(GONE)
            await settle()
            await ask(service, encode_picture(), "depth")
            gc.collect()
            return [ref() for ref in held]

    assert run(scenario()) == [None] * 3


def test_the_size_of_the_frames_may_change_and_the_state_goes_on(
    make_service: MakeService, video_bundle: Bundle, make_counting: MakeService, make_frames: MakeFrames
) -> None:
    frames = [*make_frames(2), *make_frames(2, first=2, size=(90, 60)), *make_frames(1, first=4, size=(30, 45))]
    answers = run(play(make_counting(), frames))
    assert counts(answers) == [1, 2, 3, 4, 5]
    assert [a.prediction.image_size for a in answers if a.prediction] == [(60, 90)] * 2 + [(90, 60)] * 2 + [(30, 45)]
    assert failures(run(play(make_service(video_bundle), frames, "video"))) == [None] * 5


# Batches


def test_frames_of_many_streams_and_still_pictures_share_a_batch(
    make_counting: MakeService, make_frames: MakeFrames, encode_picture: EncodePicture
) -> None:
    service = make_counting(gated=True)

    async def scenario() -> tuple[list[list[FrameAnswer]], Any]:
        blocker = asyncio.create_task(ask(service, encode_picture(), "depth"))
        gate = await at_gate(service)
        streams = [asyncio.create_task(play(service, make_frames(1, seed=seed), "count")) for seed in (1, 2)]
        still = asyncio.create_task(ask(service, encode_picture(40, 50), "depth"))
        await until(lambda: service._runner.waiting == 3)
        gate.opened.set()
        answers = await asyncio.gather(*streams)
        await asyncio.gather(blocker, still)
        return answers, gate

    answers, gate = run(scenario())
    assert [len(batch) for batch in gate.batches] == [1, 3]
    assert sorted(item.tasks for item in gate.batches[1]) == [("count",), ("count",), ("depth",)]
    assert [counts(found) for found in answers] == [[1], [1]]


def test_the_decoder_runs_several_streams_in_one_batch_each_with_its_own_state(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    steps: list[list[int]] = []
    service = make_counting(on_step=steps.append, **PAIRS)

    async def scenario() -> list[list[FrameAnswer]]:
        async with opened(service) as old, opened(service) as young, opened(service) as third:
            for stream, number in ((old, 3), (young, 1)):
                for frame in make_frames(number):
                    await stream.push(frame)
                    await third.push(frame)
                    await asyncio.gather(read(stream, 1), read(third, 1))
            steps.clear()
            for stream in (old, young):
                await stream.push(make_frames(1, first=9)[0])
            return list(await asyncio.gather(read(old, 1), read(young, 1)))

    answers = run(scenario())
    assert sorted(steps[0]) == [2, 4]
    assert len(steps) == 1
    assert [counts(found) for found in answers] == [[4], [2]]


def test_a_stream_has_one_frame_before_the_encoder_at_a_time(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting(gated=True)

    async def scenario() -> tuple[int, int]:
        async with opened(service, max_in_flight=8) as stream:
            for frame in make_frames(8):
                await stream.push(frame)
            await at_gate(service)
            await settle()
            return service._runner.waiting, service.admission.inside

    assert run(scenario()) == (0, 1)


def test_a_stream_whose_answers_are_not_read_does_not_hold_back_another(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting()

    async def scenario() -> list[FrameAnswer]:
        async with opened(service, max_in_flight=2) as slow:
            for frame in make_frames(2):
                await slow.push(frame)
            stuck = asyncio.create_task(slow.push(make_frames(1)[0]))
            answers = await play(service, make_frames(8))
            assert not stuck.done()
            stuck.cancel()
            return answers

    assert counts(run(scenario())) == list(range(1, 9))


def test_a_stream_whose_frames_are_slow_to_decode_does_not_hold_back_another(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting()
    entered, go_on = threading.Event(), threading.Event()

    class Slow:
        keeps_state = False

        def decode(self, frame: Frame) -> list[DecodedFrame]:
            entered.set()
            assert go_on.wait(60)
            return frame_decoder("image").decode(frame)

        def flush(self) -> list[DecodedFrame]:
            return []

    async def scenario() -> tuple[list[FrameAnswer], list[FrameAnswer]]:
        async with opened(service, decoder=Slow()) as slow:
            for frame in make_frames(3):
                await slow.push(frame)
            assert await asyncio.to_thread(entered.wait, 60)
            fast = await play(service, make_frames(8))
            go_on.set()
            await slow.end_input()
            return fast, await read(slow)

    fast, slow = run(scenario())
    assert (counts(fast), counts(slow)) == (list(range(1, 9)), [1, 2, 3])


# Flow control


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_under_block_the_sender_waits_until_an_answer_is_read(
    limit: int, make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting()

    async def scenario() -> list[FrameAnswer]:
        frames = make_frames(limit + 2)
        async with opened(service, max_in_flight=limit) as stream:
            for frame in frames[:limit]:
                await stream.push(frame)
            pushing = asyncio.create_task(stream.push(frames[limit]))
            await until(lambda: stream.num_frames == limit)  # all are through, and nobody reads
            await settle()
            assert not pushing.done()
            found = await read(stream, 1)
            await pushing
            pushing = asyncio.create_task(stream.push(frames[-1]))
            await settle()
            assert not pushing.done()
            found += await read(stream, 1)
            await pushing
            await stream.end_input()
            return found + await read(stream)

    answers = run(scenario())
    assert counts(answers) == list(range(1, limit + 3))
    assert [answer.dropped_since_last for answer in answers] == [0] * (limit + 2)


def test_frames_that_wait_to_be_pushed_keep_their_order(make_counting: MakeService, make_frames: MakeFrames) -> None:
    service = make_counting()

    async def scenario() -> list[FrameAnswer]:
        async with opened(service, max_in_flight=1) as stream:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(read(stream, 8))
                for frame in make_frames(8):
                    group.create_task(stream.push(frame))
            return reading.result()

    assert ids(run(scenario())) == list(range(8))


def test_the_end_comes_after_the_frames_that_wait_to_be_pushed(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting()

    async def scenario() -> list[FrameAnswer]:
        async with opened(service, max_in_flight=1) as stream:
            async with asyncio.TaskGroup() as group:
                for frame in make_frames(4):
                    group.create_task(stream.push(frame))
                await settle()
                group.create_task(stream.end_input())
                await settle()
                reading = group.create_task(read(stream))
            return reading.result()

    assert ids(run(scenario())) == [0, 1, 2, 3]


def test_a_sender_who_gives_up_leaves_no_frame_and_holds_no_place(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting()

    async def scenario() -> list[FrameAnswer]:
        frames = make_frames(4)
        async with opened(service, max_in_flight=1) as stream:
            await stream.push(frames[0])
            pushing = [asyncio.create_task(stream.push(frame)) for frame in frames[1:3]]
            await settle()
            for task in pushing:
                task.cancel()
            await asyncio.wait(pushing)
            found = await read(stream, 1)
            await stream.push(frames[3])
            await stream.end_input()
            return found + await read(stream)

    answers = run(scenario())
    assert (ids(answers), counts(answers)) == ([0, 3], [1, 2])


def test_under_latest_the_oldest_waiting_frames_are_dropped_and_counted_where_they_are_missing(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting(gated=True)

    async def scenario() -> list[FrameAnswer]:
        frames = make_frames(9)
        async with opened(service, max_in_flight=1, drop_policy="latest") as stream:
            await stream.push(frames[0])
            await at_gate(service)
            for frame in frames[1:6]:
                await stream.push(frame)
            gate_of(service).opened.set()
            found = await read(stream, 2)
            await stream.push(frames[6])
            await stream.end_input()
            return found + await read(stream)

    answers = run(scenario())
    counters = service.metrics.snapshot().counters
    assert counters["polyhead_frames_dropped_total", ()] == 4
    assert counters["polyhead_frames_total", (("code", "ok"),)] == 3
    assert counters["polyhead_frame_age_seconds_count", ()] == counters["polyhead_admission_seconds_count", ()] == 3
    assert ids(answers) == [0, 5, 6]
    assert [answer.dropped_since_last for answer in answers] == [0, 4, 0]
    assert counts(answers) == [1, 2, 3]


def test_under_latest_with_more_places_the_newest_frames_wait(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting(gated=True)

    async def scenario() -> list[FrameAnswer]:
        frames = make_frames(10)
        async with opened(service, max_in_flight=4, drop_policy="latest") as stream:
            await stream.push(frames[0])
            await stream.push(frames[1])
            await at_gate(service)
            await until(lambda: not stream._waiting)  # 0 in the encoder, 1 decoded and ready
            for frame in frames[2:]:
                await stream.push(frame)
            gate_of(service).opened.set()
            await stream.end_input()
            return await read(stream)

    answers = run(scenario())
    assert ids(answers) == [0, 1, 8, 9]
    assert [answer.dropped_since_last for answer in answers] == [0, 0, 6, 0]


@pytest.mark.parametrize("limit", [1, 3])
def test_under_latest_a_client_that_never_reads_is_bounded_and_every_frame_is_accounted_for(
    limit: int, make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting()

    async def scenario() -> tuple[int, list[FrameAnswer]]:
        [frame] = make_frames(1)
        async with opened(service, max_in_flight=limit, drop_policy="latest") as stream:
            most = 0
            for number in range(50):
                await stream.push(dataclasses.replace(frame, frame_id=number))
                await settle()
                most = max(most, len(stream._waiting) + len(stream._under_way))
            await until(lambda: stream.num_frames == limit)
            for number in range(50, 60):
                await stream.push(dataclasses.replace(frame, frame_id=number))
            await stream.end_input()
            return most, await read(stream)

    most, answers = run(scenario())
    assert most <= limit + 1
    assert len(answers) == limit + 1
    assert ids(answers)[-1] == 59
    assert len(answers) + sum(answer.dropped_since_last for answer in answers) == 60
    gaps = [now - before - 1 for before, now in zip([-1, *ids(answers)], ids(answers), strict=False)]
    assert gaps == [answer.dropped_since_last for answer in answers]


def test_under_reject_a_frame_too_many_is_refused_in_its_turn(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting(gated=True)

    async def scenario() -> list[FrameAnswer]:
        frames = make_frames(7)
        async with opened(service, max_in_flight=2, drop_policy="reject") as stream:
            for frame in frames[:5]:
                await stream.push(frame)
            gate_of(service).opened.set()
            found = await read(stream, 5)
            for frame in frames[5:]:
                await stream.push(frame)
            await stream.end_input()
            return found + await read(stream)

    answers = run(scenario())
    assert ids(answers) == list(range(7))
    assert failures(answers) == [None, None, OverloadedError, OverloadedError, OverloadedError, None, None]
    assert counts(answers) == [1, 2, None, None, None, 3, 4]
    assert "2 frames of this stream are inside" in str(answers[2].error)


def test_under_reject_a_flood_is_made_to_wait_until_answers_are_read(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting()

    async def scenario() -> list[FrameAnswer]:
        [frame] = make_frames(1)
        async with opened(service, max_in_flight=1, drop_policy="reject") as stream:
            numbers = iter(range(1000))
            for _ in range(1 + _MAX_REFUSED):
                await stream.push(dataclasses.replace(frame, frame_id=next(numbers)))
            pushing = asyncio.create_task(stream.push(dataclasses.replace(frame, frame_id=next(numbers))))
            await until(lambda: stream.num_frames == 1)
            await settle()
            assert not pushing.done()
            found = await read(stream, 1)
            await pushing  # a place is free, so this one is not refused
            await stream.end_input()
            return found + await read(stream)

    answers = run(scenario())
    assert ids(answers) == list(range(_MAX_REFUSED + 2))
    assert failures(answers) == [None, *[OverloadedError] * _MAX_REFUSED, None]


def test_under_every_policy_a_codec_sees_every_frame(make_counting: MakeService, make_frames: MakeFrames) -> None:
    class Stateful:
        keeps_state = True

        def __init__(self) -> None:
            self.seen: list[int] = []

        def decode(self, frame: Frame) -> list[DecodedFrame]:
            self.seen.append(frame.frame_id)
            return frame_decoder("image").decode(frame)

        def flush(self) -> list[DecodedFrame]:
            return []

    service = make_counting(gated=True)

    async def scenario(policy: Any) -> list[int]:
        decoder = Stateful()
        async with opened(service, decoder=decoder, max_in_flight=1, drop_policy=policy) as stream:
            for frame in make_frames(6):
                await stream.push(frame)
            return decoder.seen

    assert run(scenario("latest")) == list(range(6))
    assert run(scenario("reject")) == list(range(6))


@pytest.mark.parametrize(("field", "value"), [("max_in_flight", 0), ("max_in_flight", 65)])
def test_a_number_of_places_out_of_range_is_refused(field: str, value: int) -> None:
    with pytest.raises(InvalidOptionError, match=f"max_in_flight is {value}"):
        StreamConfig(("count",), **{field: value})


@pytest.mark.parametrize("value", [0.0, -1.0, 3601.0, float("nan")])
def test_a_frame_timeout_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(InvalidOptionError, match="frame_timeout_s is"):
        StreamConfig(("count",), frame_timeout_s=value)


# A frame's failure is its own


def test_a_corrupt_frame_fails_alone_and_the_state_goes_on(make_counting: MakeService, make_frames: MakeFrames) -> None:
    frames = make_frames(4)
    frames[1] = dataclasses.replace(frames[1], data=b"nothing to see")
    frames[2] = dataclasses.replace(frames[2], data=frames[2].data[: len(frames[2].data) // 2])
    answers = run(play(make_counting(), frames))
    assert ids(answers) == [0, 1, 2, 3]
    assert failures(answers) == [None, InvalidImageError, InvalidImageError, None]
    assert counts(answers) == [1, None, None, 2]


def test_raw_pixels_of_the_wrong_number_fail_alone(make_counting: MakeService) -> None:
    good = Frame(0, bytes(40 * 50 * 3), size=(40, 50))
    frames = [good, Frame(1, bytes(40 * 50), size=(40, 50)), Frame(2, good.data), Frame(3, good.data, size=(50, 40))]
    answers = run(play(make_counting(), frames, form="rgb24"))
    assert failures(answers) == [None, InvalidImageError, InvalidOptionError, None]
    assert counts(answers) == [1, None, None, 2]


def test_an_unusual_failure_of_a_decoder_is_logged_and_fails_the_frame_alone(
    make_counting: MakeService, make_frames: MakeFrames, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        def __init__(self, keeps_state: bool) -> None:
            self.keeps_state = keeps_state

        def decode(self, frame: Frame) -> list[DecodedFrame]:
            if frame.frame_id == 1:
                raise ZeroDivisionError("odd")
            return frame_decoder("image").decode(frame)

        def flush(self) -> list[DecodedFrame]:
            raise ZeroDivisionError("odd at the end")

    async def scenario(decoder: FrameDecoder) -> list[FrameAnswer]:
        async with opened(make_counting(), decoder=decoder) as stream:
            for frame in make_frames(3):
                await stream.push(frame)
            await stream.end_input()
            return await read(stream)

    for keeps_state in (False, True):
        answers = run(scenario(Odd(keeps_state)))
        assert failures(answers) == [None, InternalError, None]
        assert "ZeroDivisionError" in str(answers[1].error)
        assert counts(answers) == [1, None, 2]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["odd", "odd", "odd at the end"]


def test_a_frame_over_the_limit_fails_alone_and_never_reaches_the_decoder(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    frames = make_frames(3)
    frames[1] = dataclasses.replace(frames[1], data=bytes(200_001))

    class Strict:
        keeps_state = True

        def decode(self, frame: Frame) -> list[DecodedFrame]:
            assert frame.frame_id != 1
            return frame_decoder("image").decode(frame)

        def flush(self) -> list[DecodedFrame]:
            return []

    async def scenario() -> list[FrameAnswer]:
        async with opened(make_counting(), decoder=Strict()) as stream:
            for frame in frames:
                await stream.push(frame)
            await stream.end_input()
            return await read(stream)

    answers = run(scenario())
    assert failures(answers) == [None, TooLargeError, None]
    assert "frame 1 has 200001 bytes; at most 200000 are taken" in str(answers[1].error)
    assert answers[1].frame.data == b""  # it waits for its reader without its weight
    assert answers[1].frame.captured_at_us == 1000
    assert counts(answers) == [1, None, 2]


def test_a_head_that_fails_on_a_frame_keeps_the_state_of_the_frame_before(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    calls: list[list[int]] = []

    def fail_once(seen: list[int]) -> None:
        calls.append(seen)
        if len(calls) == 3:
            raise RuntimeError("no luck")

    answers = run(play(make_counting(on_step=fail_once), make_frames(5), "count", "depth"))
    assert failures(answers) == [None] * 5
    assert counts(answers) == [1, 2, None, 3, 4]
    assert answers[2].prediction is not None
    assert isinstance(answers[2].prediction.errors["count"], HeadFailedError)
    assert answers[2].prediction.results.keys() == {"depth"}


def test_an_encoder_that_fails_on_a_frame_keeps_the_state_of_the_frame_before(
    make_counting: MakeService, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_counting()
    forward = service.engine.bundle.encoder.forward
    calls: list[int] = []

    def fail_once(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no luck")
        return forward(*arguments)

    monkeypatch.setattr(service.engine.bundle.encoder, "forward", fail_once)
    answers = run(play(service, make_frames(3)))
    assert counts(answers) == [1, None, 2]
    assert answers[1].prediction is not None
    assert isinstance(answers[1].prediction.errors["count"], EncoderFailedError)


def test_a_batch_that_fails_fails_the_frame_alone(
    make_counting: MakeService, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_counting()
    run_pass = service._runner._run_pass
    calls: list[int] = []

    def fail_once(inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no luck")
        return run_pass(inputs)

    monkeypatch.setattr(service._runner, "_run_pass", fail_once)
    answers = run(play(service, make_frames(3)))
    assert failures(answers) == [None, InternalError, None]
    assert counts(answers) == [1, None, 2]
    assert service.admission.inside == 0


@pytest.mark.parametrize("step", ["prepare", "finish"])
def test_a_frame_that_fails_before_or_after_the_encoder_fails_alone(
    step: str,
    make_counting: MakeService,
    make_frames: MakeFrames,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = make_counting()
    original = getattr(service.engine, step)
    calls: list[int] = []

    def fail_once(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("no luck")
        return original(*arguments)

    monkeypatch.setattr(service.engine, step, fail_once)
    answers = run(play(service, make_frames(3), max_in_flight=1))
    assert failures(answers) == [None, InternalError, None]
    assert counts(answers) == [1, None, 2 if step == "prepare" else 3]
    assert "no luck" in caplog.text


def test_a_frame_too_old_when_its_turn_comes_is_told_so_and_the_state_goes_on(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    frames = make_frames(3)
    late = dataclasses.replace(frames[1], arrived_s=time.monotonic() - 100)
    answers = run(play(make_counting(), [frames[0], late, frames[2]], frame_timeout_s=90))
    assert failures(answers) == [None, DeadlineExceededError, None]
    assert "longer than 90 s" in str(answers[1].error)
    assert counts(answers) == [1, None, 2]
    assert answers[1].age_s >= 100


def test_a_frame_too_old_is_not_even_decoded(make_counting: MakeService, make_frames: MakeFrames) -> None:
    class Never:
        keeps_state = False

        def decode(self, frame: Frame) -> list[DecodedFrame]:
            raise AssertionError("was decoded")

        def flush(self) -> list[DecodedFrame]:
            return []

    async def scenario() -> list[FrameAnswer]:
        async with opened(make_counting(), decoder=Never(), frame_timeout_s=90) as stream:
            await stream.push(dataclasses.replace(make_frames(1)[0], arrived_s=time.monotonic() - 100))
            return await read(stream, 1)

    assert failures(run(scenario())) == [DeadlineExceededError]


def test_a_frame_that_grows_too_old_while_another_is_in_the_encoder_is_never_run(
    make_counting: MakeService, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_counting(gated=True)

    async def scenario() -> list[FrameAnswer]:
        async with opened(service, frame_timeout_s=50) as stream:
            for frame in make_frames(2):
                await stream.push(frame)
            await at_gate(service)
            await until(lambda: len(stream._under_way) == 2 and bool(stream._under_way[1].inputs))
            now_s = time.monotonic()
            monkeypatch.setattr("serving.streams.stream.time.monotonic", lambda: now_s + 51)
            gate_of(service).opened.set()
            await stream.end_input()
            return await read(stream)

    answers = run(scenario())
    assert failures(answers) == [None, DeadlineExceededError]
    assert len(gate_of(service).batches) == 1


def test_a_frame_whose_deadline_passes_in_the_queue_is_never_run(
    make_counting: MakeService, make_frames: MakeFrames, encode_picture: EncodePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_counting(gated=True)

    async def scenario() -> list[FrameAnswer]:
        blocker = asyncio.create_task(ask(service, encode_picture(), "depth"))
        await at_gate(service)
        async with opened(service, frame_timeout_s=50) as stream:
            await stream.push(make_frames(1)[0])
            await until(lambda: service._runner.waiting == 1)
            monkeypatch.setattr(service._runner, "_clock", lambda: time.monotonic() + 51)
            gate_of(service).opened.set()
            await stream.end_input()
            answers = await read(stream)
        await blocker
        return answers

    assert failures(run(scenario())) == [DeadlineExceededError]
    assert [len(batch) for batch in gate_of(service).batches] == [1]


def test_when_one_of_several_passes_fails_no_state_moves(
    make_counting: MakeService, make_frames: MakeFrames, probe_head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = make_counting(heads={"fine": (probe_head(), (84, 84))})
    run_pass = service._runner._run_pass
    calls: list[int] = []

    def fail_once(inputs: Any) -> Any:
        if inputs[0].tasks == ("fine",):
            calls.append(1)
            if len(calls) == 2:
                raise RuntimeError("no luck")
        return run_pass(inputs)

    monkeypatch.setattr(service._runner, "_run_pass", fail_once)
    answers = run(play(service, make_frames(3), "count", "fine"))
    assert failures(answers) == [None, InternalError, None]
    assert counts(answers) == [1, None, 2]
    assert answers[0].prediction is not None
    assert answers[0].prediction.timing.encoder_passes == 2


# Video codecs


@pytest.fixture(scope="session")
def encode_h264() -> Callable[..., list[bytes]]:
    """Access units of an H.264 clip with a key frame every sixth."""

    def encode(number: int, *, b_frames: int = 0) -> list[bytes]:
        if "libx264" not in av.codecs_available:
            pytest.skip("PyAV comes without libx264 here")
        context: Any = av.CodecContext.create("libx264", "w")
        context.width, context.height, context.pix_fmt, context.gop_size = 64, 48, "yuv420p", 6
        context.time_base, context.framerate = Fraction(1, 25), 25
        context.options = {"bf": str(b_frames), "preset": "ultrafast", "b-adapt": "0", "threads": "1"}
        packets = []
        for i in range(number):
            pixels = np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts = i
            packets += context.encode(picture)
        return [bytes(packet) for packet in packets + context.encode(None)]

    return encode


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("limit", [1, 4])
def test_a_codec_s_frames_are_all_answered_also_those_it_holds_back(
    b_frames: int, limit: int, make_counting: MakeService, encode_h264: Callable[..., list[bytes]]
) -> None:
    frames = [Frame(i, unit) for i, unit in enumerate(encode_h264(13, b_frames=b_frames))]
    answers = run(play(make_counting(), frames, form="h264", max_in_flight=limit))
    assert sorted(ids(answers)) == list(range(13))
    assert counts(answers) == list(range(1, 14))
    assert (ids(answers) == list(range(13))) == (b_frames == 0)
    assert all(answer.prediction and answer.prediction.timing.total_ms > 0 for answer in answers)


def test_garbage_between_access_units_fails_alone(
    make_counting: MakeService, encode_h264: Callable[..., list[bytes]]
) -> None:
    units = encode_h264(12)
    units[3], units[4] = np.random.default_rng(0).bytes(300), b""
    answers = run(play(make_counting(), [Frame(i, unit) for i, unit in enumerate(units)], form="h264"))
    assert ids(answers) == list(range(12))
    assert [i for i, failure in enumerate(failures(answers)) if failure] == [3, 4]
    assert counts(answers)[5:] == list(range(4, 11))


def test_a_clip_that_starts_within_a_group_fails_until_its_key_frame(
    make_counting: MakeService, encode_h264: Callable[..., list[bytes]]
) -> None:
    answers = run(play(make_counting(), [Frame(i, unit) for i, unit in enumerate(encode_h264(12)[4:])], form="h264"))
    assert failures(answers) == [InvalidImageError] * 2 + [None] * 6
    assert counts(answers) == [None, None, 1, 2, 3, 4, 5, 6]


def test_a_push_cancelled_in_the_codec_leaves_the_stream_in_order(
    make_counting: MakeService, make_frames: MakeFrames
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow:
        keeps_state = True

        def decode(self, frame: Frame) -> list[DecodedFrame]:
            if frame.frame_id == 0:
                entered.set()
                assert go_on.wait(60)
            return frame_decoder("image").decode(frame)

        def flush(self) -> list[DecodedFrame]:
            return []

    async def scenario() -> list[FrameAnswer]:
        frames = make_frames(3)
        async with opened(make_counting(), decoder=Slow()) as stream:
            first = asyncio.create_task(stream.push(frames[0]))
            assert await asyncio.to_thread(entered.wait, 60)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            go_on.set()
            for frame in frames[1:]:
                await stream.push(frame)
            await stream.end_input()
            return await read(stream)

    assert ids(run(scenario())) == [1, 2]


# The end of a stream


def test_a_frame_after_the_end_is_refused(make_counting: MakeService, make_frames: MakeFrames) -> None:
    async def scenario() -> list[FrameAnswer]:
        first, second = make_frames(2)
        async with opened(make_counting()) as stream:
            await stream.push(first)
            await stream.end_input()
            await stream.end_input()
            with pytest.raises(InvalidOptionError, match="after the end"):
                await stream.push(second)
            return await read(stream)

    assert ids(run(scenario())) == [0]


async def _evict(stream: VideoStream) -> None:
    stream.evict(GONE)


async def _evict_elsewhere(stream: VideoStream) -> None:
    await asyncio.to_thread(stream.evict, GONE)


async def _close(stream: VideoStream) -> None:
    await stream.close()


@pytest.mark.parametrize(
    ("end", "words"), [(_evict, "^gone$"), (_evict_elsewhere, "^gone$"), (_close, "^the stream was closed$")]
)
@pytest.mark.parametrize("gated", [True, False])
def test_whoever_waits_hears_of_the_end_and_so_does_whoever_comes_later(
    end: Callable[[VideoStream], Coroutine[Any, Any, None]],
    words: str,
    gated: bool,
    make_counting: MakeService,
    make_frames: MakeFrames,
) -> None:
    """Whether frames are in the encoder (gated) or answered and not read."""
    service = make_counting(gated=gated)

    async def scenario() -> None:
        frames = make_frames(8)
        async with opened(service, max_in_flight=2) as stream:
            for frame in frames[:2]:
                await stream.push(frame)
            waiting = [asyncio.create_task(stream.push(frame)) for frame in frames[2:4]]
            if gated:
                await at_gate(service)
                waiting += [asyncio.create_task(read(stream)) for _ in range(2)]
            else:
                await until(lambda: stream.num_frames == 2)
            await settle()
            assert not any(task.done() for task in waiting)
            await end(stream)
            for task in waiting:
                with pytest.raises(PolyheadError, match=words):
                    await task
            for _ in range(2):
                with pytest.raises(PolyheadError, match=words):
                    await stream.push(frames[4])
                with pytest.raises(PolyheadError, match=words):
                    await read(stream)
            assert stream.state_bytes == 0
            assert not stream.busy
            await stream.end_input()
            await stream.close()
            await stream.close()
        assert service.admission.inside == 0

    run(scenario())


@pytest.mark.parametrize("end", [_evict, _close])
def test_an_end_after_the_end_of_input_does_not_leave_the_reader_waiting(
    end: Callable[[VideoStream], Coroutine[Any, Any, None]], make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting()

    async def scenario() -> None:
        async with opened(service, max_in_flight=1) as stream:
            await stream.push(make_frames(1)[0])
            await stream.end_input()
            await until(lambda: stream.num_frames == 1)
            await settle()
            await end(stream)
            await settle()
            with pytest.raises(PolyheadError):
                await read(stream)

    run(scenario())


@pytest.mark.parametrize("end", [_evict, _close])
def test_an_end_during_the_last_frame_s_post_processing_does_not_leave_the_reader_waiting(
    end: Callable[[VideoStream], Coroutine[Any, Any, None]],
    make_counting: MakeService,
    make_frames: MakeFrames,
    probe_head: Any,
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def wait(raw: Any) -> None:
        begun.set()
        assert go_on.wait(60)

    service = make_counting(heads={"probe": probe_head(on_postprocess=wait)})

    async def scenario() -> None:
        async with opened(service, "probe") as stream:
            await stream.push(make_frames(1)[0])
            await stream.end_input()
            reading = asyncio.create_task(read(stream))
            assert await asyncio.to_thread(begun.wait, 60)
            await until(lambda: stream._worked_off)
            await settle()
            await end(stream)
            with pytest.raises(PolyheadError):
                await reading

    try:
        run(scenario())
    finally:
        go_on.set()


@pytest.mark.parametrize("end", [_evict, _evict_elsewhere, _close])
@pytest.mark.parametrize("input_ended", [False, True])
def test_the_end_can_be_waited_for(
    end: Callable[[VideoStream], Coroutine[Any, Any, None]],
    input_ended: bool,
    make_counting: MakeService,
    make_frames: MakeFrames,
) -> None:
    async def scenario() -> PolyheadError:
        async with opened(make_counting()) as stream:
            waiting = asyncio.create_task(stream.wait_ended())
            await stream.push(make_frames(1)[0])
            if input_ended:
                await stream.end_input()
                await read(stream)
            else:
                await read(stream, 1)
            await settle()
            assert not waiting.done()
            await end(stream)
            found = await waiting
            assert await stream.wait_ended() is found
            return found

    assert type(run(scenario())) is (StreamEvictedError if end is _close else UnavailableError)


def test_a_stream_is_always_ended_in_its_own_loop(make_counting: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    async def scenario() -> None:
        async with opened(make_counting()) as stream:
            end = stream._end

            def note(error: PolyheadError) -> None:
                threads.append(threading.current_thread())
                end(error)

            monkeypatch.setattr(stream, "_end", note)
            await asyncio.to_thread(stream.evict, GONE)
            await stream.wait_ended()
            stream.evict(GONE)

    run(scenario())
    assert set(threads) == {threading.current_thread()}


def test_the_first_reason_stays(make_counting: MakeService) -> None:
    async def scenario() -> None:
        async with opened(make_counting()) as stream:
            stream.evict(GONE)
            stream.evict(OverloadedError("another", remedy="none"))
            await stream.close()
            with pytest.raises(UnavailableError, match="gone"):
                await read(stream)

    run(scenario())


def test_a_stream_that_was_ended_before_it_began_to_run_is_closed_too(make_counting: MakeService) -> None:
    service = make_counting()

    async def scenario() -> None:
        async with opened(service) as stream:
            stream.evict(GONE)
        with pytest.raises(UnavailableError, match="gone"):
            await read(stream)

    run(scenario())


@pytest.mark.parametrize("begun", [False, True])
def test_an_end_before_the_first_frame_leaves_nobody_waiting(
    begun: bool, make_counting: MakeService, make_frames: MakeFrames
) -> None:
    """Whether the stream's own work, the reader and the one who waits for the end have begun or not."""
    service = make_counting()

    async def scenario() -> None:
        async with opened(service) as stream:
            reading, ended = asyncio.create_task(read(stream)), asyncio.create_task(stream.wait_ended())
            if begun:
                await settle()
            stream.evict(GONE)
            with pytest.raises(UnavailableError, match="gone"):
                await reading
            assert await ended is GONE
            with pytest.raises(UnavailableError, match="gone"):
                await stream.push(make_frames(1)[0])
            await stream.end_input()
        assert not stream._tasks

    run(scenario())


def test_closing_stops_what_is_under_way(make_counting: MakeService, make_frames: MakeFrames) -> None:
    service = make_counting(gated=True)

    async def scenario() -> tuple[int, set[asyncio.Task[Any]]]:
        async with opened(service) as stream:
            for frame in make_frames(4):
                await stream.push(frame)
            await at_gate(service)
        left = {task for task in asyncio.all_tasks() if task.get_name() == "video stream"}
        gate_of(service).opened.set()
        await ask(service, make_frames(1)[0].data, "depth")
        return len(gate_of(service).batches), left

    batches, left = run(scenario())
    assert batches == 2  # the frame at the gate, and the still picture
    assert left == set()


def test_a_frame_in_the_queue_leaves_it_when_its_stream_is_closed(
    make_counting: MakeService, make_frames: MakeFrames, encode_picture: EncodePicture
) -> None:
    service = make_counting(gated=True)

    async def scenario() -> None:
        blocker = asyncio.create_task(ask(service, encode_picture(), "depth"))
        await at_gate(service)
        async with opened(service) as stream:
            await stream.push(make_frames(1)[0])
            await until(lambda: service._runner.waiting == 1)
        assert service._runner.waiting == 0
        assert service.admission.inside == 1
        gate_of(service).opened.set()
        await blocker

    run(scenario())
    assert len(gate_of(service).batches) == 1


def test_a_bug_of_ours_is_logged_and_told_to_the_client(
    make_counting: MakeService, make_frames: MakeFrames, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_counting()

    def fail(stream: VideoStream) -> None:
        raise KeyError("a bug")

    async def scenario() -> None:
        stream = VideoStream(service, StreamConfig(("count",)), frame_decoder("image"), fail)
        await stream.push(make_frames(1)[0])
        with pytest.raises(InternalError, match="the stream failed with a KeyError"):
            await read(stream)
        assert stream.state_bytes == 0
        await stream.close()

    with caplog.at_level(logging.ERROR):
        run(scenario())
    assert "a bug" in caplog.text


def test_a_stream_whose_task_is_cancelled_from_outside_tells_its_reader(make_counting: MakeService) -> None:
    async def scenario() -> None:
        async with opened(make_counting()) as stream:
            reading = asyncio.create_task(read(stream))
            await settle()
            for task in asyncio.all_tasks():
                if task.get_name() == "video stream":
                    task.cancel()
            with pytest.raises(StreamEvictedError, match="the stream was cancelled"):
                await reading

    run(scenario())


@pytest.mark.parametrize("in_thread", [True, False])
def test_a_service_that_drains_ends_its_streams(
    in_thread: bool, make_counting: MakeService, make_frames: MakeFrames
) -> None:
    service = make_counting()

    async def scenario() -> None:
        async with opened(service) as stream:
            await stream.push(make_frames(1)[0])
            await read(stream, 1)
            reading = asyncio.create_task(read(stream))
            await settle()
            if in_thread:
                await asyncio.to_thread(service.drain)
            else:
                service.drain()
            with pytest.raises(UnavailableError, match="this replica is stopping"):
                await reading
            with pytest.raises(UnavailableError, match="this replica is stopping"):
                await stream.push(make_frames(1)[0])
        assert len(service.streams) == 0

    run(scenario())


def test_an_eviction_after_the_loop_is_closed_harms_nobody(make_counting: MakeService) -> None:
    service = make_counting()

    async def scenario() -> VideoStream:
        async with opened(service) as stream:
            return stream

    stream = run(scenario())
    stream.evict(GONE)


def test_since_when_only_the_client_can_go_on(make_counting: MakeService, make_frames: MakeFrames) -> None:
    service = make_counting(gated=True)

    async def scenario() -> None:
        async with opened(service, max_in_flight=4) as stream:
            opened_s = stream.idle_since_s
            assert opened_s == stream.active_s
            frames = make_frames(3)
            await stream.push(frames[0])
            await stream.push(frames[1])
            assert stream.idle_since_s is None
            await at_gate(service)
            assert stream.idle_since_s is None
            gate_of(service).opened.set()
            await until(lambda: all(job.ready_s is not None for job in stream._under_way))
            unread_s = stream.idle_since_s
            assert unread_s is not None and unread_s > opened_s
            await stream.push(frames[2])  # sending is not reading
            assert stream.active_s > unread_s
            assert stream.idle_since_s == unread_s
            await read(stream, 1)
            read_s = stream.idle_since_s
            assert read_s is not None and read_s > unread_s
            await read(stream, 2)
            assert stream.idle_since_s == stream.active_s

    run(scenario())
