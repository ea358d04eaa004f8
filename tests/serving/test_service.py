"""The request path without a protocol: who gets in, who comes out, and that nobody is counted for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.bundles.loading import Bundle
from serving.config import Settings
from serving.errors import (
    DeadlineExceededError,
    HeadFailedError,
    InternalError,
    InvalidImageError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
    UnsupportedTaskError,
)
from serving.service import SegmentationService, create_service
from serving.types import Prediction, PredictOptions

OPTIONS = PredictOptions()
MakeService = Callable[..., SegmentationService]
EncodePicture = Callable[..., bytes]


async def at_gate(service: SegmentationService) -> Any:
    """The gate of a gated service, once a batch stands before it."""
    gate: Any = service.engine.run_pass
    assert await asyncio.to_thread(gate.entered.wait, 60)
    return gate


async def ask(
    service: SegmentationService, data: bytes, tasks: list[str] | None = None, timeout_s: float = 60
) -> Prediction:
    """One picture let in and answered, as a gateway does it."""
    async with service.admitted(timeout_s) as deadline_s:
        return await service.predict(data, tasks, OPTIONS, deadline_s)


def sample(service: SegmentationService, name: str, **labels: str) -> float:
    """The value of a metric, 0 before it was ever counted; drain first where a batch was run, for it counts last."""
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


def test_a_picture_is_answered_from_one_encoder_pass(make_service: MakeService, encode_picture: EncodePicture) -> None:
    service = make_service()
    prediction = asyncio.run(ask(service, encode_picture(60, 90), ["panoptic", "depth"]))
    assert prediction.results.keys() == {"panoptic", "depth"}
    assert prediction.image_size == prediction.output_size == (60, 90)
    assert prediction.timing.encoder_passes == 1
    service.drain()
    assert sample(service, "polyhead_encoder_passes_total") == 1
    assert sample(service, "polyhead_encoder_passes_saved_total") == 1


def test_every_stage_is_timed(make_service: MakeService, encode_picture: EncodePicture) -> None:
    timing = asyncio.run(ask(make_service(), encode_picture())).timing
    stages = [timing.decode_ms, timing.preprocess_ms, timing.encoder_ms, *timing.heads_ms.values()]
    assert all(stage > 0 for stage in (*stages, timing.postprocess_ms))
    assert timing.queue_ms >= 0
    assert timing.total_ms >= sum(stages)


def test_a_head_of_another_geometry_costs_a_second_pass(
    make_service: MakeService, make_bundle: Callable[..., Bundle], probe_head: Any, encode_picture: EncodePicture
) -> None:
    service = make_service(make_bundle(fine=(probe_head(), (84, 84))))
    prediction = asyncio.run(ask(service, encode_picture(), ["panoptic", "fine", "depth"]))
    assert prediction.results.keys() == {"panoptic", "fine", "depth"}
    assert prediction.timing.encoder_passes == 2
    service.drain()
    assert sample(service, "polyhead_encoder_passes_total") == 2
    assert sample(service, "polyhead_encoder_passes_saved_total") == 1


def test_callers_that_want_different_heads_share_a_batch(
    make_service: MakeService, encode_picture: EncodePicture
) -> None:
    service = make_service(gated=True)

    async def scenario() -> tuple[list[Prediction], int]:
        first = asyncio.create_task(ask(service, encode_picture(seed=0), ["depth"]))
        gate = await at_gate(service)
        others = [
            asyncio.create_task(ask(service, encode_picture(40, 50, seed=i), [task]))
            for i, task in enumerate(("panoptic", "depth"))
        ]
        while service._runner.waiting < 2:  # both must have been decoded
            await asyncio.sleep(0)
        gate.opened.set()
        return await asyncio.gather(first, *others), len(gate.batches)

    (first, *others), batches = asyncio.run(scenario())
    assert batches == 2
    assert first.timing.batch_size == 1
    assert [prediction.timing.batch_size for prediction in others] == [2, 2]
    assert [set(prediction.results) for prediction in others] == [{"panoptic"}, {"depth"}]


def test_nobody_is_inside_after_an_answer(make_service: MakeService, encode_picture: EncodePicture) -> None:
    service = make_service()
    asyncio.run(ask(service, encode_picture()))
    assert service.admission.inside == 0


@pytest.mark.parametrize(
    ("data", "tasks", "error"),
    [
        (b"no picture", None, InvalidImageError),
        (b"", None, InvalidImageError),
        (b"no picture", ["panoptc"], UnsupportedTaskError),
    ],
)
def test_nobody_is_inside_after_a_refusal(
    make_service: MakeService, data: bytes, tasks: list[str] | None, error: type[Exception]
) -> None:
    service = make_service()
    with pytest.raises(error):
        asyncio.run(ask(service, data, tasks))
    assert service.admission.inside == 0


def test_the_largest_picture_is_a_setting(make_service: MakeService, encode_picture: EncodePicture) -> None:
    with pytest.raises(TooLargeError, match="more than the 5,000 taken here"):
        asyncio.run(ask(make_service(max_pixels=5000), encode_picture(60, 90)))


def test_a_failing_head_is_told_beside_the_others_and_counted(
    make_service: MakeService, make_bundle: Callable[..., Bundle], probe_head: Any, encode_picture: EncodePicture
) -> None:
    def fail(features: Any, raw: Any) -> None:
        raise RuntimeError("broken")

    service = make_service(make_bundle(culprit=probe_head((1,), fail)))
    prediction = asyncio.run(ask(service, encode_picture(), ["culprit", "depth"]))
    assert prediction.results.keys() == {"depth"}
    assert isinstance(prediction.errors["culprit"], HeadFailedError)
    assert sample(service, "polyhead_head_errors_total", head="culprit") == 1


def test_a_cancelled_request_leaves_and_its_picture_is_never_run(
    make_service: MakeService, encode_picture: EncodePicture
) -> None:
    service = make_service(gated=True)

    async def scenario() -> list[list[Any]]:
        first = asyncio.create_task(ask(service, encode_picture(), ["depth"]))
        gate = await at_gate(service)
        second = asyncio.create_task(ask(service, encode_picture(), ["depth"]))
        while service._runner.waiting < 1:
            await asyncio.sleep(0)
        assert service.admission.inside == 2
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert service.admission.inside == 1
        assert service._runner.waiting == 0
        gate.opened.set()
        await first
        return gate.batches

    assert len(asyncio.run(scenario())) == 1
    assert service.admission.inside == 0


def test_a_request_cancelled_while_its_batch_runs_leaves_and_harms_nobody(
    make_service: MakeService, encode_picture: EncodePicture
) -> None:
    service = make_service(gated=True)

    async def scenario() -> Prediction:
        first = asyncio.create_task(ask(service, encode_picture(), ["depth"]))
        gate = await at_gate(service)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert service.admission.inside == 0
        gate.opened.set()
        return await ask(service, encode_picture(), ["depth"])

    assert asyncio.run(scenario()).results.keys() == {"depth"}


def test_a_deadline_that_passes_is_told_and_the_picture_leaves(
    make_service: MakeService, encode_picture: EncodePicture
) -> None:
    service = make_service(gated=True)
    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.02 s"):
        asyncio.run(ask(service, encode_picture(), ["depth"], timeout_s=0.02))
    assert service.admission.inside == 0


def test_the_deadline_spans_everything_that_is_done_inside(make_service: MakeService) -> None:
    service = make_service()

    async def never_read() -> None:
        async with service.admitted(0.02):
            assert service.admission.inside == 1
            await asyncio.Event().wait()  # a body that never comes, or an answer that takes for ever to render

    with pytest.raises(DeadlineExceededError, match=r"no answer within 0\.02 s") as late:
        asyncio.run(never_read())
    assert "X-Request-Timeout-S" in late.value.remedy
    assert service.admission.inside == 0


def test_the_deadline_is_told_on_the_monotonic_clock(make_service: MakeService) -> None:
    async def scenario() -> tuple[float, float, float]:
        before_s = time.monotonic()
        async with make_service().admitted(5) as deadline_s:
            return before_s, deadline_s, time.monotonic()

    before_s, deadline_s, after_s = asyncio.run(scenario())
    assert before_s + 5 <= deadline_s <= after_s + 5


def test_a_picture_whose_deadline_passes_in_the_queue_is_never_run(
    make_service: MakeService, encode_picture: EncodePicture
) -> None:
    service = make_service(gated=True)

    async def scenario() -> list[list[Any]]:
        first = asyncio.create_task(ask(service, encode_picture(), ["depth"]))
        gate = await at_gate(service)
        with pytest.raises(DeadlineExceededError):
            await ask(service, encode_picture(), ["depth"], timeout_s=0.05)
        assert service._runner.waiting == 0
        gate.opened.set()
        await first
        return gate.batches

    assert len(asyncio.run(scenario())) == 1


def test_when_one_pass_of_a_picture_fails_the_others_are_taken_out_of_the_queue(
    make_service: MakeService,
    make_bundle: Callable[..., Bundle],
    probe_head: Any,
    encode_picture: EncodePicture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = make_service(make_bundle(fine=(probe_head(), (84, 84)), finer=(probe_head(), (112, 112))), gated=True)

    async def scenario() -> Any:
        first = asyncio.create_task(ask(service, encode_picture(), ["depth"]))
        gate = await at_gate(service)
        second = asyncio.create_task(ask(service, encode_picture(), ["fine", "finer", "depth"]))
        while service._runner.waiting < 3:
            await asyncio.sleep(0)
        run_pass = gate._run_pass

        def fail_on_fine(inputs: Any) -> Any:
            if inputs[0].tasks != ("fine",):
                return run_pass(inputs)
            gate.opened.clear()  # the next batch must wait until the failure was seen
            raise RuntimeError("no luck")

        monkeypatch.setattr(gate, "_run_pass", fail_on_fine)
        gate.opened.set()
        with pytest.raises(InternalError, match="RuntimeError"):
            await second
        assert service.admission.inside <= 1  # the first may still be on its way out
        while service._runner.waiting:
            await asyncio.sleep(0)
        gate.opened.set()
        await first
        return gate

    gate = asyncio.run(scenario())
    service.drain()
    ran = [batch[0].tasks for batch in gate.batches]
    assert ran in (
        [("depth",), ("fine",)],
        [("depth",), ("fine",), ("finer",)],
    )  # "finer" may have left the queue already
    assert service.admission.inside == 0


def test_more_pictures_than_may_wait_are_shed_at_once(make_service: MakeService, encode_picture: EncodePicture) -> None:
    service = make_service(gated=True, max_pictures_inside=2)

    async def scenario() -> list[Prediction]:
        tasks = [asyncio.create_task(ask(service, encode_picture(), ["depth"])) for _ in range(2)]
        gate = await at_gate(service)
        with pytest.raises(OverloadedError) as shed:
            await ask(service, encode_picture(), ["depth"])
        assert shed.value.retry_after_s == 1
        gate.opened.set()
        return await asyncio.gather(*tasks)

    assert all(prediction.results for prediction in asyncio.run(scenario()))
    assert service.admission.inside == 0


def test_the_rate_of_admission_follows_the_batches(make_service: MakeService, encode_picture: EncodePicture) -> None:
    service = make_service()
    assert service.admission.rate.wait_s(1) == 0
    asyncio.run(ask(service, encode_picture()))
    service.drain()
    assert service.admission.rate.wait_s(1) > 0


def test_the_rate_counts_the_pictures_of_a_batch_that_was_run_again_one_by_one(
    make_service: MakeService, encode_picture: EncodePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    observed: list[int] = []

    async def scenario(service: SegmentationService) -> list[Prediction]:
        monkeypatch.setattr(service.admission.rate, "observe", lambda pictures, seconds: observed.append(pictures))
        first = asyncio.create_task(ask(service, encode_picture(), ["depth"]))
        gate = await at_gate(service)
        others = [asyncio.create_task(ask(service, encode_picture(seed=i), ["depth"])) for i in (1, 2)]
        while service._runner.waiting < 2:
            await asyncio.sleep(0)
        forward = service.engine.bundle.encoder.forward

        def fail(images: Any, *indices: Any) -> Any:
            if len(images) > 1:
                raise RuntimeError("one at a time, please")
            return forward(images, *indices)

        monkeypatch.setattr(service.engine.bundle.encoder, "forward", fail)
        gate.opened.set()
        return await asyncio.gather(first, *others)

    service = make_service(gated=True)
    predictions = asyncio.run(scenario(service))
    service.drain()
    assert observed == [1, 2]
    assert [(p.timing.encoder_passes, p.timing.batch_size) for p in predictions] == [(1, 1)] * 3
    assert sample(service, "polyhead_encoder_runs_total") == 3
    assert sample(service, "polyhead_encoder_passes_total") == 3
    assert sample(service, "polyhead_encoder_passes_saved_total") == 0


def test_a_draining_service_refuses_new_pictures(make_service: MakeService, encode_picture: EncodePicture) -> None:
    service = make_service()
    service.check_ready()
    service.drain()
    with pytest.raises(UnavailableError, match="draining") as refused:
        asyncio.run(ask(service, encode_picture()))
    assert refused.value.retry_after_s is not None
    assert service.admission.inside == 0


def test_a_service_without_its_accelerator_thread_is_not_ready(make_service: MakeService) -> None:
    service = make_service()
    service._runner.stop()
    with pytest.raises(UnavailableError, match="without its accelerator thread"):
        service.check_ready()


def test_the_gauges_tell_who_is_inside_and_who_waits(make_service: MakeService, encode_picture: EncodePicture) -> None:
    service = make_service(gated=True)

    async def scenario() -> None:
        tasks = [asyncio.create_task(ask(service, encode_picture(), ["depth"]))]
        gate = await at_gate(service)
        tasks.append(asyncio.create_task(ask(service, encode_picture(), ["depth"])))
        while service._runner.waiting < 1:
            await asyncio.sleep(0)
        assert sample(service, "polyhead_pictures_inside") == 2
        assert sample(service, "polyhead_queue_pictures") == 1
        assert sample(service, "polyhead_queue_bytes") == 3 * 56 * 56
        gate.opened.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert sample(service, "polyhead_pictures_inside") == 0


def test_work_in_the_pool_runs_in_a_picture_thread(make_service: MakeService) -> None:
    name = asyncio.run(make_service().in_pool(lambda: threading.current_thread().name))
    assert name.startswith("pictures")


def test_warming_up_runs_every_head_and_counts_nothing(
    make_service: MakeService, make_bundle: Callable[..., Bundle], probe_head: Any
) -> None:
    probe = probe_head()
    service = make_service(make_bundle(probe=probe))
    service.warm_up()
    assert probe.batch_sizes == [1]
    assert sample(service, "polyhead_encoder_passes_total") == 0


def test_a_service_is_created_from_its_settings(
    bundle_file: Path, settings: Settings, encode_picture: EncodePicture, tmp_path: Path
) -> None:
    service = create_service(settings.model_copy(update={"bundle": str(bundle_file), "cache_dir": tmp_path}))
    try:
        prediction = asyncio.run(ask(service, encode_picture()))
    finally:
        service.drain()
    assert service.engine.bundle.name == "tiny"
    assert prediction.results.keys() == {"panoptic", "depth"}
