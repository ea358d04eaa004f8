"""All streams of a replica: who gets in, who must go and why, and that places and memory come back."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from decoders.base import DecoderModule
from decoders.online import StreamState
from decoders.results import DepthResult
from serving.bundles.loading import Bundle
from serving.errors import OverloadedError, StreamEvictedError, UnavailableError
from serving.service import SegmentationService
from serving.streams.frames import frame_decoder
from serving.streams.stream import Frame, StreamConfig, VideoStream

Value = TypeVar("Value")
MakeService = Callable[..., SegmentationService]

IDLE_S = 30.0
"""The setting's default."""


class HoardingHead(DecoderModule):
    """Remembers 100 bytes, or another number, of each stream."""

    kind = "depth"
    out_indices = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 100

    def forward(self, features: Any) -> dict[str, Tensor]:
        """As in a stream's first frame."""
        return self.step(features, [None] * features.batch_size)[0]

    def step(self, features: Any, states: Sequence[StreamState | None]) -> tuple[dict[str, Tensor], list[StreamState]]:
        """Nothing of interest."""
        memory = torch.zeros(self.num_bytes, dtype=torch.uint8)
        after = [
            StreamState(memory.clone(), memory[:0], 1 if state is None else state.num_frames + 1) for state in states
        ]
        return {"value": torch.tensor([[[float(state.num_frames)]] for state in after])}, after

    def postprocess(self, raw: Any, geometry: Any, options: Any) -> DepthResult:
        """The number of frames seen."""
        return DepthResult(np.full(geometry.output_size, raw["value"].item(), dtype=np.float32))


@pytest.fixture
def head() -> HoardingHead:
    return HoardingHead()


@pytest.fixture
def make_hoarding(make_service: MakeService, make_bundle: Callable[..., Bundle], head: HoardingHead) -> MakeService:
    """A service whose head "hoard" remembers; keyword arguments as for `make_service`."""
    return lambda **given: make_service(make_bundle(hoard=head), **given)


@pytest.fixture
def frame(encode_picture: Callable[..., bytes]) -> Frame:
    return Frame(0, encode_picture())


def run(scenario: Coroutine[Any, Any, Value]) -> Value:
    """Run a scenario in a loop of its own; one that hangs fails."""
    return asyncio.run(asyncio.wait_for(scenario, 60))


def opened(service: SegmentationService, **config: Any) -> Any:
    return service.streams.open(StreamConfig(("hoard",), **config), frame_decoder("image"))


async def step(stream: VideoStream, frame: Frame) -> int:
    """One frame and its answer: which frame of the stream it was."""
    await stream.push(dataclasses.replace(frame, arrived_s=time.monotonic()))
    async for answer in stream.answers():
        assert answer.prediction is not None
        result = answer.prediction.results["hoard"]
        assert isinstance(result, DepthResult)
        return int(result.depth_m[0, 0])
    raise AssertionError("no answer came")


async def reason(stream: VideoStream) -> str:
    """Why a stream was ended."""
    with pytest.raises(StreamEvictedError) as ended:
        async for _ in stream.answers():
            pass
    return str(ended.value)


# Places


def evictions(service: SegmentationService) -> dict[str, float]:
    """Streams that were ended, by why, where any was."""
    counters = service.metrics.snapshot().counters.items()
    return {labels[0][1]: value for (name, labels), value in counters if name == "polyhead_stream_evictions_total"}


def test_as_many_streams_as_are_let_in_and_no_more(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding(max_streams=2)

    async def scenario() -> None:
        async with opened(service) as first:
            async with opened(service):
                assert len(service.streams) == 2
                with pytest.raises(OverloadedError, match=r"^2 streams are open") as refused:
                    async with opened(service):
                        pass
                assert "POLYHEAD_MAX_STREAMS" in refused.value.remedy
                assert refused.value.retry_after_s == IDLE_S
            assert len(service.streams) == 1
            async with opened(service) as third:
                assert [await step(stream, frame) for stream in (first, third)] == [1, 1]
        assert len(service.streams) == 0

    run(scenario())


def test_a_place_comes_back_when_its_holder_fails_or_is_cancelled(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding(max_streams=1)

    async def fail() -> None:
        async with opened(service) as stream:
            await step(stream, frame)
            raise ConnectionError

    async def stay(inside: asyncio.Event) -> None:
        async with opened(service) as stream:
            await step(stream, frame)
            inside.set()
            await asyncio.Event().wait()

    async def scenario() -> int:
        with pytest.raises(ConnectionError):
            await fail()
        assert (len(service.streams), service.streams.state_bytes) == (0, 0)
        inside = asyncio.Event()
        staying = asyncio.create_task(stay(inside))
        await inside.wait()
        staying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await staying
        assert (len(service.streams), service.streams.state_bytes) == (0, 0)
        async with opened(service) as stream:
            return await step(stream, frame)

    assert run(scenario()) == 1


def test_a_draining_service_opens_no_stream(make_hoarding: MakeService) -> None:
    service = make_hoarding()
    service.drain()

    async def scenario() -> None:
        async with opened(service):
            pass

    with pytest.raises(UnavailableError, match="draining"):
        run(scenario())
    assert len(service.streams) == 0


# Idle streams


def test_a_stream_on_which_no_frame_comes_is_ended(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding()

    async def scenario() -> None:
        async with opened(service) as silent, opened(service) as other:
            await step(silent, frame)
            since_s = silent.active_s
            await step(other, frame)
            service.streams.evict_idle(since_s + IDLE_S)
            assert len(service.streams) == 2
            service.streams.evict_idle(since_s + IDLE_S + (other.active_s - since_s) / 2)
            assert len(service.streams) == 1
            assert await reason(silent) == "no frame came for 30 s"
            assert evictions(service) == {"idle": 1}
            with pytest.raises(StreamEvictedError, match="no frame came"):
                await silent.push(frame)
            assert await step(other, frame) == 2

    run(scenario())


def test_a_stream_on_which_nothing_ever_came_is_ended(make_hoarding: MakeService) -> None:
    service = make_hoarding()

    async def scenario() -> str:
        async with opened(service) as stream:
            service.streams.evict_idle(stream.active_s + IDLE_S + 1)
            return await reason(stream)

    assert run(scenario()) == "no frame came for 30 s"


def test_a_reader_who_waits_hears_of_it(make_hoarding: MakeService) -> None:
    service = make_hoarding()

    async def scenario() -> str:
        async with opened(service) as stream:
            reading = asyncio.create_task(reason(stream))
            await asyncio.sleep(0)
            service.streams.evict_idle(stream.active_s + IDLE_S + 1)
            return await reading

    assert run(scenario()) == "no frame came for 30 s"


@pytest.mark.parametrize("policy", ["block", "latest", "reject"])
def test_a_client_that_never_reads_is_ended_whatever_it_sends(
    policy: Any, make_hoarding: MakeService, frame: Frame
) -> None:
    service = make_hoarding()

    async def scenario() -> str:
        async with opened(service, max_in_flight=1, drop_policy=policy) as stream:

            async def send() -> None:
                while True:
                    await stream.push(frame)

            await stream.push(frame)
            while stream.idle_since_s is None:
                await asyncio.sleep(0)
            unread_s = stream.idle_since_s
            sending = asyncio.create_task(send())
            for _ in range(200):
                await asyncio.sleep(0)
            service.streams.evict_idle(unread_s + IDLE_S)
            assert len(service.streams) == 1
            service.streams.evict_idle(unread_s + IDLE_S + 1e-3)
            with pytest.raises(StreamEvictedError):
                await sending
            assert len(service.streams) == service.streams.state_bytes == 0
            return await reason(stream)

    assert run(scenario()) == "answers were not read for 30 s"


def test_a_stream_that_waits_for_us_is_never_idle(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding(gated=True)

    async def scenario() -> int:
        async with opened(service) as stream:
            stepping = asyncio.create_task(step(stream, frame))
            gate: Any = service.engine.run_pass
            assert await asyncio.to_thread(gate.entered.wait, 60)
            service.streams.evict_idle(time.monotonic() + 1e6)
            gate.opened.set()
            return await stepping

    assert run(scenario()) == 1


def test_a_stream_whose_holder_is_stuck_gives_its_place_back(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding(max_streams=1)

    async def scenario() -> int:
        async with opened(service) as stuck:
            service.streams.evict_idle(stuck.active_s + IDLE_S + 1)
            async with opened(service) as stream:
                assert len(service.streams) == 1
                return await step(stream, frame)

    assert run(scenario()) == 1


def test_idle_streams_are_looked_for_from_time_to_time(make_hoarding: MakeService) -> None:
    service = make_hoarding(stream_idle_s=0.01)

    async def scenario() -> str:
        async with opened(service) as stream:
            return await reason(stream)

    assert run(scenario()) == "no frame came for 0.01 s"


def test_the_one_who_looks_leaves_with_the_last_stream_and_comes_back_with_the_next(
    make_hoarding: MakeService,
) -> None:
    service = make_hoarding(stream_idle_s=0.01)

    async def scenario() -> None:
        for _ in range(2):
            async with opened(service) as stream:
                looking = service.streams._sweeper
                assert looking is not None
                assert not looking.done()
                await reason(stream)
            await looking

    run(scenario())


# Memory


def test_the_state_of_all_streams_is_told(make_hoarding: MakeService, frame: Frame, head: HoardingHead) -> None:
    service = make_hoarding()

    async def scenario() -> list[int]:
        told = [service.streams.state_bytes]
        async with opened(service) as first:
            async with opened(service) as second:
                for stream in (first, second, second):
                    await step(stream, frame)
                    told.append(service.streams.state_bytes)
            told.append(service.streams.state_bytes)
            head.num_bytes = 150
            await step(first, frame)
            told.append(service.streams.state_bytes)
        return [*told, service.streams.state_bytes]

    assert run(scenario()) == [0, 100, 200, 200, 100, 150, 0]


def test_over_the_limit_the_stream_that_was_idle_longest_is_ended(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding(max_stream_state_bytes=250)

    async def scenario() -> None:
        async with opened(service) as first, opened(service) as second, opened(service) as third:
            await step(first, frame)
            await step(second, frame)
            await step(first, frame)  # so that the second is idle longest
            assert await step(third, frame) == 1
            assert service.streams.state_bytes == 200
            assert second.state_bytes == 0
            text = await reason(second)
            assert text.startswith("the streams of this replica remember more than 250 bytes")
            assert evictions(service) == {"memory": 1}
            told = service.metrics.snapshot().gauges
            assert told["polyhead_streams_active", ()] == 2
            assert told["polyhead_stream_state_bytes", ()] == 200
            with pytest.raises(StreamEvictedError):
                await second.push(frame)
            assert [await step(first, frame), await step(third, frame)] == [3, 2]
            assert len(service.streams) == 2

    run(scenario())


def test_the_stream_that_grew_goes_last_however_busy_the_others_are(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding(max_stream_state_bytes=150)

    async def scenario() -> None:
        async with opened(service) as other, opened(service) as grown:
            await step(other, frame)
            other.active_s += 1000
            assert await step(grown, frame) == 1
            assert (other.state_bytes, grown.state_bytes) == (0, 100)

    run(scenario())


def test_as_many_are_ended_as_it_takes_and_none_that_holds_nothing(
    make_hoarding: MakeService, frame: Frame, head: HoardingHead
) -> None:
    service = make_hoarding(max_stream_state_bytes=400)

    async def scenario() -> None:
        async with opened(service) as empty, opened(service) as a, opened(service) as b, opened(service) as c:
            for stream in (a, b, c):
                await step(stream, frame)
            head.num_bytes = 310
            assert await step(c, frame) == 2
            assert [stream.state_bytes for stream in (a, b, c)] == [0, 0, 310]
            assert len(service.streams) == 2
            head.num_bytes = 10
            assert await step(empty, frame) == 1

    run(scenario())


def test_a_stream_that_alone_is_over_the_limit_is_ended_itself(
    make_hoarding: MakeService, frame: Frame, head: HoardingHead
) -> None:
    service = make_hoarding(max_stream_state_bytes=400)

    async def scenario() -> None:
        async with opened(service) as small, opened(service) as greedy:
            await step(small, frame)
            head.num_bytes = 401
            with pytest.raises(StreamEvictedError, match="more than 400 bytes"):
                await step(greedy, frame)
            assert service.streams.state_bytes == 0
            assert "more than 400 bytes" in await reason(small)

    run(scenario())


# The end of the replica


def test_all_streams_are_ended_with_one_reason(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding()

    async def scenario() -> None:
        async with opened(service) as first, opened(service) as second:
            await step(first, frame)
            service.streams.end_all()
            for stream in (first, second):
                with pytest.raises(UnavailableError, match="stopping") as ended:
                    await stream.push(frame)
                assert ended.value.retry_after_s == 1
            assert len(service.streams) == service.streams.state_bytes == 0
            assert evictions(service) == {"stopping": 2}

    run(scenario())


def test_once_all_are_ended_no_other_is_opened(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding()

    async def scenario() -> None:
        assert not service.streams.stopping
        service.streams.end_all()
        assert service.streams.stopping
        async with opened(service):
            pass

    with pytest.raises(UnavailableError, match="stopping"):
        run(scenario())
    assert len(service.streams) == 0


def test_all_streams_may_be_ended_for_another_reason(make_hoarding: MakeService, frame: Frame) -> None:
    service = make_hoarding()

    async def scenario() -> None:
        async with opened(service) as stream:
            service.streams.end_all(StreamEvictedError("the bundle changed", remedy="open a new stream"))
            assert await reason(stream) == "the bundle changed"

    run(scenario())
