"""Scorers: results and truth of each kind come to their measures, and the worst pictures are found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from decoders.labels import LabelSet
from decoders.masks import encode
from decoders.results import (
    ClassificationResult,
    ClassScore,
    DepthResult,
    InstanceResult,
    PanopticResult,
    Segment,
    SemanticResult,
)
from decoders.training.data.samples import (
    ClassSample,
    DepthSample,
    InstanceMask,
    InstanceSample,
    PanopticSample,
    Segments,
    SemanticSample,
)
from decoders.training.evaluation.scoring import Scorer, clip_scorer, picture_scorer
from decoders.training.evaluation.truth_result import truth_result

MAP = np.array([[1, 1, 2, 2]], dtype=np.int32)


def photo() -> Image.Image:
    return Image.new("RGB", (4, 1))


def segment(segment_id: int, label_id: int, track_id: int | None = None, score: float = 0.9) -> Segment:
    return Segment(segment_id, label_id, f"class {label_id}", label_id < 3, score, 2, (0, 0, 2, 1), track_id)


def panoptic_sample(segment_map: np.ndarray = MAP * 100, unlisted: bool = False) -> PanopticSample:
    labels = {100: 0} if unlisted else {100: 0, 200: 3}
    return PanopticSample("a", photo, lambda: Segments(segment_map, labels, frozenset()))


def figures(scorer: Scorer) -> dict[str, float]:
    return scorer.figures(np.ones(len(scorer), dtype=np.int64))


def test_panoptic_results_are_matched_with_the_segments_of_their_own_sample(label_set: LabelSet) -> None:
    scorer = picture_scorer("panoptic", label_set)
    right = PanopticResult(MAP, (segment(1, 0), segment(2, 3)))
    scorer.add([right], [panoptic_sample()])
    scorer.add([PanopticResult(np.where(MAP == 2, 0, MAP), (segment(1, 0),))], [panoptic_sample()])
    assert figures(scorer)["PQ_things"] == 100
    assert figures(scorer)["PQ_stuff"] == pytest.approx(100 / 1.5)


def test_segments_that_the_truth_does_not_list_are_unlabelled(label_set: LabelSet) -> None:
    scorer = picture_scorer("panoptic", label_set)
    scorer.add([PanopticResult(MAP, (segment(1, 0), segment(2, 3)))], [panoptic_sample(unlisted=True)])
    assert figures(scorer)["PQ"] == 100  # the sky lies on unlabelled pixels and is pardoned


def test_semantic_results_are_compared_class_by_class(label_set: LabelSet) -> None:
    scorer = picture_scorer("semantic", label_set)
    truth = np.array([[0, 0, 3, -1]], dtype=np.int32)
    result = SemanticResult(np.array([[1, 1, 1, 4]], dtype=np.int32), ())  # label_id + 1
    scorer.add([result], [SemanticSample("a", photo, lambda: truth)])
    assert figures(scorer) == {"mIoU": pytest.approx(100 * (2 / 3 + 0) / 2), "pixel_accuracy": pytest.approx(200 / 3)}


def test_instances_are_compared_by_their_masks_and_true_objects_without_pixels_are_none(label_set: LabelSet) -> None:
    scorer = picture_scorer("instance", label_set)
    mask = encode(MAP == 1)
    objects = [InstanceMask(0, mask, False), InstanceMask(0, encode(MAP == 7), False)]
    scorer.add([InstanceResult((1, 4), (segment(1, 0),), (mask,))], [InstanceSample("a", photo, lambda: objects)])
    assert figures(scorer)["AP"] == pytest.approx(100)


def test_classes_are_compared_by_rank(label_set: LabelSet) -> None:
    scorer = picture_scorer("classification", label_set)
    result = ClassificationResult((ClassScore(2, "car", 0.6), ClassScore(0, "cat", 0.4)))
    scorer.add([result], [ClassSample("a", photo, 0)])
    assert figures(scorer) == {"top1": 0, "top5": 100}


@pytest.mark.parametrize(("median_scaled", "expected"), [(False, 1.0), (True, 0.0)])
def test_depth_is_compared_in_metres_or_by_shape(median_scaled: bool, expected: float) -> None:
    scorer = picture_scorer("depth", None, median_scaled=median_scaled)
    truth = np.array([[1.0, 2.0, 4.0, np.nan]], dtype=np.float32)
    scorer.add([DepthResult(np.nan_to_num(2 * truth, nan=1))], [DepthSample("a", photo, lambda: truth)])
    assert figures(scorer)["AbsRel"] == pytest.approx(expected)


def clip_results(tracks: Sequence[tuple[int, int]]) -> list[PanopticResult]:
    """Frames with two things, of which each pair are the identities."""
    return [PanopticResult(MAP, (segment(1, 0, first), segment(2, 0, second))) for first, second in tracks]


@pytest.mark.parametrize(("tracks", "vpq2"), [([(1, 2), (1, 2)], 100), ([(1, 2), (2, 1)], 0)])
def test_panoptic_clips_are_matched_by_identity(
    tracks: list[tuple[int, int]], vpq2: float, label_set: LabelSet
) -> None:
    frame = PanopticSample("a", photo, lambda: Segments(MAP * 100, {100: 0, 200: 0}, frozenset()))
    scorer = clip_scorer("panoptic", label_set)
    scorer.add(clip_results(tracks), [frame, frame])
    assert (figures(scorer)["VPQ1"], figures(scorer)["VPQ2"]) == (100, vpq2)
    assert {"STQ", "AQ", "SQ"} <= figures(scorer).keys()


def test_the_same_identity_under_two_classes_is_two_segments(label_set: LabelSet) -> None:
    frame = PanopticSample("a", photo, lambda: Segments(np.full_like(MAP, 100), {100: 0}, frozenset()))
    results = [PanopticResult(np.ones_like(MAP), (segment(1, label, 5),)) for label in (0, 1)]
    scorer = clip_scorer("panoptic", label_set)
    scorer.add(results, [frame, frame])
    assert figures(scorer)["SQ"] == pytest.approx(100 * (0.5 + 0) / 2)  # half of the cat's pixels are called cup


def instance_frame(*parts: tuple[int, int, float, int]) -> InstanceResult:
    """Instances given as (track, label, score, segment of `MAP`)."""
    items = tuple(segment(n, label, track, score) for n, (track, label, score, _) in enumerate(parts, 1))
    return InstanceResult((1, 4), items, tuple(encode(part == MAP) for _, _, _, part in parts))


def test_instance_clips_are_matched_as_tubes(label_set: LabelSet) -> None:
    objects = [InstanceMask(0, encode(MAP == 1), False), InstanceMask(0, encode(MAP == 2), False)]
    frame = InstanceSample("a", photo, lambda: objects)
    kept, swapped = clip_scorer("instance", label_set), clip_scorer("instance", label_set)
    ahead = instance_frame((1, 0, 0.9, 1), (2, 0, 0.8, 2))
    kept.add([ahead, ahead], [frame, frame])
    swapped.add([ahead, instance_frame((2, 0, 0.9, 1), (1, 0, 0.8, 2))], [frame, frame])
    assert figures(kept)["AP"] == pytest.approx(100)
    assert figures(swapped)["AP50"] == 0  # every tube has an IoU of 1/3


def test_a_track_has_the_class_of_most_of_its_scores_and_may_pause(label_set: LabelSet) -> None:
    mask, nothing = encode(MAP == 1), encode(MAP == 7)
    frames = [
        InstanceSample("a", photo, lambda shown=shown: [InstanceMask(0, shown, False)])
        for shown in (mask, nothing, mask)
    ]
    results = [instance_frame((1, 0, 0.9, 1)), instance_frame(), instance_frame((1, 1, 0.5, 1))]
    scorer = clip_scorer("instance", label_set)
    scorer.add(results, frames)
    assert figures(scorer)["AP"] == pytest.approx(100)


def test_frames_of_a_clip_may_differ_in_size(label_set: LabelSet) -> None:
    scorer = clip_scorer("semantic", label_set)
    truths = [np.zeros((2, 3), np.int32), np.zeros((4, 5), np.int32)]
    frames = [SemanticSample("a", photo, lambda truth=truth: truth) for truth in truths]
    scorer.add([SemanticResult(truth + 1, ()) for truth in truths], frames)
    assert figures(scorer)["mIoU"] == 100


def test_the_worst_pictures_come_first_and_those_without_a_figure_not_at_all(label_set: LabelSet) -> None:
    scorer = picture_scorer("semantic", label_set)
    truth = np.zeros((1, 4), np.int32)
    for right in (3, 1, 4):
        predicted = np.array([[1] * right + [2] * (4 - right)], np.int32)
        scorer.add([SemanticResult(predicted, ())], [SemanticSample("a", photo, lambda: truth)])
    scorer.add([SemanticResult(truth + 1, ())], [SemanticSample("a", photo, lambda: truth - 1)])
    assert scorer.worst(5) == [1, 0, 2]
    assert scorer.worst(1) == [1]


def test_of_depth_the_largest_errors_are_the_worst() -> None:
    scorer = picture_scorer("depth", None)
    truth = np.ones((1, 4), np.float32)
    for factor in (1.1, 3, 2):
        scorer.add([DepthResult(truth * np.float32(factor))], [DepthSample("a", photo, lambda: truth)])
    assert scorer.worst(2) == [1, 2]


def test_a_result_of_another_kind_is_refused_by_name(label_set: LabelSet) -> None:
    depth = DepthResult(np.ones((1, 4), np.float32))
    with pytest.raises(TypeError, match="needs a PanopticResult, not a DepthResult"):
        picture_scorer("panoptic", label_set).add([depth], [panoptic_sample()])
    with pytest.raises(TypeError, match="needs a DepthSample, not a PanopticSample"):
        picture_scorer("depth", None).add([depth], [panoptic_sample()])


@pytest.mark.parametrize("make", [picture_scorer, clip_scorer])
def test_results_without_a_score_are_refused(make: object, label_set: LabelSet) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="of kind 'embedding' have no score"):
        make("embedding", label_set)


def test_truth_is_drawn_as_a_result_with_small_ids(label_set: LabelSet) -> None:
    large = PanopticSample("a", photo, lambda: Segments(MAP * 5_000_000, {5_000_000: 0, 10_000_000: 3}, frozenset()))
    result = truth_result(large, label_set)
    assert isinstance(result, PanopticResult)
    assert result.segment_map.max() == 2
    assert [(each.label, each.area) for each in result.segments] == [("cat", 2), ("sky", 2)]


def test_truth_of_every_kind_scores_full_marks_as_a_result(label_set: LabelSet) -> None:
    masks = [InstanceMask(1, encode(MAP == 2), False)]
    samples = {
        "panoptic": panoptic_sample(),
        "semantic": SemanticSample("a", photo, lambda: np.array([[0, 3, 3, 1]], np.int32)),
        "instance": InstanceSample("a", photo, lambda: masks),
        "depth": DepthSample("a", photo, lambda: np.ones((1, 4), np.float32)),
    }
    for kind, sample in samples.items():
        scorer = picture_scorer(kind, None if kind == "depth" else label_set)
        result = truth_result(sample, label_set)
        assert result is not None
        scorer.add([result], [sample])
        assert figures(scorer)[scorer.main] == pytest.approx(100 if scorer.larger_is_better else 0)
