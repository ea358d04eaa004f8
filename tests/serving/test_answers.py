"""From an answer back to results: what `serving.render` wrote is read again without loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from decoders.labels import LabelSet
from decoders.results import DepthResult, PanopticResult, Result, Segment
from serving.answers import parse_label_sets, parse_results
from serving.bundles import Bundle
from serving.http_gateway import create_app
from serving.render import DEPTH_SCALE_M, overlay_png, prediction_json, result_png
from serving.service import SegmentationService
from serving.types import Prediction, Timing

HEIGHT, WIDTH = 40, 60


def answer_of(results: dict[str, Result], image_size: tuple[int, int] = (HEIGHT, WIDTH), masks: Any = "rle") -> Any:
    """The answer that a client receives."""
    prediction = Prediction(image_size, (HEIGHT, WIDTH), results, {}, Timing())
    return json.loads(json.dumps(prediction_json(prediction, request_id="r1", bundle="tiny", masks=masks)))


def panoptic(segment_map: NDArray[np.int32]) -> PanopticResult:
    """A result whose segments say of themselves what their map says."""
    segments = []
    for segment_id in range(1, int(segment_map.max()) + 1):
        rows, columns = np.nonzero(segment_map == segment_id)
        box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1) if rows.size else (0, 0, 0, 0)
        x, y, width, height = (int(value) for value in box)
        label_id = segment_id % 5
        segments.append(
            Segment(
                segment_id,
                label_id,
                f"label {label_id}",
                label_id < 3,
                1 / segment_id,
                rows.size,
                (x, y, width, height),
            )
        )
    return PanopticResult(segment_map, tuple(segments))


def two_segments() -> PanopticResult:
    """A ring (1), the ground around it (2) and inside it; the right ten columns are void."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    radius = np.hypot(rows - 20, columns - 25)
    segment_map = np.full((HEIGHT, WIDTH), 2, dtype=np.int32)
    segment_map[(radius > 6) & (radius < 14)] = 1
    segment_map[:, 50:] = 0
    return panoptic(segment_map)


def many_segments() -> PanopticResult:
    """More segments than one byte counts, in no order of place."""
    ids = np.random.default_rng(0).permutation(HEIGHT * WIDTH // 4).astype(np.int32)
    return panoptic(np.repeat(ids.reshape(HEIGHT, WIDTH // 4), 4, axis=1))


def assert_same(parsed: Result, result: Result) -> None:
    if isinstance(result, PanopticResult):
        assert isinstance(parsed, PanopticResult)
        assert parsed.segments == result.segments
        assert parsed.segment_map.dtype == result.segment_map.dtype == np.int32
        np.testing.assert_array_equal(parsed.segment_map, result.segment_map)
    else:
        assert isinstance(parsed, DepthResult)
        assert parsed.depth_m.dtype == result.depth_m.dtype == np.float32
        np.testing.assert_allclose(parsed.depth_m, result.depth_m, rtol=1e-6, atol=DEPTH_SCALE_M / 2)


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(two_segments(), id="two segments and void"),
        pytest.param(many_segments(), id="many segments"),
        pytest.param(panoptic(np.ones((HEIGHT, WIDTH), np.int32)), id="one segment over all"),
        pytest.param(panoptic(np.zeros((HEIGHT, WIDTH), np.int32)), id="no segment"),
        pytest.param(panoptic(np.full((HEIGHT, WIDTH), 2, np.int32)), id="a segment without a pixel"),
    ],
)
def test_a_panoptic_result_is_read_back_as_it_was(result: PanopticResult) -> None:
    parsed = parse_results(answer_of({"panoptic": result}))
    assert parsed.keys() == {"panoptic"}
    assert_same(parsed["panoptic"], result)


def test_a_result_that_is_smaller_than_the_picture_keeps_its_size() -> None:
    result = two_segments()
    assert_same(parse_results(answer_of({"panoptic": result}, image_size=(80, 120)))["panoptic"], result)


def test_depth_is_read_back_to_half_a_millimetre() -> None:
    depth_m = np.random.default_rng(0).uniform(0.001, 65, (HEIGHT, WIDTH)).astype(np.float32)
    assert_same(parse_results(answer_of({"depth": DepthResult(depth_m)}))["depth"], DepthResult(depth_m))


def test_all_tasks_of_an_answer_are_read() -> None:
    results = {"a": two_segments(), "b": DepthResult(np.ones((HEIGHT, WIDTH), np.float32)), "c": two_segments()}
    parsed = parse_results(answer_of(results))
    assert list(parsed) == ["a", "b", "c"]
    for task, result in results.items():
        assert_same(parsed[task], result)


def test_an_answer_without_results_has_none() -> None:
    assert parse_results(answer_of({})) == {}


def test_what_is_read_back_is_drawn_as_what_was_sent(label_set: LabelSet, draw_picture: Callable[..., Any]) -> None:
    rows = np.repeat(np.linspace(1, 9, WIDTH, dtype=np.float32)[None], HEIGHT, axis=0)
    millimetres = DepthResult((np.rint(rows * 1000) * DEPTH_SCALE_M).astype(np.float32))
    picture = draw_picture(80, 120)
    for result in (two_segments(), millimetres):
        parsed = parse_results(answer_of({"task": result}))["task"]
        assert result_png(parsed) == result_png(result)
        assert overlay_png(parsed, picture, label_set) == overlay_png(result, picture, label_set)


def test_a_result_of_an_unknown_kind_is_told_with_its_task() -> None:
    answer = {"image": {"height": 4, "width": 4}, "results": {"flow": {"vectors": [], "unit": "px"}}}
    with pytest.raises(ValueError, match=r"task 'flow' is of no known kind; its fields: vectors, unit"):
        parse_results(answer)


def test_label_sets_are_read_from_what_the_server_tells_of_its_tasks(
    make_service: Callable[..., SegmentationService], make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle()
    told = TestClient(create_app(make_service(bundle))).get("/tasks").json()
    parsed = parse_label_sets(told)
    assert parsed.keys() == bundle.label_sets.keys() == {"panoptic"}  # depth has none
    assert parsed["panoptic"].labels == bundle.label_sets["panoptic"].labels
    assert parsed["panoptic"].stuff_ids == bundle.label_sets["panoptic"].stuff_ids
