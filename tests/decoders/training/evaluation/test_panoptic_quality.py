"""Panoptic quality: against panopticapi's recorded figures, and on cases whose value is known by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from decoders.labels import LabelSet
from decoders.training.evaluation.measure import Counts
from decoders.training.evaluation.panoptic_quality import PanopticQuality


@pytest.fixture
def quality(label_set: LabelSet) -> PanopticQuality:
    return PanopticQuality(label_set)


def row(text: str) -> np.ndarray:
    """A one-row map from digits."""
    return np.array([[int(digit) for digit in text]], dtype=np.int32)


def figures(quality: PanopticQuality) -> dict[str, float]:
    return quality.figures(np.ones(len(quality), dtype=np.int64))


def add_case(quality: PanopticQuality, case: dict[str, Any]) -> None:
    labels = ({int(i): label for i, label in case[f"{side}_labels"].items()} for side in ("predicted", "true"))
    predicted, true = (np.array(case[side][0], dtype=np.int32) for side in ("predicted", "true"))
    predicted_labels, true_labels = labels
    quality.add(predicted, predicted_labels, true, true_labels, frozenset(case["crowd_ids"]))


def test_figures_are_those_of_panopticapi(quality: PanopticQuality, read_case: Callable[[str], Any]) -> None:
    recorded = read_case("panopticapi")
    for case in recorded["pictures"]:
        add_case(quality, case)
    assert sum(bool(case["crowd_ids"]) for case in recorded["pictures"]) > 3
    assert figures(quality) == pytest.approx(recorded["figures"])


def test_figures_by_class_are_those_of_panopticapi(
    quality: PanopticQuality, label_set: LabelSet, read_case: Callable[[str], Any]
) -> None:
    recorded = read_case("panopticapi")
    for case in recorded["pictures"]:
        add_case(quality, case)
    for label_id, (iou_sum, hits, mistakes, misses) in recorded["per_class"].items():
        told = quality.per_class()[label_set[int(label_id)].name]
        assert (told["true_positives"], told["false_positives"], told["false_negatives"]) == (hits, mistakes, misses)
        assert told["PQ"] == pytest.approx(100 * iou_sum / (hits + 0.5 * mistakes + 0.5 * misses))


def test_a_picture_that_counts_twice_is_as_if_it_were_there_twice(
    label_set: LabelSet, read_case: Callable[[str], Any], once: Callable[[int], Counts]
) -> None:
    pictures = read_case("panopticapi")["pictures"]
    short, long = PanopticQuality(label_set), PanopticQuality(label_set)
    for case in pictures[:3]:
        add_case(short, case)
    for number in (0, 2, 2):
        add_case(long, pictures[number])
    assert short.figures(np.array([1, 0, 2])) == pytest.approx(long.figures(once(3)))


def test_a_perfect_prediction_scores_one_hundred(quality: PanopticQuality) -> None:
    quality.add(row("11223300"), {1: 0, 2: 3, 3: 0}, row("55667700"), {5: 0, 6: 3, 7: 0})
    assert set(figures(quality).values()) == {100}


def test_nothing_seen_and_nothing_there_is_undefined(quality: PanopticQuality) -> None:
    quality.add(row("0000"), {}, row("0000"), {})
    assert np.isnan(list(figures(quality).values())).all()
    assert quality.per_class() == {}


def test_a_known_mixture_of_hits_and_misses(quality: PanopticQuality) -> None:
    # Label 0: one hit of IoU 3/4 and one missed truth. Label 3: one wrong prediction.
    quality.add(row("11100022"), {1: 0, 2: 3}, row("55556666"), {5: 0, 6: 0})
    found = figures(quality)
    assert found["PQ"] == pytest.approx(100 * (0.75 / 1.5) / 2)
    assert found["SQ"] == pytest.approx(37.5)
    assert found["RQ"] == pytest.approx(100 * (1 / 1.5) / 2)
    assert (found["PQ_things"], found["PQ_stuff"]) == pytest.approx((50, 0))


@pytest.mark.parametrize(("predicted", "matched"), [("1100", False), ("1110", True)])
def test_a_pair_matches_only_above_half_an_iou(quality: PanopticQuality, predicted: str, matched: bool) -> None:
    quality.add(row(predicted), {1: 0}, row("5555"), {5: 0})
    told = quality.per_class()["cat"]
    assert told["true_positives"] == matched
    assert told["false_positives"] == told["false_negatives"] == (not matched)


def test_the_right_place_under_the_wrong_label_is_a_miss_and_a_mistake(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 1}, row("5555"), {5: 0})
    assert figures(quality)["PQ"] == 0
    assert (quality.per_class()["cup"]["false_positives"], quality.per_class()["cat"]["false_negatives"]) == (1, 1)


@pytest.mark.parametrize(("on_crowd", "pardoned"), [("1110", True), ("1100", False)])
def test_a_prediction_mostly_on_a_crowd_of_its_label_is_pardoned(
    quality: PanopticQuality, on_crowd: str, pardoned: bool
) -> None:
    truth = row(on_crowd.replace("1", "9").replace("0", "5"))
    quality.add(row("1111"), {1: 0}, truth, {9: 0, 5: 1}, frozenset({9}))
    assert ("cat" in quality.per_class()) == (not pardoned)


def test_a_crowd_of_another_label_pardons_nothing(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 0}, row("9999"), {9: 1}, frozenset({9}))
    assert quality.per_class()["cat"]["false_positives"] == 1


def test_a_crowd_is_neither_found_nor_missed(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 0}, row("9999"), {9: 0}, frozenset({9}))
    quality.add(row("0000"), {}, row("9999"), {9: 0}, frozenset({9}))
    assert quality.per_class() == {}


@pytest.mark.parametrize(("truth", "pardoned"), [("0005", True), ("0055", False)])
def test_a_prediction_mostly_on_unlabelled_pixels_is_pardoned(
    quality: PanopticQuality, truth: str, pardoned: bool
) -> None:
    quality.add(row("1111"), {1: 0}, row(truth), {5: 1})
    assert ("cat" in quality.per_class()) == (not pardoned)


def test_unlabelled_pixels_do_not_count_against_the_iou(quality: PanopticQuality) -> None:
    quality.add(row("111111"), {1: 0}, row("555000"), {5: 0})
    assert figures(quality)["SQ"] == 100


def test_a_true_segment_without_a_pixel_is_not_missed(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 0}, row("5555"), {5: 0, 6: 0})
    assert figures(quality)["PQ"] == 100


def test_labels_that_never_occur_do_not_lower_the_mean(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 4}, row("5555"), {5: 4})
    assert figures(quality)["PQ"] == 100


def test_pictures_are_accumulated_before_the_quotient(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 0}, row("5555"), {5: 0})
    quality.add(row("0000"), {}, row("5555"), {5: 0})
    assert figures(quality)["PQ"] == pytest.approx(100 / 1.5)


def test_large_segment_ids_do_not_collide(quality: PanopticQuality) -> None:
    large = 256**3 - 1
    truth = np.array([[large, large, large - 1, large - 1]], dtype=np.int32)
    quality.add(row("1122"), {1: 0, 2: 0}, truth, {large: 0, large - 1: 0})
    assert figures(quality)["PQ"] == 100
