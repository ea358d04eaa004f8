"""The linear semantic head: equal to its definition, whole or in windows, and open to the published files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decoders.base import Decoder, PostprocessOptions
from decoders.labels import Label, LabelSet
from decoders.linear_semantic import LinearSemanticDecoder
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry, WindowGeometry
from encoders.key_map import CheckpointError, fill
from encoders.vit import VisionTransformer

SIZES = {"vits14": (384, 12), "vitb14": (768, 12), "vitl14": (1024, 24), "vitg14": (1536, 40)}
OPTIONS = PostprocessOptions()


def numbered(num_classes: int) -> LabelSet:
    return LabelSet("numbered", tuple(Label(i, f"class {i}", False, (i, i, i)) for i in range(num_classes)))


def published(dim: int, num_blocks: int, num_classes: int) -> dict[str, Tensor]:
    width = dim * num_blocks
    return {
        "decode_head.conv_seg.weight": torch.randn(num_classes, width, 1, 1) / width**0.5,
        "decode_head.conv_seg.bias": torch.randn(num_classes),
        "decode_head.bn.weight": 1 + 0.3 * torch.randn(width),
        "decode_head.bn.bias": torch.randn(width),
        "decode_head.bn.running_mean": torch.randn(width),
        "decode_head.bn.running_var": 0.5 + torch.rand(width),
        "decode_head.bn.num_batches_tracked": torch.tensor(40_000),
    }


def build(
    spec: EncoderSpec, weights: dict[str, Tensor], label_set: LabelSet, out_indices: tuple[int, ...]
) -> LinearSemanticDecoder:
    head = LinearSemanticDecoder(spec, label_set=label_set, out_indices=out_indices)
    fill(head, LinearSemanticDecoder.translate(weights), "these weights")
    return head.eval().requires_grad_(False)


def defined_logits(features: EncoderFeatures, weights: dict[str, Tensor], out_indices: tuple[int, ...]) -> Tensor:
    """`BNHead` of facebookresearch/dinov2's segmentation, from the definition of batch norm at inference."""
    tokens = torch.cat([features.patch_tokens(index) for index in out_indices], dim=-1).double()
    given = {name.removeprefix("decode_head."): tensor.double() for name, tensor in weights.items()}
    scaled = (tokens - given["bn.running_mean"]) / (given["bn.running_var"] + 1e-5).sqrt()
    normed = scaled * given["bn.weight"] + given["bn.bias"]
    logits = torch.einsum("bnc,kc->bkn", normed, given["conv_seg.weight"][:, :, 0, 0])
    return (logits + given["conv_seg.bias"][:, None]).unflatten(2, features.grid_size).float()


@torch.no_grad()
@pytest.mark.parametrize("size", [(24, 24), (16, 40)])
@pytest.mark.parametrize("out_indices", [(3,), (0, 1, 2, 3)])
def test_logits_are_those_of_the_definition(
    tiny_encoder: VisionTransformer,
    label_set: LabelSet,
    size: tuple[int, int],
    out_indices: tuple[int, ...],
) -> None:
    weights = published(16, len(out_indices), 5)
    features = tiny_encoder(torch.rand(2, 3, *size), out_indices)
    expected = defined_logits(features, weights, out_indices)
    found = build(tiny_encoder.spec, weights, label_set, out_indices)(features)["class_logits"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_class_of_a_pixel_is_the_best_upsampled_logit_and_its_score_the_mean_probability(
    tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = build(tiny_encoder.spec, published(16, 1, 5), label_set, (3,))
    geometry = FitGeometry(16, 24).place((40, 30))  # scaled to 16 x 12
    logits = 3 * torch.randn(5, 2, 3)
    result = head.postprocess({"class_logits": logits}, geometry, OPTIONS)
    scaled = F.interpolate(logits[None], size=(16, 24), mode="bilinear", align_corners=False)[..., :12]
    best = F.interpolate(scaled, size=(40, 30), mode="bilinear", align_corners=False)[0].argmax(dim=0)
    assert torch.equal(torch.from_numpy(result.segment_map).long() - 1, best)
    assert len(result.segments) >= 2
    probabilities = scaled[0].softmax(dim=0)
    winners = probabilities.argmax(dim=0)
    for segment in result.segments:
        assert segment.area == (best == segment.label_id).sum()
        assert segment.label == label_set[segment.label_id].name
        wins = probabilities[segment.label_id][winners == segment.label_id]
        assert segment.score == pytest.approx(wins.mean().item(), abs=1e-5)


@torch.no_grad()
def test_windows_are_put_together_and_their_overlap_averages_logits(
    tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = build(tiny_encoder.spec, published(16, 1, 5), label_set, (3,))
    assert head.takes_windows
    geometry = WindowGeometry(16).place((16, 28))  # two windows of 16 x 16, from 0 and 12
    assert geometry.window_starts == ((0, 0), (0, 12))
    logits = torch.zeros(2, 5, 2, 2)
    logits[0, 2], logits[1, 4] = 1, 3  # where both lie, (0 + 1) / 2 < (0 + 3) / 2
    result = head.postprocess({"class_logits": logits}, geometry, OPTIONS)
    assert (result.segment_map[:, :12] == 3).all()
    assert (result.segment_map[:, 12:] == 5).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_blocks", [1, 4])
@pytest.mark.parametrize("num_classes", [150, 21])
def test_every_published_head_has_a_place_for_every_tensor(size: str, num_blocks: int, num_classes: int) -> None:
    dim, depth = SIZES[size]
    out_indices = range(depth - num_blocks, depth)
    with torch.device("meta"):
        spec = EncoderSpec(f"dinov2_{size}", "none", dim, depth, 6, 14, 1)
        head = LinearSemanticDecoder(spec, label_set=numbered(num_classes), out_indices=out_indices)
        weights = published(dim, num_blocks, num_classes)
    assert head.out_indices == tuple(out_indices)
    assert head.published_shapes() == {name: tensor.shape for name, tensor in weights.items()}
    fill(head, LinearSemanticDecoder.translate(weights), "published")


def test_own_names_come_back_as_they_are(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    weights = LinearSemanticDecoder(tiny_encoder.spec, label_set=label_set, out_indices=[3]).state_dict()
    assert LinearSemanticDecoder.translate(weights) is weights


def test_a_file_that_is_no_linear_semantic_head_is_refused() -> None:
    weights = published(16, 1, 5)
    del weights["decode_head.bn.running_var"]
    expected = r"linear segmentation .*missing: decode_head\.bn\.running_var; left over: decode_head\.conv_depth\.bias"
    with pytest.raises(CheckpointError, match=expected):
        LinearSemanticDecoder.translate(weights | {"decode_head.conv_depth.bias": torch.zeros(1)})


@pytest.mark.parametrize(
    ("num_blocks", "num_classes", "told"),
    [
        (1, 21, r"of another shape: class_head\.bias is \[21\], not \[5\], class_head\.weight is \[21, 16, 1, 1\]"),
        (4, 5, r"class_head\.weight is \[5, 64, 1, 1\], not \[5, 16, 1, 1\], norm\.bias is \[64\], not \[16\]"),
    ],
)
def test_a_head_of_other_classes_or_blocks_does_not_fit(
    tiny_encoder: VisionTransformer, label_set: LabelSet, num_blocks: int, num_classes: int, told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        build(tiny_encoder.spec, published(16, num_blocks, num_classes), label_set, (3,))


@torch.no_grad()
def test_a_picture_in_a_batch_gets_the_answer_it_gets_alone_and_features_are_only_read(
    tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = build(tiny_encoder.spec, published(16, 2, 5), label_set, (1, 3))
    assert isinstance(head, Decoder)
    assert (head.kind, head.out_indices, head.hidden_indices) == ("semantic", (1, 3), ())
    images = torch.rand(2, 3, 16, 24)
    features = tiny_encoder(images, (1, 3))
    before = {index: tokens.clone() for index, tokens in features.lateral_features.items()}
    together = head(features)["class_logits"]
    assert all(torch.equal(features.tokens(index), tokens) for index, tokens in before.items())
    for row in range(2):
        alone = head(tiny_encoder(images[row : row + 1], (1, 3)))["class_logits"]
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


@torch.no_grad()
def test_prefix_tokens_play_no_part(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    head = build(tiny_encoder.spec, published(16, 1, 5), label_set, (3,))
    features = tiny_encoder(torch.rand(1, 3, 16, 24), (3,))
    before = head(features)["class_logits"]
    features.prefix_tokens(3).zero_()
    torch.testing.assert_close(head(features)["class_logits"], before, atol=0, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(tiny_encoder: VisionTransformer, label_set: LabelSet, dtype: torch.dtype) -> None:
    weights = published(16, 1, 5)
    features = tiny_encoder(torch.rand(1, 3, 16, 24), (3,))
    expected = build(tiny_encoder.spec, weights, label_set, (3,))(features)["class_logits"]
    half: nn.Module = build(tiny_encoder.spec, weights, label_set, (3,)).to(dtype)
    tokens: dict[int, Any] = {3: features.tokens(3).to(dtype)}
    found = half(EncoderFeatures(tiny_encoder.spec, features.grid_size, tokens))["class_logits"]
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.02)
