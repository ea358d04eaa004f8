"""Top-1 and top-5 accuracy, and what classes are taken for."""

from __future__ import annotations

import numpy as np
import pytest

from decoders.labels import LabelSet
from decoders.training.evaluation.classification_accuracy import ClassificationAccuracy


@pytest.fixture
def measure(label_set: LabelSet) -> ClassificationAccuracy:
    made = ClassificationAccuracy(label_set)
    made.add([0, 1, 2], 0)
    made.add([1, 0, 2], 0)
    made.add([1, 2, 3], 0)
    made.add([4, 3], 4)
    return made


def test_a_class_counts_if_it_is_first_or_among_the_first_five(measure: ClassificationAccuracy) -> None:
    assert measure.figures(np.ones(4, dtype=np.int64)) == {"top1": 50, "top5": 75}


def test_pictures_are_weighed_by_how_often_they_count(measure: ClassificationAccuracy) -> None:
    assert measure.figures(np.array([3, 1, 0, 0])) == {"top1": 75, "top5": 100}


def test_every_class_is_told_with_what_it_is_taken_for(measure: ClassificationAccuracy) -> None:
    assert measure.per_class() == {
        "cat": {"top1": pytest.approx(100 / 3), "pictures": 3, "taken_for": "cup (2)"},
        "road": {"top1": 100, "pictures": 1, "taken_for": ""},
    }


def test_a_class_beyond_the_fifth_place_is_missed(label_set: LabelSet) -> None:
    made = ClassificationAccuracy(label_set)
    made.add([0, 1, 2, 3, 4, 5], 5)
    assert made.figures(np.ones(1, dtype=np.int64))["top5"] == 0
