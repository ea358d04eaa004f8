"""From an answer back to results: what `serving.answers.render` wrote is read again without loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from decoders.labels import LabelSet
from decoders.masks import encode
from decoders.results import (
    ClassificationResult,
    ClassScore,
    DenseEmbeddingResult,
    DepthResult,
    EmbeddingResult,
    InstanceResult,
    PanopticResult,
    Result,
    Segment,
    SemanticResult,
)
from serving.answers.parse import parse_label_sets, parse_results
from serving.answers.render import DEPTH_SCALE_M, PICTURE_KINDS, kind_of, overlay_png, prediction_json, result_png
from serving.answers.schemas import SegmentAnswer
from serving.bundles.loading import Bundle
from serving.gateways.http_gateway import create_app
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


def semantic() -> SemanticResult:
    """Classes 0 and 6, void at the right."""
    segment_map = np.full((HEIGHT, WIDTH), 7, dtype=np.int32)
    segment_map[5:25, 10:30] = 1
    segment_map[:, 50:] = 0
    road = Segment(7, 6, "road", False, 0.7, 1600, (0, 0, 50, 40))
    return SemanticResult(segment_map, (road, Segment(1, 0, "cat", True, 0.9, 400, (10, 5, 20, 20))))


def instances(track_id: int | None = None) -> InstanceResult:
    """Fifty random masks, which overlap, and an empty one."""
    noise = np.random.default_rng(0).random((50, HEIGHT, WIDTH))
    masks = [encode(mask) for mask in [*(noise > np.linspace(0.1, 1, 50)[:, None, None]), noise[0] > 1]]
    segments = (
        Segment(rank, rank % 5, f"label {rank % 5}", True, 1 / rank, mask.area(), mask.bbox(), track_id)
        for rank, mask in enumerate(masks, 1)
    )
    return InstanceResult((HEIGHT, WIDTH), tuple(segments), tuple(masks))


def dense_embedding() -> DenseEmbeddingResult:
    """Numbers that float16 holds."""
    numbers = np.random.default_rng(0).standard_normal((3, 5, 7))
    return DenseEmbeddingResult(numbers.astype(np.float16).astype(np.float32))


ONE_OF_EACH: dict[str, Result] = {
    "panoptic": two_segments(),
    "semantic": semantic(),
    "instance": instances(),
    "depth": DepthResult(np.random.default_rng(0).uniform(0.001, 65, (HEIGHT, WIDTH)).astype(np.float32)),
    "classification": ClassificationResult((ClassScore(817, "sports car", 0.6789), ClassScore(0, "tench", 1e-9))),
    "embedding": EmbeddingResult(np.random.default_rng(0).standard_normal(384).astype(np.float32)),
    "dense_embedding": dense_embedding(),
}


def assert_same(parsed: Result, result: Result) -> None:
    assert type(parsed) is type(result)
    for name, value in vars(result).items():
        other = getattr(parsed, name)
        if isinstance(value, np.ndarray):
            assert other.dtype == value.dtype
            atol = DEPTH_SCALE_M / 2 if isinstance(result, DepthResult) else 0
            np.testing.assert_allclose(other, value, rtol=1e-6 if atol else 0, atol=atol)
        else:
            assert other == value


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


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_a_result_of_any_kind_is_read_back_as_it_was(kind: str) -> None:
    """Depth to half a millimetre, a dense embedding to half precision, all else to the last bit."""
    assert_same(parse_results(answer_of({"task": ONE_OF_EACH[kind]}))["task"], ONE_OF_EACH[kind])


def test_a_result_is_read_through_the_documented_model_as_well() -> None:
    documented = SegmentAnswer.model_validate(answer_of(ONE_OF_EACH)).model_dump()
    for kind, parsed in parse_results(documented).items():
        assert_same(parsed, ONE_OF_EACH[kind])


def test_all_tasks_of_an_answer_are_read() -> None:
    results = {"a": ONE_OF_EACH["panoptic"], "b": ONE_OF_EACH["instance"], "c": ONE_OF_EACH["panoptic"]}
    parsed = parse_results(answer_of(results))
    assert list(parsed) == ["a", "b", "c"]
    for task, result in results.items():
        assert_same(parsed[task], result)


def test_tracks_are_read_back() -> None:
    assert_same(parse_results(answer_of({"video": instances(track_id=12)}))["video"], instances(track_id=12))


@pytest.mark.parametrize(
    "nothing",
    [
        SemanticResult(np.zeros((HEIGHT, WIDTH), np.int32), ()),
        InstanceResult((HEIGHT, WIDTH), (), ()),
        ClassificationResult(()),
    ],
)
def test_a_result_that_holds_nothing_keeps_its_kind_and_size(nothing: Result) -> None:
    assert_same(parse_results(answer_of({"task": nothing}))["task"], nothing)


def test_dense_embeddings_lose_half_precision_and_no_more() -> None:
    vectors = np.random.default_rng(0).uniform(-9, 9, (4, 6, 32)).astype(np.float32)
    parsed = parse_results(answer_of({"dense": DenseEmbeddingResult(vectors)}))["dense"]
    assert isinstance(parsed, DenseEmbeddingResult)
    np.testing.assert_allclose(parsed.vectors, vectors, rtol=2**-11, atol=2**-25)


def test_instance_masks_stay_run_lengths_of_the_results_size() -> None:
    parsed = parse_results(answer_of({"i": instances()}, image_size=(80, 120)))["i"]
    assert isinstance(parsed, InstanceResult)
    assert parsed.image_size == (HEIGHT, WIDTH)
    assert parsed.masks == instances().masks


def test_an_answer_without_results_has_none() -> None:
    assert parse_results(answer_of({})) == {}


def test_what_is_read_back_is_drawn_as_what_was_sent(label_set: LabelSet, draw_picture: Callable[..., Any]) -> None:
    rows = np.repeat(np.linspace(1, 9, WIDTH, dtype=np.float32)[None], HEIGHT, axis=0)
    millimetres = DepthResult((np.rint(rows * 1000) * DEPTH_SCALE_M).astype(np.float32))
    picture = draw_picture(80, 120)
    for result in (two_segments(), instances(), millimetres):
        assert kind_of(result) in PICTURE_KINDS
        parsed = parse_results(answer_of({"task": result}))["task"]
        assert result_png(parsed) == result_png(result)
        assert overlay_png(parsed, picture, label_set) == overlay_png(result, picture, label_set)


def test_a_result_of_an_unknown_kind_is_told_with_its_task() -> None:
    answer = {"image": {"height": 4, "width": 4}, "results": {"move": {"kind": "flow", "vectors": [], "unit": "px"}}}
    with pytest.raises(ValueError, match=r"task 'move' is of unknown kind 'flow'; its fields: kind, vectors, unit"):
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
