"""Segments of one picture pasted into another: picture and truth stay in step."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from decoders.labels import Label, LabelSet
from decoders.training.data.copy_paste import with_pasted
from decoders.training.data.samples import PanopticSample, Segments

COLORS = np.array([(0, 0, 0), (250, 20, 20), (20, 250, 20), (20, 20, 250)], np.uint8)
"""Of unlabelled pixels, and of each label below."""
LABELS = LabelSet(
    "drawn",
    tuple(
        Label(i, name, is_thing, (0, 0, 0))
        for i, (name, is_thing) in enumerate([("ball", True), ("grass", False), ("sky", False)])
    ),
)
BALL, GRASS, SKY = range(3)
NUMBER = 12


def drawn(name: str, size: tuple[int, int], labels: list[int], crowds: frozenset[int] = frozenset()) -> PanopticSample:
    """Upright stripes, one for each label, the last third of the picture unlabelled; colours tell labels."""
    width, height = size
    segment_map = np.zeros((height, width), np.int32)
    for i, columns in enumerate(np.array_split(np.arange(width * 2 // 3), len(labels))):
        segment_map[:, columns] = i + 1
    classes = np.array([0, *(label + 1 for label in labels)])
    image = Image.fromarray(COLORS[classes[segment_map]])
    truth = Segments(segment_map, {i + 1: label for i, label in enumerate(labels)}, crowds)
    return PanopticSample(name, image.copy, lambda: truth)


@pytest.fixture
def samples() -> list[PanopticSample]:
    return [
        drawn("a", (60, 40), [SKY, BALL, GRASS]),
        drawn("b", (48, 64), [BALL, BALL, SKY], crowds=frozenset({2})),
    ]


def test_the_pictures_come_first_and_then_their_pasted_forms(samples: list[PanopticSample]) -> None:
    made = with_pasted(samples, LABELS, 2, seed=0)
    assert made[:2] == tuple(samples)
    assert len({sample.name for sample in made}) == len(made) == 6
    assert [sample.read_image().size for sample in made[2:]] == [(60, 40), (48, 64)] * 2


@pytest.mark.parametrize("seed", range(3))
def test_every_pixel_keeps_the_class_that_it_shows(samples: list[PanopticSample], seed: int) -> None:
    for sample in with_pasted(samples, LABELS, NUMBER, seed)[2:]:
        segment_map, labels, _ = sample.read_segments()
        classes = np.zeros(max(labels) + 1, int)
        classes[list(labels)] = [label + 1 for label in labels.values()]
        told = COLORS[classes[segment_map]].astype(int)
        wrong = (np.abs(told - np.asarray(sample.read_image()).astype(int)) > 130).any(axis=2)
        assert wrong.mean() < 0.04  # edges are blurred where the donor was scaled


def test_something_is_pasted_and_it_differs_from_form_to_form(samples: list[PanopticSample]) -> None:
    forms = [np.asarray(sample.read_image()) for sample in with_pasted(samples, LABELS, NUMBER, seed=0)[2::2]]
    changed = [(form != np.asarray(samples[0].read_image())).any() for form in forms]
    assert sum(changed) >= NUMBER - 2  # a donor may lie with its unlabelled part on the host
    assert len({form.tobytes() for form in forms}) >= NUMBER - 2


def test_each_stuff_is_one_segment_and_things_are_their_own(samples: list[PanopticSample]) -> None:
    balls = set()
    for sample in with_pasted(samples, LABELS, NUMBER, seed=1)[2:]:
        labels = list(sample.read_segments().labels.values())
        assert labels.count(SKY) == 1
        assert labels.count(GRASS) <= 1
        balls.add(labels.count(BALL))
    assert max(balls) > 2


def test_a_crowd_stays_one_where_it_is_pasted(samples: list[PanopticSample]) -> None:
    pasted = [sample.read_segments() for sample in with_pasted(samples, LABELS, NUMBER, seed=1)[2::2]]
    crowds = [segments for segments in pasted if segments.crowd_ids]
    assert crowds
    assert all(segments.labels[i] == BALL for segments in crowds for i in segments.crowd_ids)


def test_a_pasted_form_is_the_same_each_time_and_another_with_another_seed(samples: list[PanopticSample]) -> None:
    def digests(seed: int) -> list[bytes]:
        return [sample.digest() for sample in with_pasted(samples, LABELS, 4, seed)[2:]]

    assert digests(0) == digests(0) != digests(1)
