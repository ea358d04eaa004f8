"""Mean IoU and pixel accuracy, counted over all pictures."""

from __future__ import annotations

import numpy as np
import pytest

from decoders.labels import LabelSet
from decoders.training.evaluation.semantic_iou import SemanticIou

ONE = np.ones(1, dtype=np.int64)


def test_figures_are_those_of_the_definition(label_set: LabelSet) -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(-1, 4, (3, 20, 30)).astype(np.int32)  # class 4 never occurs
    predicted = np.where(rng.random(true.shape) < 0.6, true, rng.integers(-1, 4, true.shape)).astype(np.int32)
    measure = SemanticIou(label_set)
    for p, t in zip(predicted, true, strict=True):
        measure.add(p, t)
    known = true >= 0
    ious = []
    for label_id in range(4):
        p, t = (predicted == label_id) & known, true == label_id
        ious.append(100 * (p & t).sum() / (p | t).sum())
    figures = measure.figures(np.ones(3, dtype=np.int64))
    assert figures["mIoU"] == pytest.approx(np.mean(ious))
    assert figures["pixel_accuracy"] == pytest.approx(100 * (predicted == true)[known].mean())
    assert [entry["IoU"] for entry in measure.per_class().values()] == pytest.approx(ious)
    assert sum(entry["pixels"] for entry in measure.per_class().values()) == pytest.approx(100)


def test_pixels_without_truth_count_for_nothing(label_set: LabelSet) -> None:
    measure = SemanticIou(label_set)
    measure.add(np.array([[0, 1, 2]], np.int32), np.array([[0, -1, -1]], np.int32))
    assert measure.figures(ONE) == {"mIoU": 100, "pixel_accuracy": 100}


def test_pixels_left_void_are_wrong_but_a_mistake_of_no_class(label_set: LabelSet) -> None:
    measure = SemanticIou(label_set)
    measure.add(np.array([[0, -1]], np.int32), np.array([[0, 0]], np.int32))
    assert measure.figures(ONE) == {"mIoU": 50, "pixel_accuracy": 50}
    assert list(measure.per_class()) == ["cat"]


def test_pictures_are_weighed_by_how_often_they_count(label_set: LabelSet) -> None:
    measure = SemanticIou(label_set)
    measure.add(np.array([[0, 0]], np.int32), np.array([[0, 0]], np.int32))
    measure.add(np.array([[1, 1]], np.int32), np.array([[0, 0]], np.int32))
    assert measure.figures(np.array([3, 1]))["pixel_accuracy"] == 75
    assert measure.figures(np.array([3, 0]))["mIoU"] == 100


def test_nothing_labelled_is_undefined(label_set: LabelSet) -> None:
    measure = SemanticIou(label_set)
    measure.add(np.array([[0]], np.int32), np.array([[-1]], np.int32))
    assert np.isnan(list(measure.figures(ONE).values())).all()
