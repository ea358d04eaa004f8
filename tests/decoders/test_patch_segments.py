"""Segments of a map of classes: pieces of things, whole stuff, specks and doubts left void."""

from __future__ import annotations

import numpy as np
import pytest

from decoders.labels import LabelSet
from decoders.patch_segments import segments_of

CLASSES = np.array(  # two cats (0), one of them a speck; sky (3) in two parts; road (4)
    [
        [0, 0, 3, 3, 0],
        [0, 0, 4, 4, 4],
        [3, 4, 4, 4, 4],
    ],
    dtype=np.int32,
)


def test_stuff_is_one_segment_and_every_piece_of_a_thing_is_one_the_largest_first(label_set: LabelSet) -> None:
    probability = np.full(CLASSES.shape, 0.5, dtype=np.float32)
    probability[:2, :2] = [[0.6, 0.7], [0.8, 0.9]]
    segment_map, segments = segments_of(CLASSES, probability, label_set, min_area=0, score_threshold=0)
    assert [(each.segment_id, each.label_id) for each in segments] == [(0, 4), (1, 0), (2, 3), (3, 0)]
    assert [each.score for each in segments] == pytest.approx([0.5, 0.75, 0.5, 0.5])
    assert np.array_equal(segment_map, [[1, 1, 2, 2, 3], [1, 1, 0, 0, 0], [2, 0, 0, 0, 0]])


def test_pieces_that_touch_at_a_corner_are_two_objects(label_set: LabelSet) -> None:
    classes = np.array([[0, 4], [4, 0]], dtype=np.int32)
    _, segments = segments_of(classes, np.ones((2, 2), np.float32), label_set, min_area=0, score_threshold=0)
    assert [each.label_id for each in segments] == [4, 0, 0]


def test_specks_of_things_become_void_and_stuff_of_any_size_stays(label_set: LabelSet) -> None:
    probability = np.ones(CLASSES.shape, dtype=np.float32)
    segment_map, segments = segments_of(CLASSES, probability, label_set, min_area=4, score_threshold=0)
    assert [each.label_id for each in segments] == [4, 0, 3]  # sky has 3 pixels, the cat that stays 4
    assert segment_map[0, 4] == -1
    assert (segment_map < 0).sum() == 1


def test_doubtful_segments_become_void(label_set: LabelSet) -> None:
    probability = np.where(CLASSES == 4, 0.3, 0.9).astype(np.float32)
    segment_map, segments = segments_of(CLASSES, probability, label_set, min_area=0, score_threshold=0.5)
    assert [each.label_id for each in segments] == [0, 3, 0]
    assert np.array_equal(segment_map < 0, CLASSES == 4)


def test_a_picture_may_have_no_segment_at_all(label_set: LabelSet) -> None:
    probability = np.zeros(CLASSES.shape, dtype=np.float32)
    segment_map, segments = segments_of(CLASSES, probability, label_set, min_area=0, score_threshold=0.5)
    assert segments == []
    assert (segment_map == -1).all()
