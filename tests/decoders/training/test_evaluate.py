"""Scoring: every sample is predicted once, and the figures are those of the truth it belongs to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from decoders.labels import LabelSet
from decoders.results import DepthResult, PanopticResult, Result, Segment
from decoders.training.data import DepthSample, PanopticSample
from decoders.training.evaluate import score_depth, score_panoptic

MAP = np.array([[1, 1, 2, 2]], dtype=np.int32)


def predicting(results: list[Result], pictures: list[Image.Image]) -> Callable[[Image.Image], Result]:
    """Answers each known picture with the result of its place in the list."""
    return lambda image: next(result for result, known in zip(results, pictures, strict=True) if known is image)


@pytest.fixture
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (4, 1)) for _ in range(2)]


def test_panoptic_score_is_accumulated_over_samples(pictures: list[Image.Image], label_set: LabelSet) -> None:
    samples = [
        PanopticSample(str(i), image, MAP * 100, {100: 0, 200: 3}, frozenset()) for i, image in enumerate(pictures)
    ]
    segments = tuple(
        Segment(i, label, label_set[label].name, label_set[label].is_thing, 0.9, 2, (0, 0, 2, 1))
        for i, label in ((1, 0), (2, 3))
    )
    right = PanopticResult(MAP, segments)
    only_the_thing = PanopticResult(np.where(MAP == 2, 0, MAP), segments[:1])
    told: list[int] = []
    scores = score_panoptic(predicting([right, only_the_thing], pictures), samples, label_set, told.append)
    assert told == [1, 2]
    assert scores["PQ_things"] == 100
    assert scores["PQ_stuff"] == pytest.approx(100 / 1.5)


def test_depth_score_is_the_mean_over_samples(pictures: list[Image.Image]) -> None:
    truth = np.array([[1.0, 2.0, 4.0, np.nan]], dtype=np.float32)
    samples = [DepthSample(str(i), image, truth) for i, image in enumerate(pictures)]
    known = np.nan_to_num(truth, nan=9)
    told: list[int] = []
    scores = score_depth(predicting([DepthResult(known), DepthResult(2 * known)], pictures), samples, told.append)
    assert told == [1, 2]
    assert scores["AbsRel"] == pytest.approx(0.5)
    assert scores["delta1"] == pytest.approx(0.5)


def test_a_result_of_another_kind_is_refused_by_name(pictures: list[Image.Image], label_set: LabelSet) -> None:
    depth, panoptic = DepthResult(np.ones((1, 4), np.float32)), PanopticResult(MAP, ())
    sample = PanopticSample("a", pictures[0], MAP, {}, frozenset())
    with pytest.raises(TypeError, match="not DepthResult"):
        score_panoptic(lambda _: depth, [sample], label_set, lambda _: None)
    with pytest.raises(TypeError, match="not PanopticResult"):
        score_depth(lambda _: panoptic, [DepthSample("a", pictures[0], depth.depth_m)], lambda _: None)
