"""The engine: one pass for all heads of a geometry, each head on its own rows, and whoever fails fails alone."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from decoders.base import DecoderModule, PostprocessOptions
from decoders.results import DepthResult, PanopticResult, Result
from encoders.features import EncoderFeatures
from encoders.geometry import ImageGeometry, InputGeometry, ShortestEdgeGeometry, WindowGeometry
from serving.bundles.loading import Bundle
from serving.engine import Engine, PassInput, PassOutput, PassReport, count_pass
from serving.errors import (
    EncoderFailedError,
    HeadFailedError,
    InvalidImageError,
    UnsupportedTaskError,
    UnusableImageError,
)
from serving.planner import Taps
from serving.types import Prediction, PredictOptions, Timing

SIZES = ((60, 90), (100, 40), (56, 56))

EncoderCall = tuple[int, tuple[int, ...]]
"""Pictures in a forward call of the encoder, and the blocks that were tapped."""


@pytest.fixture
def engine(make_bundle: Callable[..., Bundle]) -> Engine:
    return Engine(make_bundle())


@pytest.fixture
def picture(draw_picture: Callable[..., Image.Image]) -> Image.Image:
    return draw_picture(*SIZES[0])


@pytest.fixture
def pictures(draw_picture: Callable[..., Image.Image]) -> list[Image.Image]:
    """Three of different sizes and content."""
    return [draw_picture(*size, seed) for seed, size in enumerate(SIZES)]


def encoder_calls(engine: Engine) -> list[EncoderCall]:
    """A list that grows by one with every forward call of the encoder."""
    calls: list[EncoderCall] = []
    engine.bundle.encoder.register_forward_pre_hook(lambda module, args: calls.append((len(args[0]), tuple(args[1]))))
    return calls


def run(engine: Engine, wishes: list[tuple[Image.Image, tuple[str, ...]]]) -> tuple[list[Prediction], PassReport]:
    """One batched pass over pictures that want different tasks of one geometry, as a server runs it."""
    options = PredictOptions()
    inputs = [engine.prepare(image, tasks, options)[0] for image, tasks in wishes]
    outputs = engine.run_pass(inputs)
    assert all(output.report is outputs[0].report for output in outputs)  # one run served them all
    predictions = []
    for item, output in zip(inputs, outputs, strict=True):
        assert output.raw.keys() | output.errors.keys() == set(item.tasks)
        assert not output.raw.keys() & output.errors.keys()
        results, errors = engine.finish([item], [output], options)
        predictions.append(Prediction(item.geometry.image_size, item.geometry.output_size, results, errors, Timing()))
    return predictions, outputs[0].report


def assert_same(left: Mapping[str, Result], right: Mapping[str, Result]) -> None:
    """The same answers up to rounding."""
    assert left.keys() == right.keys()
    for task, one in left.items():
        other = right[task]
        if isinstance(one, PanopticResult):
            assert isinstance(other, PanopticResult)
            np.testing.assert_array_equal(one.segment_map, other.segment_map)
            assert [(s.segment_id, s.label_id, s.area, s.bbox) for s in one.segments] == [
                (s.segment_id, s.label_id, s.area, s.bbox) for s in other.segments
            ]
            np.testing.assert_allclose([s.score for s in one.segments], [s.score for s in other.segments], atol=1e-4)
        else:
            assert isinstance(other, DepthResult)
            np.testing.assert_allclose(one.depth_m, other.depth_m, rtol=1e-3)


# One pass


def test_two_tasks_of_one_geometry_cost_one_encoder_pass(engine: Engine, picture: Image.Image) -> None:
    calls = encoder_calls(engine)
    prediction = engine.predict(picture, ["panoptic", "depth"])[0]
    assert prediction.timing.encoder_passes == 1
    assert len(calls) == 1
    assert prediction.results.keys() == {"panoptic", "depth"}


def test_a_pass_taps_the_union_of_the_blocks_that_its_heads_read(engine: Engine, picture: Image.Image) -> None:
    calls = encoder_calls(engine)
    engine.predict(picture, ["depth", "panoptic"])
    engine.predict(picture, ["depth"])
    assert calls == [(1, (0, 1, 2)), (1, (1, 2))]


def test_a_head_with_a_geometry_of_its_own_costs_a_second_pass(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image
) -> None:
    engine = Engine(make_bundle(fine=(probe_head((0,)), (84, 112))))
    calls = encoder_calls(engine)
    prediction = engine.predict(picture, ["panoptic", "fine", "depth"])[0]
    assert prediction.timing.encoder_passes == 2
    assert calls == [(1, (0, 1, 2)), (1, (0,))]
    assert prediction.results.keys() == {"panoptic", "fine", "depth"}
    assert prediction.timing.heads_ms.keys() == {"panoptic", "fine", "depth"}


def test_the_results_together_are_the_results_apart(engine: Engine, picture: Image.Image) -> None:
    together = engine.predict(picture, ["panoptic", "depth"])[0].results
    apart = {task: engine.predict(picture, [task])[0].results[task] for task in ("panoptic", "depth")}
    assert_same(together, apart)


def test_requests_that_want_different_heads_share_one_pass(
    make_bundle: Callable[..., Bundle], probe_head: Any, pictures: list[Image.Image]
) -> None:
    probe = probe_head((1,))
    engine = Engine(make_bundle(probe=probe))
    calls = encoder_calls(engine)
    predictions, report = run(
        engine, [(pictures[0], ("depth",)), (pictures[1], ("panoptic", "probe")), (pictures[2], ("probe",))]
    )
    assert calls == [(3, (0, 1, 2))]
    assert [set(prediction.results) for prediction in predictions] == [{"depth"}, {"panoptic", "probe"}, {"probe"}]
    assert report.batch_size == 3
    assert report.head_rows == {"depth": 1, "panoptic": 1, "probe": 2}
    assert report.heads_s.keys() == report.head_rows.keys()


@pytest.mark.parametrize("wanting", [(0,), (1, 2), (0, 2), (0, 1, 2)])
def test_a_head_runs_on_its_own_rows_only(
    make_bundle: Callable[..., Bundle], probe_head: Any, pictures: list[Image.Image], wanting: tuple[int, ...]
) -> None:
    probe = probe_head((1,))
    engine = Engine(make_bundle(probe=probe))
    alone = [engine.predict(picture, ["probe"])[0].results["probe"] for picture in pictures]
    probe.batch_sizes.clear()
    wishes = [(image, ("depth", "probe") if i in wanting else ("depth",)) for i, image in enumerate(pictures)]
    predictions, report = run(engine, wishes)
    assert probe.batch_sizes == [len(wanting)]
    assert report.head_rows == {"depth": 3, "probe": len(wanting)}
    for i, prediction in enumerate(predictions):
        assert ("probe" in prediction.results) == (i in wanting)
        if i in wanting:
            assert_same({"probe": prediction.results["probe"]}, {"probe": alone[i]})


def test_a_picture_batched_with_strangers_gets_the_result_it_gets_alone(
    engine: Engine, pictures: list[Image.Image]
) -> None:
    batched = engine.predict(pictures, max_batch_size=3)
    assert [prediction.timing.batch_size for prediction in batched] == [3, 3, 3]
    for picture, prediction in zip(pictures, batched, strict=True):
        assert_same(prediction.results, engine.predict(picture)[0].results)


def test_the_pictures_of_the_tests_give_several_segments(engine: Engine, pictures: list[Image.Image]) -> None:
    for prediction in engine.predict(pictures):
        result = prediction.results["panoptic"]
        assert isinstance(result, PanopticResult)
        assert len(result.segments) >= 2


def test_two_bundles_of_the_tests_answer_alike(
    engine: Engine, make_bundle: Callable[..., Bundle], pictures: list[Image.Image]
) -> None:
    for one, other in zip(engine.predict(pictures), Engine(make_bundle()).predict(pictures), strict=True):
        assert_same(one.results, other.results)


def test_more_pictures_than_fit_in_a_batch_run_in_several_and_keep_their_order(
    engine: Engine, draw_picture: Callable[..., Image.Image]
) -> None:
    calls = encoder_calls(engine)
    sizes = [(40 + i, 60) for i in range(5)]
    predictions = engine.predict([draw_picture(*size) for size in sizes], ["depth"], max_batch_size=2)
    assert [batch for batch, _ in calls] == [2, 2, 1]
    assert [prediction.image_size for prediction in predictions] == sizes
    assert [prediction.timing.batch_size for prediction in predictions] == [2, 2, 2, 2, 1]
    assert [prediction.timing.encoder_passes for prediction in predictions] == [1] * 5


# A head that writes to the features it reads


def write_in_place(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
    for tokens in features.lateral_features.values():
        tokens.mul_(0).add_(1)


def write_to_data(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
    for tokens in features.lateral_features.values():
        tokens.data.fill_(1)


def write_through_numpy(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
    for tokens in features.lateral_features.values():
        tokens.numpy()[:] = 1


def write_to_views(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
    for index in features.lateral_features:
        features.prefix_tokens(index).fill_(1)
        features.patch_map(index).fill_(1)


WRITES = (write_in_place, write_to_data, write_through_numpy, write_to_views)
Write = Callable[[EncoderFeatures, dict[str, Tensor]], None]


@pytest.mark.parametrize("order", ["culprit panoptic depth", "panoptic culprit depth", "panoptic depth culprit"])
@pytest.mark.parametrize("write", WRITES)
def test_one_head_does_not_change_the_features_that_another_reads(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image, write: Write, order: str
) -> None:
    engine = Engine(make_bundle(culprit=probe_head((0, 1, 2), write)))
    calls = encoder_calls(engine)
    prediction = engine.predict(picture, order.split())[0]
    assert len(calls) == 1
    assert prediction.errors == {}
    apart = {task: engine.predict(picture, [task])[0].results[task] for task in order.split()}
    assert_same(prediction.results, apart)


@pytest.mark.parametrize("rows", [(0, 1, 2), (0, 1), (1, 2), (0, 2), (1,)], ids=str)
@pytest.mark.parametrize("write", WRITES)
def test_a_head_that_writes_to_some_rows_of_a_batch_changes_none_for_another(
    make_bundle: Callable[..., Bundle],
    probe_head: Any,
    pictures: list[Image.Image],
    write: Write,
    rows: tuple[int, ...],
) -> None:
    engine = Engine(make_bundle(culprit=probe_head((0, 1, 2), write), first=True))
    wishes = [(image, ("culprit", "depth") if i in rows else ("depth",)) for i, image in enumerate(pictures)]
    predictions, _ = run(engine, wishes)
    for i, (image, prediction) in enumerate(zip(pictures, predictions, strict=True)):
        assert prediction.errors == {}
        assert prediction.results.keys() == ({"culprit", "depth"} if i in rows else {"depth"})
        apart = {task: engine.predict(image, [task])[0].results[task] for task in prediction.results}
        assert_same(prediction.results, apart)


def test_a_head_that_writes_and_then_fails_is_tried_again_on_untouched_features(
    make_bundle: Callable[..., Bundle], probe_head: Any, pictures: list[Image.Image]
) -> None:
    def write_and_fail(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
        write_to_data(features, raw)
        if features.batch_size > 1:
            raise RuntimeError("one at a time, please")

    engine = Engine(make_bundle(culprit=probe_head((0, 1, 2), write_and_fail)))
    honest = [engine.predict(image, ["culprit"])[0].results for image in pictures]
    for tasks in (("culprit",), ("culprit", "depth"), ("depth", "culprit")):
        predictions, _ = run(engine, [(image, tasks) for image in pictures])
        for prediction, results in zip(predictions, honest, strict=True):
            assert prediction.errors == {}
            assert_same({"culprit": prediction.results["culprit"]}, results)


def answer_a_view(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
    raw["value"] = features.tokens(1)[:, :1, :1]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("order", ["viewer culprit", "culprit viewer"])
def test_a_head_whose_output_is_a_view_of_the_features_keeps_its_answer(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image, write: Write, order: str
) -> None:
    engine = Engine(make_bundle(viewer=probe_head((1,), answer_a_view), culprit=probe_head((1,), write)))
    honest = engine.predict(picture, ["viewer"])[0].results
    prediction = engine.predict(picture, order.split())[0]
    assert prediction.errors == {}
    assert_same({"viewer": prediction.results["viewer"]}, honest)
    result = honest["viewer"]
    assert isinstance(result, DepthResult) and not np.allclose(result.depth_m, 1)  # else the write would not show


@pytest.mark.parametrize("order", ["wrecker viewer", "viewer wrecker"])
def test_postprocessing_that_writes_to_a_view_of_the_features_changes_no_other_head(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image, order: str
) -> None:
    def wreck(raw: Mapping[str, Tensor]) -> None:
        raw["value"].zero_()

    wrecker = probe_head((1,), answer_a_view, wreck)
    engine = Engine(make_bundle(wrecker=wrecker, viewer=probe_head((1,), answer_a_view)))
    honest = engine.predict(picture, ["viewer"])[0].results
    assert np.all(honest["viewer"].depth_m != 0)  # type: ignore[union-attr]  # else the write would not show
    together = engine.predict(picture, order.split())[0].results
    assert_same({"viewer": together["viewer"]}, honest)


def test_postprocessing_that_writes_for_one_picture_changes_no_other_picture(
    make_bundle: Callable[..., Bundle], probe_head: Any, pictures: list[Image.Image]
) -> None:
    def wreck_afterwards(raw: Mapping[str, Tensor]) -> None:
        seen.append(raw["value"].item())
        raw["value"].zero_()

    seen: list[float] = []
    engine = Engine(make_bundle(viewer=probe_head((1,), answer_a_view, wreck_afterwards)))
    run(engine, [(image, ("viewer",)) for image in pictures])
    batched = seen.copy()
    seen.clear()
    for image in pictures:
        engine.predict(image, ["viewer"])
    np.testing.assert_allclose(batched, seen, rtol=1e-3)


def test_no_two_heads_of_a_pass_read_the_same_memory(
    make_bundle: Callable[..., Bundle], probe_head: Any, pictures: list[Image.Image]
) -> None:
    kept: list[Tensor] = []  # alive, so that no memory is used twice
    watch: Write = lambda features, raw: kept.extend(features.lateral_features.values())  # noqa: E731
    engine = Engine(make_bundle(**{task: probe_head((0, 1), watch) for task in ("one", "two", "three")}))
    for wishes in ([(pictures[0], ("one", "two", "three"))], [(image, ("one", "two", "three")) for image in pictures]):
        run(engine, wishes)
        places = {tokens.untyped_storage().data_ptr() for tokens in kept}
        assert len(places) == len(kept) == 6
        kept.clear()


def test_a_head_sees_only_the_blocks_that_it_names(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image
) -> None:
    def pry(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
        features.tokens(2)

    honest, nosy = probe_head((1,)), probe_head((0,), pry)
    engine = Engine(make_bundle(honest=honest, nosy=nosy))
    prediction = engine.predict(picture, ["honest", "nosy", "panoptic", "depth"])[0]
    assert (honest.tapped, nosy.tapped) == ([(1,)], [(0,)])
    assert prediction.errors.keys() == {"nosy"}
    assert "a KeyError" in prediction.errors["nosy"].detail
    assert prediction.results.keys() == {"honest", "panoptic", "depth"}


def test_a_head_cannot_swap_the_features_of_another(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image
) -> None:
    def swap(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
        features.lateral_features[1] = torch.zeros(1)

    engine = Engine(make_bundle(culprit=probe_head((1,), swap)))
    prediction = engine.predict(picture, ["culprit", "depth"])[0]
    assert prediction.errors.keys() == {"culprit"}
    assert_same(prediction.results, engine.predict(picture, ["depth"])[0].results)


# Failures


def fail_on_brightness(least: float) -> Callable[[EncoderFeatures, dict[str, Tensor]], None]:
    def check(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
        if (raw["value"] > least).any():
            raise RuntimeError("too bright for me")

    return check


def logged(caplog: pytest.LogCaptureFixture, message: str) -> list[BaseException]:
    """The exceptions that the engine logged under a message, each with its stack trace."""
    records = [record for record in caplog.records if record.getMessage() == message]
    assert all(record.name == "polyhead.engine" and record.levelno == logging.ERROR for record in records)
    exceptions = [record.exc_info[1] for record in records if record.exc_info]
    assert len(exceptions) == len(records)
    assert all(exception and exception.__traceback__ for exception in exceptions)
    return [exception for exception in exceptions if exception]


def test_a_head_that_raises_fails_alone(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(make_bundle(culprit=probe_head((1,), fail_on_brightness(-1))))
    prediction = engine.predict(picture, ["culprit", "panoptic", "depth"])[0]
    assert prediction.results.keys() == {"panoptic", "depth"}
    error = prediction.errors["culprit"]
    assert isinstance(error, HeadFailedError)
    assert error.detail == "head 'culprit' failed with a RuntimeError; the server's log has it"
    assert "too bright" not in json.dumps(error.problem())
    assert [str(exception) for exception in logged(caplog, "head 'culprit' failed")] == ["too bright for me"]
    assert prediction.timing.encoder_passes == 1


def test_a_head_that_raises_for_one_picture_of_a_batch_fails_for_that_picture_only(
    make_bundle: Callable[..., Bundle], probe_head: Any, pictures: list[Image.Image]
) -> None:
    probe = probe_head((1,))
    engine = Engine(make_bundle(probe=probe))
    values = [engine.predict(image, ["probe"])[0].results["probe"] for image in pictures]
    levels = sorted(value.depth_m.item(0) for value in values if isinstance(value, DepthResult))
    culprit = probe_head((1,), fail_on_brightness((levels[1] + levels[2]) / 2))  # the highest only
    engine = Engine(make_bundle(probe=culprit))
    calls = encoder_calls(engine)
    predictions, report = run(engine, [(image, ("probe", "depth")) for image in pictures])
    assert report.head_rows == {"probe": 3, "depth": 3}
    assert len(calls) == 1  # the head is tried again, the encoder is not
    for value, prediction in zip(values, predictions, strict=True):
        assert isinstance(value, DepthResult)
        failed = value.depth_m.item(0) == levels[2]
        assert prediction.errors.keys() == ({"probe"} if failed else set())
        assert "depth" in prediction.results
        if not failed:
            assert_same({"probe": value}, {"probe": prediction.results["probe"]})


def test_a_head_whose_output_lacks_rows_fails_alone(
    make_bundle: Callable[..., Bundle], probe_head: Any, pictures: list[Image.Image]
) -> None:
    def lose_a_row(features: EncoderFeatures, raw: dict[str, Tensor]) -> None:
        raw["value"] = raw["value"][1:]

    predictions, _ = run(
        Engine(make_bundle(culprit=probe_head((1,), lose_a_row))),
        [(image, ("culprit", "depth")) for image in pictures],
    )
    assert [prediction.errors.keys() for prediction in predictions] == [{"culprit"}] * 3
    assert [prediction.results.keys() for prediction in predictions] == [{"depth"}] * 3


def test_a_head_whose_postprocessing_fails_fails_alone(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(raw: Mapping[str, Tensor]) -> None:
        raise KeyError("no such map")

    engine = Engine(make_bundle(culprit=probe_head((1,), on_postprocess=fail)))
    prediction = engine.predict(picture, ["culprit", "panoptic", "depth"])[0]
    assert prediction.results.keys() == {"panoptic", "depth"}
    assert isinstance(prediction.errors["culprit"], HeadFailedError)
    assert prediction.errors["culprit"].detail == "head 'culprit' failed with a KeyError; the server's log has it"
    assert [str(exception) for exception in logged(caplog, "head 'culprit' failed")] == ["'no such map'"]


def failing_encoder(monkeypatch: pytest.MonkeyPatch, engine: Engine, pixels: Tensor) -> None:
    """Makes the encoder fail on every batch that holds a picture of those pixels."""
    forward = engine.bundle.encoder.forward

    def fail(images: Tensor, *indices: Any) -> EncoderFeatures:
        if any(torch.equal(image, pixels[0]) for image in images):
            raise RuntimeError("encoder out of luck")
        return forward(images, *indices)

    monkeypatch.setattr(engine.bundle.encoder, "forward", fail)


def test_an_encoder_that_fails_on_one_picture_leaves_the_others_answered(
    engine: Engine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alone = [engine.predict(picture)[0].results for picture in pictures]
    inputs: list[PassInput] = engine.prepare(pictures[1], ["depth"], PredictOptions())
    failing_encoder(monkeypatch, engine, inputs[0].pixels)
    calls = encoder_calls(engine)
    predictions = engine.predict(pictures, ["panoptic", "depth"])
    assert [batch for batch, _ in calls] == [3, 1, 1, 1]
    assert predictions[1].results == {}
    assert predictions[1].errors.keys() == {"panoptic", "depth"}
    for error in predictions[1].errors.values():
        assert isinstance(error, EncoderFailedError)
        assert error.detail == "the encoder failed with a RuntimeError; the server's log has it"
        assert "out of luck" not in json.dumps(error.problem())
    assert [str(exception) for exception in logged(caplog, "the encoder failed")] == ["encoder out of luck"]
    for i in (0, 2):
        assert predictions[i].errors == {}
        assert_same(predictions[i].results, alone[i])


def test_pictures_that_are_encoded_again_alone_pay_for_one_pass_each_and_the_failed_one_for_none(
    engine: Engine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs: list[PassInput] = engine.prepare(pictures[1], ["depth"], PredictOptions())
    failing_encoder(monkeypatch, engine, inputs[0].pixels)
    timings = [prediction.timing for prediction in engine.predict(pictures, ["panoptic", "depth"])]
    assert [(timing.encoder_passes, timing.batch_size) for timing in timings] == [(1, 1), (0, 0), (1, 1)]
    assert [timing.heads_ms.keys() for timing in timings] == [{"panoptic", "depth"}, set(), {"panoptic", "depth"}]
    assert [timing.encoder_ms > 0 for timing in timings] == [True, False, True]


def test_an_encoder_that_fails_on_batches_only_leaves_every_picture_answered_from_one_pass(
    engine: Engine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [engine.predict(picture)[0].results for picture in pictures]
    forward = engine.bundle.encoder.forward

    def fail(images: Tensor, *indices: Any) -> EncoderFeatures:
        if len(images) > 1:
            raise torch.OutOfMemoryError("no room for two")
        return forward(images, *indices)

    monkeypatch.setattr(engine.bundle.encoder, "forward", fail)
    predictions = engine.predict(pictures)
    for prediction, results in zip(predictions, alone, strict=True):
        assert prediction.errors == {}
        assert (prediction.timing.encoder_passes, prediction.timing.batch_size) == (1, 1)
        assert_same(prediction.results, results)


def test_each_picture_that_is_encoded_again_has_a_report_of_its_own(
    engine: Engine, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [engine.prepare(image, ["panoptic", "depth"], PredictOptions())[0] for image in pictures]
    failing_encoder(monkeypatch, engine, inputs[1].pixels)
    reports = [output.report for output in engine.run_pass(inputs)]
    assert [report.batch_size for report in reports] == [1, 0, 1]
    assert reports[1] == PassReport(began_s=reports[1].began_s)
    for report in (reports[0], reports[2]):
        assert report.head_rows == {"panoptic": 1, "depth": 1}
        assert report.encoder_s > 0


# Options, sizes and what pictures may be


def test_an_unknown_task_is_refused_and_the_loaded_ones_are_named(engine: Engine, picture: Image.Image) -> None:
    calls = encoder_calls(engine)
    with pytest.raises(UnsupportedTaskError, match=r"no head for 'panoptc'; loaded: depth, panoptic") as refused:
        engine.predict(picture, ["depth", "panoptc"])
    assert refused.value.remedy == "ask for some of: depth, panoptic"
    assert calls == []


def test_an_empty_list_of_tasks_is_refused(engine: Engine) -> None:
    with pytest.raises(UnsupportedTaskError, match="an empty list"):
        engine.check_tasks([])


def test_a_task_asked_twice_is_run_once(engine: Engine) -> None:
    assert engine.check_tasks(["depth", "panoptic", "depth"]) == ("depth", "panoptic")


def test_without_tasks_the_default_ones_of_the_bundle_run(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image
) -> None:
    engine = Engine(make_bundle(probe=probe_head()))
    assert engine.predict(picture)[0].results.keys() == {"panoptic", "depth"}


def test_results_have_the_size_of_the_picture(engine: Engine, pictures: list[Image.Image]) -> None:
    for size, prediction in zip(SIZES, engine.predict(pictures), strict=True):
        panoptic, depth = prediction.results["panoptic"], prediction.results["depth"]
        assert isinstance(panoptic, PanopticResult) and isinstance(depth, DepthResult)
        assert prediction.image_size == prediction.output_size == size
        assert panoptic.segment_map.shape == depth.depth_m.shape == size


def test_max_side_makes_results_smaller_and_keeps_the_picture_size(engine: Engine, picture: Image.Image) -> None:
    prediction = engine.predict(picture, ["depth"], PredictOptions(max_side=45))[0]
    depth = prediction.results["depth"]
    assert isinstance(depth, DepthResult)
    assert (prediction.image_size, prediction.output_size, depth.depth_m.shape) == ((60, 90), (30, 45), (30, 45))


def test_max_side_never_makes_results_larger(engine: Engine, picture: Image.Image) -> None:
    assert engine.predict(picture, ["depth"], PredictOptions(max_side=500))[0].output_size == (60, 90)


def test_thresholds_reach_the_head(engine: Engine, picture: Image.Image) -> None:
    strict = PredictOptions(PostprocessOptions(score_threshold=1.0))
    result = engine.predict(picture, ["panoptic"], strict)[0].results["panoptic"]
    assert isinstance(result, PanopticResult)
    assert result.segments == ()
    assert not result.segment_map.any()


@pytest.mark.parametrize("kind", ["array", "bytes", "path", "path as text"])
def test_a_picture_may_come_as(kind: str, engine: Engine, picture: Image.Image, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(buffer.getvalue())
    given = {"array": np.asarray(picture), "bytes": buffer.getvalue(), "path": path, "path as text": str(path)}[kind]
    prediction = engine.predict(given)[0]
    assert prediction.image_size == (60, 90)
    assert_same(prediction.results, engine.predict(picture)[0].results)


def test_pictures_of_several_kinds_may_come_together(engine: Engine, picture: Image.Image) -> None:
    first, second = engine.predict([picture, np.asarray(picture)], ["depth"])
    assert_same(first.results, second.results)


def test_no_pictures_give_no_predictions(engine: Engine) -> None:
    assert engine.predict([]) == []


@pytest.mark.parametrize(
    "array", [np.zeros((20, 20), np.uint8), np.zeros((20, 20, 4), np.uint8), np.zeros((20, 20, 3), np.float32)]
)
def test_an_array_that_is_no_rgb_picture_is_refused(engine: Engine, array: Any) -> None:
    with pytest.raises(ValueError, match=r"must be \[H, W, 3\] uint8, not \[20, 20"):
        engine.predict(array)


def test_bytes_that_are_no_picture_are_refused(engine: Engine) -> None:
    with pytest.raises(InvalidImageError):
        engine.predict(b"no picture")


def test_timing_counts_what_was_done(engine: Engine, picture: Image.Image) -> None:
    timing = engine.predict(picture)[0].timing
    stages = [timing.preprocess_ms, timing.encoder_ms, *timing.heads_ms.values(), timing.postprocess_ms]
    assert all(stage > 0 for stage in stages)
    assert timing.total_ms >= sum(stages)
    assert timing.queue_ms == 0
    assert timing.batch_size == 1


def test_a_bundle_on_disk_is_loaded_and_answers(bundle_file: Path, picture: Image.Image, tmp_path: Path) -> None:
    engine = Engine.from_bundle(str(bundle_file), device="cpu", cache_dir=tmp_path)
    prediction = engine.predict(picture)[0]
    assert prediction.errors == {}
    assert prediction.results.keys() == {"panoptic", "depth"}
    assert prediction.timing.encoder_passes == 1


# Reports


def test_the_costs_of_two_passes_of_a_picture_add_up() -> None:
    timing = Timing()
    first = PassReport(3, 0.5, {"depth": 0.25, "other": 9}, {"depth": 3, "other": 1})
    count_pass(timing, PassOutput(first, raw={"depth": {}}))
    error = HeadFailedError("broken", remedy="report it")
    count_pass(timing, PassOutput(PassReport(2, 0.25, {"fine": 0.125}, {"fine": 2}), errors={"fine": error}))
    assert timing == Timing(encoder_ms=750, heads_ms={"depth": 250, "fine": 125}, encoder_passes=2, batch_size=3)


def test_a_run_whose_encoder_failed_costs_no_pass() -> None:
    timing = Timing(encoder_ms=1, encoder_passes=1, batch_size=4)
    error = EncoderFailedError("broken", remedy="report it")
    count_pass(timing, PassOutput(PassReport(), errors={"depth": error}))
    assert timing == Timing(encoder_ms=1, encoder_passes=1, batch_size=4)


# Windows, padding and hidden states


class ViewsHead(DecoderModule):
    """Answers the mean of each network input's tokens, and remembers what it was given."""

    kind: ClassVar[str] = "depth"
    takes_windows: ClassVar[bool] = True

    def __init__(self, *, hidden: bool = False) -> None:
        super().__init__()
        self.out_indices, self.hidden_indices = ((), (1,)) if hidden else ((1,), ())
        self.raw: list[Mapping[str, Tensor]] = []
        self.geometries: list[ImageGeometry] = []
        self.calls: list[EncoderFeatures] = []

    def forward(self, features: EncoderFeatures) -> dict[str, Tensor]:
        self.calls.append(features)
        tokens = features.hidden_state(1) if self.hidden_indices else features.tokens(1)
        return {"value": tokens.mean(dim=(1, 2))}

    def postprocess(
        self, raw: Mapping[str, Tensor], geometry: ImageGeometry, options: PostprocessOptions
    ) -> DepthResult:
        self.raw.append(raw)
        self.geometries.append(geometry)
        return DepthResult(np.full(geometry.output_size, raw["value"].mean().item(), dtype=np.float32))


def with_geometry(bundle: Bundle, task: str, geometry: InputGeometry) -> Bundle:
    heads = bundle.heads | {task: dataclasses.replace(bundle.heads[task], geometry=geometry)}
    return dataclasses.replace(bundle, heads=heads)


def test_a_picture_in_windows_is_encoded_window_by_window_and_comes_back_whole(
    make_bundle: Callable[..., Bundle], draw_picture: Callable[..., Image.Image]
) -> None:
    head = ViewsHead()
    engine = Engine(with_geometry(make_bundle(views=head), "views", WindowGeometry(56)))
    calls = encoder_calls(engine)
    long, square = draw_picture(56, 140), draw_picture(56, 56)
    predictions = engine.predict([long, square], ["views"])
    assert [rows for rows, _ in calls] == [4]  # three windows and one
    assert [raw["value"].shape for raw in head.raw] == [(3,), (1,)]
    assert [prediction.timing.encoder_passes for prediction in predictions] == [1, 1]
    together = head.raw[0]["value"]
    engine.predict(long, ["views"])
    torch.testing.assert_close(head.raw[2]["value"], together)


def test_windows_of_one_picture_do_not_reach_the_head_of_another(
    make_bundle: Callable[..., Bundle], draw_picture: Callable[..., Image.Image]
) -> None:
    head = ViewsHead()
    engine = Engine(with_geometry(make_bundle(views=head), "views", WindowGeometry(56)))
    pictures = [draw_picture(56, 140, 1), draw_picture(100, 60, 2), draw_picture(60, 60, 3)]
    engine.predict(pictures, ["views"])
    for picture, raw in zip(pictures, list(head.raw), strict=True):
        engine.predict(picture, ["views"])
        torch.testing.assert_close(head.raw[-1]["value"], raw["value"])


def test_a_picture_that_makes_too_many_windows_is_refused_before_it_is_cut(
    make_bundle: Callable[..., Bundle],
) -> None:
    engine = Engine(with_geometry(make_bundle(views=ViewsHead()), "views", WindowGeometry(56)))
    with pytest.raises(UnusableImageError, match="2000 x 10 pixels make 200 windows for views; at most 16"):
        engine.predict(Image.new("RGB", (2000, 10)), ["views"])


def test_padding_of_the_mean_colour_reaches_the_encoder_as_zero(
    make_bundle: Callable[..., Bundle], draw_picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = ViewsHead()
    engine = Engine(with_geometry(make_bundle(views=head), "views", ShortestEdgeGeometry(56, multiple=28)))
    seen: list[Tensor] = []
    engine.bundle.encoder.patch_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    engine.predict(draw_picture(56, 90), ["views"])
    assert seen[0].shape == (1, 3, 56, 112)
    assert not seen[0][:, :, :, 90:].any()
    assert seen[0][:, :, :, :90].abs().amin(dim=1).amax() > 0


def test_a_head_on_hidden_states_gets_them_without_the_norm_and_shares_the_pass(
    make_bundle: Callable[..., Bundle], picture: Image.Image
) -> None:
    head = ViewsHead(hidden=True)
    engine = Engine(make_bundle(bare=head))
    calls = encoder_calls(engine)
    [prediction] = engine.predict(picture, ["panoptic", "bare"])
    assert prediction.errors == {}
    assert len(calls) == 1
    features = head.calls[0]
    assert (tuple(features.lateral_features), tuple(features.hidden_states)) == ((), (1,))
    [item] = engine.prepare(picture, ["panoptic", "bare"], PredictOptions())
    expected = engine.bundle.encoder(item.pixels, (1,), (1,))
    torch.testing.assert_close(features.hidden_state(1), expected.hidden_state(1))
    assert not torch.allclose(features.hidden_state(1), expected.tokens(1), atol=1e-2)


# CUDA


@pytest.mark.gpu
def test_the_engine_on_cuda_gives_the_results_of_the_cpu(
    make_bundle: Callable[..., Bundle], pictures: list[Image.Image]
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    here, there = make_bundle(), make_bundle()
    for module in (there.encoder, *(head.decoder for head in there.heads.values())):
        assert isinstance(module, nn.Module)
        module.to("cuda")
    engine = Engine(there)
    assert engine.device.type == "cuda"
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # else convolutions round to 10 bits
        predictions = engine.predict(pictures)
    for on_cpu, on_gpu in zip(Engine(here).predict(pictures), predictions, strict=True):
        assert on_gpu.errors == {}
        assert on_gpu.timing.encoder_passes == 1
        expected, panoptic = on_cpu.results["panoptic"], on_gpu.results["panoptic"]
        assert isinstance(expected, PanopticResult) and isinstance(panoptic, PanopticResult)
        assert [(s.segment_id, s.label_id) for s in panoptic.segments] == [
            (s.segment_id, s.label_id) for s in expected.segments
        ]
        np.testing.assert_allclose(
            [s.score for s in panoptic.segments], [s.score for s in expected.segments], rtol=1e-4
        )
        assert np.mean(panoptic.segment_map != expected.segment_map) <= 0.001  # a pixel on an edge may fall either way
        expected_depth, depth = on_cpu.results["depth"], on_gpu.results["depth"]
        assert isinstance(expected_depth, DepthResult) and isinstance(depth, DepthResult)
        np.testing.assert_allclose(depth.depth_m, expected_depth.depth_m, rtol=1e-4)


# Features that are kept


def test_a_head_that_writes_into_its_features_does_not_change_what_is_kept_of_the_same_pass(
    make_bundle: Callable[..., Bundle], probe_head: Any, picture: Image.Image
) -> None:
    def spoil(features: EncoderFeatures, raw: Any) -> None:
        features.tokens(1).zero_()

    engine = Engine(make_bundle(spoiler=probe_head((1,), spoil)))
    [item] = engine.prepare(picture, ["spoiler"], PredictOptions())
    [output] = engine.run_pass([dataclasses.replace(item, keep=Taps((1,), ()))])
    assert output.features is not None
    assert output.features.tokens(1).abs().sum() > 0


def test_each_picture_keeps_its_own_rows_of_the_blocks_that_it_asked_for(
    engine: Engine, pictures: list[Image.Image]
) -> None:
    [first], [second] = [engine.prepare(image, ["depth"], PredictOptions()) for image in pictures[:2]]
    wanted = Taps((0,), (2,))
    [alone] = engine.run_pass([dataclasses.replace(second, tasks=(), keep=wanted)])
    with_heads, kept = engine.run_pass([first, dataclasses.replace(second, tasks=(), keep=wanted)])
    assert with_heads.features is None
    assert set(with_heads.raw) == {"depth"}
    assert kept.raw == {}
    assert alone.features is not None
    assert kept.features is not None
    assert (set(kept.features.lateral_features), set(kept.features.hidden_states)) == ({0}, {2})
    torch.testing.assert_close(kept.features.tokens(0), alone.features.tokens(0))
    torch.testing.assert_close(kept.features.hidden_state(2), alone.features.hidden_state(2))


def test_heads_on_kept_features_report_no_encoder_run(engine: Engine, picture: Image.Image) -> None:
    [item] = engine.prepare(picture, ["depth"], PredictOptions())
    [kept] = engine.run_pass([dataclasses.replace(item, tasks=(), keep=Taps((1, 2), ()))])
    assert kept.features is not None
    calls = encoder_calls(engine)
    [output] = engine.run_pass([dataclasses.replace(item, features=kept.features)])
    assert calls == []
    assert (output.report.batch_size, output.report.encoder_s) == (0, 0.0)
    assert output.report.head_rows == {"depth": 1}


def test_an_encoder_that_fails_is_told_where_only_features_were_wanted(
    engine: Engine, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    [item] = engine.prepare(picture, ["depth"], PredictOptions())
    failing_encoder(monkeypatch, engine, item.pixels)
    [output] = engine.run_pass([dataclasses.replace(item, tasks=(), keep=Taps((1,), ()))])
    assert output.features is None
    assert output.encoder_error is not None
