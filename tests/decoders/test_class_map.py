"""Maps of classes: the best class of every pixel in bounded memory, how sure it is, and the segments named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from decoders import class_map
from decoders.class_map import best_class, class_confidence, semantic_result
from decoders.labels import LabelSet
from encoders.geometry import FitGeometry, ImageGeometry

MIB = 1 << 20


def draw_scores(classes: int, size: tuple[int, int]) -> Tensor:
    return torch.rand(classes, *size)


@pytest.mark.parametrize("image_size", [(1, 1), (37, 53), (120, 80), (64, 96)], ids=str)
def test_best_class_is_the_argmax_of_the_upsampled_scores(image_size: tuple[int, int]) -> None:
    geometry = FitGeometry(64, 96).place(image_size)
    scores = draw_scores(7, geometry.scaled_size)
    winner = best_class(scores, geometry)
    assert winner.dtype == torch.int32
    assert torch.equal(winner, geometry.scaled_to_output(scores).argmax(dim=0).int())


@pytest.mark.parametrize("classes_per_group", [1, 3, 1000])
def test_the_answer_does_not_depend_on_the_size_of_the_groups(
    monkeypatch: pytest.MonkeyPatch, classes_per_group: int
) -> None:
    geometry = FitGeometry(64, 96).place((120, 80))
    scores = draw_scores(7, geometry.scaled_size)
    wanted = best_class(scores, geometry)
    monkeypatch.setattr(class_map, "_CHUNK_PIXELS", classes_per_group * 120 * 80)
    assert torch.equal(best_class(scores, geometry), wanted)


def test_many_classes_are_upsampled_in_bounded_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    upsample = ImageGeometry.scaled_to_output

    def record(self: ImageGeometry, maps: Tensor) -> Tensor:
        asked.append(len(maps))
        return upsample(self, maps)

    monkeypatch.setattr(ImageGeometry, "scaled_to_output", record)
    geometry = FitGeometry(64, 96).place((720, 1280))
    best_class(draw_scores(60, geometry.scaled_size), geometry)
    assert sum(asked) == 60
    assert max(asked) * 720 * 1280 * 4 <= 16 * MIB


def test_among_equal_classes_the_first_wins() -> None:
    geometry = FitGeometry(4, 4).place((4, 4))
    assert not best_class(torch.ones(3, 4, 4), geometry).any()


def test_scores_that_are_not_numbers_cost_the_other_classes_nothing() -> None:
    geometry = FitGeometry(4, 4).place((4, 4))
    scores = torch.stack([torch.full((4, 4), 0.1), torch.full((4, 4), torch.nan), torch.full((4, 4), 0.3)])
    assert (best_class(scores, geometry) == 2).all()


def test_confidence_is_the_mean_share_of_the_votes_where_a_class_wins() -> None:
    scores = torch.tensor([[[3.0, 8.0, 1.0]], [[1.0, 2.0, 3.0]]])  # two classes, three pixels
    torch.testing.assert_close(class_confidence(scores), torch.tensor([(3 / 4 + 8 / 10) / 2, 3 / 4]))


def test_a_class_that_never_wins_has_its_best_share() -> None:
    scores = torch.tensor([[[3.0, 8.0]], [[1.0, 2.0]]])
    torch.testing.assert_close(class_confidence(scores)[1], torch.tensor(1 / 4))


def test_confidence_without_any_votes_is_a_number() -> None:
    confidence = class_confidence(torch.zeros(3, 2, 2))
    assert torch.equal(confidence, torch.zeros(3))


def test_segments_are_the_classes_present_the_largest_first(label_set: LabelSet) -> None:
    classes = torch.tensor([[3, 3, 3, 0], [3, 3, 4, 4], [3, 3, 4, 4]], dtype=torch.int32)
    confidence = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    result = semantic_result(classes, confidence, label_set)
    assert result.segment_map.dtype == np.int32
    assert np.array_equal(result.segment_map, classes.numpy() + 1)
    assert [(s.segment_id, s.label_id, s.label, s.is_thing) for s in result.segments] == [
        (4, 3, "sky", False),
        (5, 4, "road", False),
        (1, 0, "cat", True),
    ]
    assert [(s.area, s.bbox) for s in result.segments] == [(7, (0, 0, 3, 3)), (4, (2, 1, 2, 2)), (1, (3, 0, 1, 1))]
    assert [s.score for s in result.segments] == pytest.approx([0.4, 0.5, 0.1])
