"""The depth head: metres within its range, in the picture's own pixels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from decoders.base import Decoder, PostprocessOptions
from decoders.depth import DepthDecoder
from encoders.geometry import FitGeometry
from encoders.vit import VisionTransformer


@pytest.fixture
def head(tiny_encoder: VisionTransformer) -> DepthDecoder:
    return DepthDecoder(tiny_encoder.spec, out_indices=(1, 3), hidden_dim=8, num_bins=16).eval()


def test_the_head_is_a_decoder_whose_output_leads_with_the_batch(
    head: DepthDecoder, tiny_encoder: VisionTransformer
) -> None:
    assert isinstance(head, Decoder)
    assert head.out_indices == (1, 3)
    raw = head(tiny_encoder(torch.rand(2, 3, 16, 24), head.out_indices))
    assert {name: tuple(tensor.shape) for name, tensor in raw.items()} == {"depth_m": (2, 1, 4, 6)}


@torch.no_grad()
def test_depth_stays_within_its_range_whatever_the_bins_say(
    head: DepthDecoder, tiny_encoder: VisionTransformer
) -> None:
    features = tiny_encoder(torch.rand(2, 3, 16, 24), head.out_indices)
    for favoured, depth_m in ((0, 0.3), (15, 10.0)):
        head.bin_head.bias.zero_()
        head.bin_head.bias[favoured] = 1e4
        torch.testing.assert_close(head(features)["depth_m"], torch.full((2, 1, 4, 6), depth_m))
    head.bin_head.bias.normal_(std=5)
    depth = head(features)["depth_m"]
    assert 0.3 <= depth.min() <= depth.max() <= 10


def test_bins_are_spaced_evenly_in_the_logarithm(tiny_encoder: VisionTransformer) -> None:
    centres = DepthDecoder(
        tiny_encoder.spec, out_indices=(1,), num_bins=5, min_depth_m=0.5, max_depth_m=8
    ).bin_centres_m()
    torch.testing.assert_close(centres, torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0]))


def test_bins_are_no_part_of_the_weights(head: DepthDecoder) -> None:
    assert "bin_centres_m" not in head.state_dict()


@pytest.mark.parametrize(("least", "most"), [(0, 10), (-1, 10), (5, 5), (10, 1)])
def test_a_range_that_does_not_rise_from_above_zero_is_refused(
    tiny_encoder: VisionTransformer, least: float, most: float
) -> None:
    with pytest.raises(ValueError, match=rf"{least} \.\. {most} m"):
        DepthDecoder(tiny_encoder.spec, out_indices=(1,), min_depth_m=least, max_depth_m=most)


def test_a_tap_outside_the_encoder_is_refused_when_building(tiny_encoder: VisionTransformer) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.3 of tiny"):
        DepthDecoder(tiny_encoder.spec, out_indices=(7,))


@torch.no_grad()
def test_a_picture_in_a_batch_gets_the_answer_it_gets_alone(
    head: DepthDecoder, tiny_encoder: VisionTransformer
) -> None:
    images = torch.rand(3, 3, 16, 24)
    batched = head(tiny_encoder(images, head.out_indices))["depth_m"]
    for row in range(3):
        alone = head(tiny_encoder(images[row : row + 1], head.out_indices))["depth_m"]
        torch.testing.assert_close(batched[row], alone[0], atol=1e-4, rtol=1e-4)
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.pairwise(batched))


@torch.no_grad()
def test_features_are_only_read(head: DepthDecoder, tiny_encoder: VisionTransformer) -> None:
    features = tiny_encoder(torch.rand(1, 3, 16, 24), head.out_indices)
    before = {index: tokens.clone() for index, tokens in features.lateral_features.items()}
    head(features)
    assert all(torch.equal(features.tokens(index), tokens) for index, tokens in before.items())


@torch.no_grad()
def test_prefix_tokens_play_no_part(head: DepthDecoder, tiny_encoder: VisionTransformer) -> None:
    features = tiny_encoder(torch.rand(1, 3, 16, 24), head.out_indices)
    before = head(features)["depth_m"]
    for index in head.out_indices:
        features.prefix_tokens(index).zero_()
    torch.testing.assert_close(head(features)["depth_m"], before, atol=0, rtol=0)


def test_result_is_in_the_pixels_of_the_picture_without_its_padding(head: DepthDecoder) -> None:
    geometry = FitGeometry(16, 24).place((40, 30))  # scaled to 16 x 12: the right half is padding
    depth = torch.full((1, 4, 6), 2.0)
    depth[..., 3:] = 9.0
    result = head.postprocess({"depth_m": depth}, geometry, PostprocessOptions())
    assert result.depth_m.shape == (40, 30)
    assert result.depth_m.dtype == np.float32
    np.testing.assert_allclose(result.depth_m[:, :20], 2.0, rtol=1e-6)
    assert result.depth_m.max() < 9


def test_max_side_gives_a_smaller_result(head: DepthDecoder) -> None:
    geometry = FitGeometry(16, 24).place((40, 30), max_side=20)
    result = head.postprocess({"depth_m": torch.ones(1, 4, 6)}, geometry, PostprocessOptions())
    assert result.depth_m.shape == (20, 15)
