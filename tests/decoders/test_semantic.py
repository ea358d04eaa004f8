"""Semantic segmentation: votes equal to PMT's, on whole pictures and on windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from decoders.base import Decoder, PostprocessOptions
from decoders.class_map import best_class
from decoders.labels import LabelSet
from decoders.semantic import SemanticDecoder, class_votes, picture_votes
from encoders.geometry import FitGeometry, WindowGeometry
from encoders.vit import VisionTransformer

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]
SCORES = {"atol": 2e-5, "rtol": 0}
"""Tolerance of the PMT specification, section 12."""


@pytest.mark.parametrize("image", range(3))
def test_windows_to_classes_equal_pmt(read_golden: ReadGolden, image: int) -> None:
    facts, tensors = read_golden("post_semantic")
    geometry = WindowGeometry(min(facts["img_size"])).place(tuple(facts["image_sizes"][image]))
    assert list(geometry.scaled_size) == facts["scaled_sizes"][image]
    rows = [row for row, origin in enumerate(tensors["origins"].tolist()) if origin[0] == image]
    votes = picture_votes(tensors["mask_logits"][rows], tensors["class_logits"][rows], geometry)
    step = facts["scores_stride"]
    upsampled = geometry.scaled_to_output(votes)[:, ::step, ::step]
    torch.testing.assert_close(upsampled, tensors[f"scores.{image}"], **SCORES)
    assert (best_class(votes, geometry) != tensors[f"argmax.{image}"]).float().mean() <= 1e-4


def draw_logits(windows: int, queries: int, classes: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return 4 * torch.randn(windows, queries, *size), 2 * torch.randn(windows, queries, classes + 1)


def test_votes_are_mask_probabilities_weighted_with_class_probabilities_and_no_object_does_not_vote() -> None:
    (mask_logits,), (class_logits,) = draw_logits(1, 6, 4, (5, 7))
    wanted = torch.zeros(4, 5, 7)
    for mask, logits in zip(mask_logits, class_logits, strict=True):
        wanted += mask.sigmoid() * logits.softmax(-1)[:4, None, None]
    torch.testing.assert_close(class_votes(mask_logits, class_logits), wanted)


def test_a_query_that_is_sure_of_no_object_gives_no_votes() -> None:
    class_logits = torch.tensor([[-50.0, -50.0, 50.0]])
    assert class_votes(torch.full((1, 2, 2), 50.0), class_logits).max() < 1e-20


def test_a_pixel_in_two_windows_has_the_mean_of_their_votes() -> None:
    geometry = WindowGeometry(8).place((8, 13))  # windows start at 0 and 5
    assert geometry.window_starts == ((0, 0), (0, 5))
    mask_logits, class_logits = draw_logits(2, 6, 4, (2, 2))
    votes = picture_votes(mask_logits, class_logits, geometry)
    left, right = (
        class_votes(geometry.to_input(masks), classes) for masks, classes in zip(mask_logits, class_logits, strict=True)
    )
    torch.testing.assert_close(votes[:, :, :5], left[:, :, :5])
    torch.testing.assert_close(votes[:, :, 5:8], (left[:, :, 5:] + right[:, :, :3]) / 2)
    torch.testing.assert_close(votes[:, :, 8:], right[:, :, 3:])


def test_votes_of_a_whole_picture_leave_the_padding_out() -> None:
    geometry = FitGeometry(64, 96).place((120, 80))
    (mask_logits,), (class_logits,) = draw_logits(1, 6, 4, (16, 24))
    votes = picture_votes(mask_logits, class_logits, geometry)
    everywhere = class_votes(geometry.to_input(mask_logits), class_logits)
    height, width = geometry.scaled_size
    assert (height, width) != geometry.input_size
    torch.testing.assert_close(votes, everywhere[:, :height, :width])


def test_inputs_are_left_as_they_were() -> None:
    geometry = WindowGeometry(8).place((8, 13))
    mask_logits, class_logits = draw_logits(2, 6, 4, (8, 8))
    before = mask_logits.clone(), class_logits.clone()
    picture_votes(mask_logits, class_logits, geometry)
    assert torch.equal(mask_logits, before[0])
    assert torch.equal(class_logits, before[1])


@pytest.fixture
def head(tiny_encoder: VisionTransformer, label_set: LabelSet) -> SemanticDecoder:
    return SemanticDecoder(
        tiny_encoder.spec, label_set=label_set, out_indices=(1, 3), num_queries=6, num_blocks=1
    ).eval()


@torch.no_grad()
@pytest.mark.parametrize("image_size", [(60, 40), (16, 16), (31, 90)], ids=str)
def test_the_head_answers_windows_and_whole_pictures_in_the_pictures_own_pixels(
    head: SemanticDecoder, tiny_encoder: VisionTransformer, label_set: LabelSet, image_size: tuple[int, int]
) -> None:
    assert isinstance(head, Decoder)
    assert head.takes_windows
    for geometry in (WindowGeometry(16).place(image_size), FitGeometry(16, 24).place(image_size)):
        raw = head(tiny_encoder(torch.rand(geometry.num_views, 3, *geometry.input_size), head.out_indices))
        if geometry.window_starts is None:
            raw = {name: tensor[0] for name, tensor in raw.items()}
        result = head.postprocess(raw, geometry, PostprocessOptions())
        assert result.segment_map.shape == image_size
        assert result.segment_map.min() >= 1  # every pixel has a class
        assert sum(segment.area for segment in result.segments) == image_size[0] * image_size[1]
        assert all(0 < segment.score <= 1 for segment in result.segments)
        assert {segment.label for segment in result.segments} <= {label.name for label in label_set.labels}
