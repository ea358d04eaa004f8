"""The linear depth head: equal to its definition, in metres, and open to the published files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decoders.base import Decoder, PostprocessOptions
from decoders.linear_depth import LinearDepthDecoder
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry
from encoders.key_map import CheckpointError, fill
from encoders.vit import VisionTransformer

SIZES = {"vits14": (384, 12), "vitb14": (768, 12), "vitl14": (1024, 24), "vitg14": (1536, 40)}
TAPS = {"vits14": [2, 5, 8, 11], "vitb14": [2, 5, 8, 11], "vitl14": [4, 11, 17, 23], "vitg14": [9, 19, 29, 39]}


def published(dim: int, num_blocks: int, num_bins: int = 256) -> dict[str, Tensor]:
    return {
        "decode_head.conv_depth.weight": torch.randn(num_bins, 2 * dim * num_blocks, 1, 1) / dim**0.5,
        "decode_head.conv_depth.bias": torch.randn(num_bins),
    }


def build(
    spec: EncoderSpec, weights: dict[str, Tensor], hidden_indices: tuple[int, ...], max_depth_m: float = 10
) -> LinearDepthDecoder:
    head = LinearDepthDecoder(spec, hidden_indices=hidden_indices, max_depth_m=max_depth_m)
    fill(head, LinearDepthDecoder.translate(weights), "these weights")
    return head.eval().requires_grad_(False)


def defined_depth(
    features: EncoderFeatures, weights: dict[str, Tensor], hidden_indices: tuple[int, ...], max_depth_m: float
) -> Tensor:
    """`BNHead` of facebookresearch/dinov2, step by step: CLS beside each patch, upsampled, one layer, 256 bins."""
    grid_h, grid_w = features.grid_size
    maps = []
    for index in hidden_indices:
        tokens = features.hidden_state(index)
        patches = tokens[:, features.spec.num_prefix_tokens :].transpose(1, 2).reshape(len(tokens), -1, grid_h, grid_w)
        both = torch.cat((patches, tokens[:, 0][:, :, None, None].expand_as(patches)), dim=1)
        maps.append(F.interpolate(both, size=(4 * grid_h, 4 * grid_w), mode="bilinear", align_corners=False))
    weight, bias = weights["decode_head.conv_depth.weight"], weights["decode_head.conv_depth.bias"]
    logits = F.conv2d(torch.cat(maps, dim=1), weight, bias)
    shares = torch.relu(logits) + 0.1
    shares = shares / shares.sum(dim=1, keepdim=True)
    bins = 0.001 + torch.arange(256, dtype=torch.float64) * (max_depth_m - 0.001) / 255
    return (shares.double() * bins[:, None, None]).sum(dim=1, keepdim=True).float()


@torch.no_grad()
@pytest.mark.parametrize("size", [(24, 24), (16, 40)])
@pytest.mark.parametrize("hidden_indices", [(3,), (0, 1, 2, 3)])
@pytest.mark.parametrize("max_depth_m", [10, 80])
def test_depth_is_that_of_the_definition(
    tiny_encoder: VisionTransformer,
    size: tuple[int, int],
    hidden_indices: tuple[int, ...],
    max_depth_m: float,
) -> None:
    weights = published(16, len(hidden_indices))
    features = tiny_encoder(torch.rand(2, 3, *size), (), hidden_indices)
    expected = defined_depth(features, weights, hidden_indices, max_depth_m)
    found = build(tiny_encoder.spec, weights, hidden_indices, max_depth_m)(features)["depth_m"]
    assert found.shape == (2, 1, size[0] // 2, size[1] // 2)
    assert expected.std() > 0.01 * max_depth_m
    torch.testing.assert_close(found, expected, atol=1e-5 * max_depth_m, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("favoured", "depth_m"), [(0, 0.001), (255, 80.0)])
def test_bins_reach_from_the_least_to_the_largest_depth(
    tiny_encoder: VisionTransformer, favoured: int, depth_m: float
) -> None:
    weights = {name: torch.zeros_like(tensor) for name, tensor in published(16, 1).items()}
    weights["decode_head.conv_depth.bias"][favoured] = 1e9
    features = tiny_encoder(torch.rand(1, 3, 16, 24), (), (3,))
    depth = build(tiny_encoder.spec, weights, (3,), 80)(features)["depth_m"]
    torch.testing.assert_close(depth, torch.full((1, 1, 8, 12), depth_m), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_pixel_without_any_positive_bin_gets_the_middle_of_the_range(tiny_encoder: VisionTransformer) -> None:
    weights = {name: torch.zeros_like(tensor) for name, tensor in published(16, 1).items()}
    weights["decode_head.conv_depth.bias"] -= 5
    features = tiny_encoder(torch.rand(1, 3, 16, 24), (), (3,))
    depth = build(tiny_encoder.spec, weights, (3,))(features)["depth_m"]
    torch.testing.assert_close(depth, torch.full((1, 1, 8, 12), 5.0005), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_blocks", [1, 4])
def test_every_published_head_has_a_place_for_every_tensor(size: str, num_blocks: int) -> None:
    dim, depth = SIZES[size]
    hidden_indices = TAPS[size] if num_blocks == 4 else [depth - 1]
    with torch.device("meta"):
        spec = EncoderSpec(f"dinov2_{size}", "none", dim, depth, 6, 14, 1)
        head = LinearDepthDecoder(spec, hidden_indices=hidden_indices, max_depth_m=10)
        weights = published(dim, num_blocks)
    assert head.hidden_indices == tuple(hidden_indices)
    assert head.published_shapes() == {name: tensor.shape for name, tensor in weights.items()}
    fill(head, LinearDepthDecoder.translate(weights), "published")


def test_own_names_come_back_as_they_are(tiny_encoder: VisionTransformer) -> None:
    weights = LinearDepthDecoder(tiny_encoder.spec, hidden_indices=[3], max_depth_m=10).state_dict()
    assert LinearDepthDecoder.translate(weights) is weights


def test_a_file_that_is_no_linear_depth_head_is_refused() -> None:
    weights = {"decode_head.conv_seg.weight": torch.zeros(1), "decode_head.conv_depth.weight": torch.zeros(1)}
    expected = r"linear depth .*missing: decode_head\.conv_depth\.bias; left over: decode_head\.conv_seg\.weight"
    with pytest.raises(CheckpointError, match=expected):
        LinearDepthDecoder.translate(weights)


def test_a_head_of_four_blocks_does_not_fit_where_one_is_read(tiny_encoder: VisionTransformer) -> None:
    with pytest.raises(CheckpointError, match=r"bin_head\.weight is \[256, 128, 1, 1\], not \[256, 32, 1, 1\]"):
        build(tiny_encoder.spec, published(16, 4), (3,))


@pytest.mark.parametrize(("least", "most"), [(0, 10), (10, 10), (10, 1)])
def test_a_range_that_does_not_rise_from_above_zero_is_refused(
    tiny_encoder: VisionTransformer, least: float, most: float
) -> None:
    with pytest.raises(ValueError, match=rf"{least} \.\. {most} m"):
        LinearDepthDecoder(tiny_encoder.spec, hidden_indices=[3], min_depth_m=least, max_depth_m=most)


@torch.no_grad()
def test_a_picture_in_a_batch_gets_the_answer_it_gets_alone_and_features_are_only_read(
    tiny_encoder: VisionTransformer,
) -> None:
    head = build(tiny_encoder.spec, published(16, 2), (1, 3))
    assert isinstance(head, Decoder)
    assert (head.kind, head.out_indices, head.hidden_indices) == ("depth", (), (1, 3))
    images = torch.rand(2, 3, 16, 24)
    features = tiny_encoder(images, (), (1, 3))
    before = {index: tokens.clone() for index, tokens in features.hidden_states.items()}
    together = head(features)["depth_m"]
    assert all(torch.equal(features.hidden_state(index), tokens) for index, tokens in before.items())
    for row in range(2):
        alone = head(tiny_encoder(images[row : row + 1], (), (1, 3)))["depth_m"]
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_keeps_exact_bins(tiny_encoder: VisionTransformer, dtype: torch.dtype) -> None:
    weights = published(16, 1)
    features = tiny_encoder(torch.rand(1, 3, 16, 24), (), (3,))
    expected = build(tiny_encoder.spec, weights, (3,), 80)(features)["depth_m"]
    states = {3: features.hidden_state(3).to(dtype)}
    head = build(tiny_encoder.spec, weights, (3,), 80).to(dtype)
    found = head(EncoderFeatures(tiny_encoder.spec, features.grid_size, {}, states))["depth_m"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0)


def test_an_encoder_without_a_cls_token_is_refused(tiny_encoder: VisionTransformer) -> None:
    with pytest.raises(ValueError, match="the head reads the CLS token, and tiny has none"):
        LinearDepthDecoder(replace(tiny_encoder.spec, num_prefix_tokens=0), hidden_indices=[3], max_depth_m=10)


def test_result_is_in_the_pixels_of_the_picture_without_its_padding(tiny_encoder: VisionTransformer) -> None:
    head = LinearDepthDecoder(tiny_encoder.spec, hidden_indices=[3], max_depth_m=10)
    geometry = FitGeometry(16, 24).place((40, 30), max_side=20)  # scaled to 16 x 12: the right half is padding
    depth = torch.full((1, 8, 12), 2.0)
    depth[..., 6:] = 9.0
    result = head.postprocess({"depth_m": depth}, geometry, PostprocessOptions())
    assert result.depth_m.shape == (20, 15)
    assert result.depth_m.dtype == np.float32
    np.testing.assert_allclose(result.depth_m[:, :12], 2.0, rtol=1e-6)
    assert result.depth_m.max() < 9
