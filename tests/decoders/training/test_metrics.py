"""Figures of merit on cases whose value is known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from decoders.labels import LabelSet
from decoders.training.metrics import PanopticQuality, depth_errors


@pytest.fixture
def quality(label_set: LabelSet) -> PanopticQuality:
    return PanopticQuality(label_set)


def row(text: str) -> np.ndarray:
    """A one-row map from digits."""
    return np.array([[int(digit) for digit in text]], dtype=np.int32)


def test_a_perfect_prediction_scores_one_hundred(quality: PanopticQuality) -> None:
    quality.add(row("11223300"), {1: 0, 2: 3, 3: 0}, row("55667700"), {5: 0, 6: 3, 7: 0})
    assert quality.summary() == {"PQ": 100, "SQ": 100, "RQ": 100, "PQ_things": 100, "PQ_stuff": 100}


def test_nothing_seen_and_nothing_there_scores_zero(quality: PanopticQuality) -> None:
    quality.add(row("0000"), {}, row("0000"), {})
    assert quality.summary() == {"PQ": 0, "SQ": 0, "RQ": 0, "PQ_things": 0, "PQ_stuff": 0}


def test_a_known_mixture_of_hits_and_misses(quality: PanopticQuality) -> None:
    # Label 0: one hit of IoU 3/4 and one missed truth. Label 3: one wrong prediction.
    quality.add(row("11100022"), {1: 0, 2: 3}, row("55556666"), {5: 0, 6: 0})
    assert quality.summary() == pytest.approx(
        {"PQ": 100 * (0.75 / 1.5) / 2, "SQ": 37.5, "RQ": 100 * (1 / 1.5) / 2, "PQ_things": 50, "PQ_stuff": 0}
    )


@pytest.mark.parametrize(("predicted", "matched"), [("1100", False), ("1110", True)])
def test_a_pair_matches_only_above_half_an_iou(quality: PanopticQuality, predicted: str, matched: bool) -> None:
    quality.add(row(predicted), {1: 0}, row("5555"), {5: 0})
    assert quality.true_positives[0] == matched
    assert quality.false_positives[0] == quality.false_negatives[0] == (not matched)


def test_the_right_place_under_the_wrong_label_is_a_miss_and_a_mistake(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 1}, row("5555"), {5: 0})
    assert quality.summary()["PQ"] == 0
    assert (quality.false_positives[1], quality.false_negatives[0]) == (1, 1)


@pytest.mark.parametrize(("on_crowd", "pardoned"), [("1110", True), ("1100", False)])
def test_a_prediction_mostly_on_a_crowd_of_its_label_is_pardoned(
    quality: PanopticQuality, on_crowd: str, pardoned: bool
) -> None:
    truth = row(on_crowd.replace("1", "9").replace("0", "5"))
    quality.add(row("1111"), {1: 0}, truth, {9: 0, 5: 1}, frozenset({9}))
    assert quality.false_positives[0] == (not pardoned)
    assert quality.true_positives[0] == 0


def test_a_crowd_of_another_label_pardons_nothing(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 0}, row("9999"), {9: 1}, frozenset({9}))
    assert quality.false_positives[0] == 1


def test_a_crowd_is_neither_found_nor_missed(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 0}, row("9999"), {9: 0}, frozenset({9}))
    quality.add(row("0000"), {}, row("9999"), {9: 0}, frozenset({9}))
    assert quality.true_positives.sum() == quality.false_negatives.sum() == quality.false_positives.sum() == 0


@pytest.mark.parametrize(("truth", "pardoned"), [("0005", True), ("0055", False)])
def test_a_prediction_mostly_on_unlabelled_pixels_is_pardoned(
    quality: PanopticQuality, truth: str, pardoned: bool
) -> None:
    quality.add(row("1111"), {1: 0}, row(truth), {5: 1})
    assert quality.false_positives[0] == (not pardoned)


def test_unlabelled_pixels_do_not_count_against_the_iou(quality: PanopticQuality) -> None:
    quality.add(row("111111"), {1: 0}, row("555000"), {5: 0})
    assert quality.summary()["SQ"] == 100


def test_labels_that_never_occur_do_not_lower_the_mean(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 4}, row("5555"), {5: 4})
    assert quality.summary()["PQ"] == 100


def test_pictures_are_accumulated_before_the_quotient(quality: PanopticQuality) -> None:
    quality.add(row("1111"), {1: 0}, row("5555"), {5: 0})
    quality.add(row("0000"), {}, row("5555"), {5: 0})
    assert quality.summary()["PQ"] == pytest.approx(100 / 1.5)


def test_large_segment_ids_do_not_collide(quality: PanopticQuality) -> None:
    large = 256**3 - 1
    truth = np.array([[large, large, large - 1, large - 1]], dtype=np.int32)
    quality.add(row("1122"), {1: 0, 2: 0}, truth, {large: 0, large - 1: 0})
    assert quality.summary()["PQ"] == 100


def test_depth_errors_of_a_perfect_prediction() -> None:
    depth = np.array([[1.0, 2.0, np.nan]], dtype=np.float32)
    assert depth_errors(np.nan_to_num(depth, nan=7), depth) == {"AbsRel": 0, "RMSE_m": 0, "delta1": 1}


def test_depth_errors_on_a_known_case() -> None:
    true = np.array([[1.0, 2.0, 4.0, np.nan]], dtype=np.float32)
    predicted = np.array([[1.2, 1.0, 4.0, 9.0]], dtype=np.float32)
    errors = depth_errors(predicted, true)
    assert errors["AbsRel"] == pytest.approx((0.2 + 0.5 + 0) / 3)
    assert errors["RMSE_m"] == pytest.approx(((0.04 + 1 + 0) / 3) ** 0.5)
    assert errors["delta1"] == pytest.approx(2 / 3)
