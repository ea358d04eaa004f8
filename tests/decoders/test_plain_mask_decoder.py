"""The Plain Mask Decoder: equal to the published code, and a good neighbour on shared features."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decoders.panoptic_merge import merge_panoptic
from decoders.plain_mask_decoder import FoldedLateralProjection, LateralProjection, PlainMaskDecoder
from decoders.pmt_checkpoints import load_pmt_decoder
from encoders.checkpoints import build_encoder
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry
from encoders.vit import VisionTransformer

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]
FEATURES, MASKS, CLASSES = ({"atol": 5e-5, "rtol": 0}, {"atol": 2e-4, "rtol": 1e-4}, {"atol": 1e-4, "rtol": 0})
"""Tolerances of the PMT specification, section 12."""


def read_model(read_golden: ReadGolden, case: str) -> tuple[dict[str, Any], VisionTransformer, PlainMaskDecoder]:
    facts, _ = read_golden(f"{case}.io")
    config = facts["config"]
    grid = tuple(side // 16 for side in config["img_size"]) if config["family"] == "dinov2" else None
    _, weights = read_golden(f"{case}.encoder")
    encoder = build_encoder(weights, revision="golden", num_heads=config["heads"], position_grid=grid)
    _, weights = read_golden(f"{case}.ckpt")
    return config, encoder, load_pmt_decoder(weights, encoder.spec, config["interaction"])


@pytest.mark.parametrize("case", ["image_dinov2_tiny", "image_dinov3_tiny"])
@torch.no_grad()
def test_every_stage_equals_pmt(read_golden: ReadGolden, case: str) -> None:
    config, encoder, decoder = read_model(read_golden, case)
    _, expected = read_golden(f"{case}.io")
    features = encoder(expected["image_u8"], config["interaction"])
    for level, index in enumerate(config["interaction"]):
        lateral = decoder.laterals[level]
        assert isinstance(lateral, LateralProjection)
        normed = lateral.norm(features.tokens(index).flatten(0, 1)).unflatten(0, features.tokens(index).shape[:2])
        torch.testing.assert_close(normed, expected[f"feature_bn.{level}"], **FEATURES)
    tokens, rope = decoder.embed(features)
    torch.testing.assert_close(tokens, expected["tokens_in"], **FEATURES)
    torch.testing.assert_close(rope, (expected["rope_cos"], expected["rope_sin"]), atol=1e-6, rtol=0)
    for block in decoder.blocks:
        tokens = block(tokens, rope)
    torch.testing.assert_close(tokens, expected["tokens_out"], **FEATURES)
    mask_logits, class_logits = decoder(features)
    torch.testing.assert_close(mask_logits, expected["mask_logits"], **MASKS)
    torch.testing.assert_close(class_logits, expected["class_logits"], **CLASSES)


@torch.no_grad()
def test_masked_attention_equals_pmt(read_golden: ReadGolden) -> None:
    config, encoder, decoder = read_model(read_golden, "image_dinov3_tiny")
    _, expected = read_golden("image_dinov3_tiny.io")
    features = encoder(expected["image_u8"], config["interaction"])
    predictions = decoder.forward_masked(features, [1.0] * len(decoder.blocks))
    assert len(predictions) == len(decoder.blocks) + 1 == 4
    for step, (_, class_logits) in enumerate(predictions):
        torch.testing.assert_close(class_logits, expected[f"masked.class_logits.{step}"], **CLASSES)
    torch.testing.assert_close(predictions[-1][0], expected["masked.mask_logits.3"], **MASKS)


def weights_by_formula(facts: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a golden without a weight file; its .json states the formula."""
    weights: dict[str, Tensor] = {}
    for name, shape, mean, std in facts["params"]:
        if mean == "const":
            weights[name] = torch.full(shape, std, dtype=torch.int64)
            continue
        name_in_seed = name.removeprefix("encoder:")
        seed = (zlib.crc32(name_in_seed.encode()) ^ (facts["config"]["seed"] * 2654435761)) & 0xFFFFFFFF
        uniform = np.random.RandomState(seed).random_sample(int(np.prod(shape)))
        weights[name] = torch.from_numpy((mean + std * np.sqrt(12) * (uniform - 0.5)).astype(np.float32)).view(shape)
    weights["network.decoder.q.weight"][4::5] *= 0.005
    return weights


def picture_by_formula(height: int, width: int) -> Tensor:
    """[1, 3, H, W] uint8, the input of the full-size golden."""
    y, x = np.mgrid[0:height, 0:width]
    red = ((3 * x + 5 * y) // 4 + 40 * ((x // 64 + y // 48) % 3)) % 256
    green = ((x * y) // 97 + 31 * (x // 40)) % 256
    blue = ((x + 2 * y) // 3 + 60 * ((y // 80) % 2) + 25 * ((x // 90) % 4)) % 256
    return torch.from_numpy(np.stack((red, green, blue)).astype(np.uint8))[None]


@torch.no_grad()
def test_pmt_s_at_its_real_size_equals_pmt(read_golden: ReadGolden) -> None:
    facts, expected = read_golden("full_pmt_s_640")
    weights = weights_by_formula(facts)
    for name, checksum in facts["checksums"].items():
        assert weights[name].double().sum().item() == pytest.approx(checksum, abs=1e-6)
    encoder_weights = {n.removeprefix("encoder:"): t for n, t in weights.items() if n.startswith("encoder:")}
    decoder_weights = {n: t for n, t in weights.items() if not n.startswith("encoder:")}
    encoder = build_encoder(encoder_weights, revision="golden")
    taps = facts["config"]["interaction"]
    decoder = load_pmt_decoder(decoder_weights, encoder.spec, taps)
    features = encoder(picture_by_formula(640, 640), taps)
    rows = [0, 1, 4, 5, 6, 44, 45, 822, -1]
    for level, index in enumerate(taps):
        torch.testing.assert_close(features.tokens(index)[0, rows], expected[f"feature_norm_sub.{level}"], **FEATURES)
    tokens, rope = decoder.embed(features)
    for block in decoder.blocks:
        tokens = block(tokens, rope)
    rows = [0, 1, 100, 199, 200, 204, 205, 245, -1]
    torch.testing.assert_close(tokens[0, rows], expected["tokens_out_sub"], **FEATURES)
    mask_logits, class_logits = decoder.predict(tokens, features.grid_size)
    torch.testing.assert_close(mask_logits[:, ::5, 1::8, 2::8], expected["mask_logits_sub"], **MASKS)
    torch.testing.assert_close(class_logits, expected["class_logits"], **CLASSES)
    torch.testing.assert_close(mask_logits[0].mean((1, 2)), expected["mask_mean"], **MASKS)
    positive = (mask_logits[0] > 0).float().mean((1, 2))
    torch.testing.assert_close(positive, expected["mask_positive_fraction"], atol=1e-4, rtol=0)

    geometry = FitGeometry(640, 640).place((640, 640))
    segment_map, segments = merge_panoptic(
        mask_logits[0], class_logits[0], geometry, stuff_ids=facts["config"]["stuff"]
    )
    sub_sampled = segment_map[::4, ::4]
    labels = torch.tensor([segment.label_id for segment in segments] + [facts["config"]["num_classes"]])
    assert [[s.segment_id, s.label_id] for s in segments] == facts["stats"]["segments"]
    assert (sub_sampled != expected["panoptic.segment_map_s4"]).float().mean() <= 1e-4
    assert (labels[sub_sampled] != expected["panoptic.class_map_s4"]).float().mean() <= 1e-4


@pytest.mark.parametrize(
    ("width", "heads", "taps", "trainable"),
    [
        (384, 6, (2, 5, 8, 11), 7_688_966 + 3_072),
        (768, 12, (2, 5, 8, 11), 30_418_310 + 6_144),
        (1024, 16, (5, 11, 17, 23), 53_927_046 + 8_192),
    ],
    ids=["S", "B", "L"],
)
def test_trainable_parameters_are_as_many_as_published(
    width: int, heads: int, taps: tuple[int, ...], trainable: int
) -> None:
    spec = EncoderSpec("dinov3", "r", width, taps[-1] + 1, heads, patch_size=16, num_prefix_tokens=5)
    with torch.device("meta"):
        decoder = PlainMaskDecoder(spec, out_indices=taps, num_queries=200, num_classes=133, num_blocks=6)
    fused_key_biases = 6 * width  # zeros here, absent there
    assert sum(p.numel() for p in decoder.parameters()) - fused_key_biases == trainable


def make_decoder(
    spec: EncoderSpec, *, taps: tuple[int, ...] = (1, 3), seed: int = 1, blocks: int = 2
) -> PlainMaskDecoder:
    """A tiny decoder with seeded weights and batch norms that do something."""
    torch.manual_seed(seed)
    decoder = PlainMaskDecoder(spec, out_indices=taps, num_queries=6, num_classes=5, num_blocks=blocks).eval()
    for lateral in decoder.laterals:
        assert isinstance(lateral, LateralProjection)
        lateral.norm.running_mean.normal_()
        lateral.norm.running_var.uniform_(0.5, 2)
    return decoder


@pytest.mark.parametrize(("patch_size", "factor"), [(8, 2), (14, 2), (16, 4)])
@torch.no_grad()
def test_masks_have_the_resolution_that_the_patch_size_sets(
    make_encoder: Callable[..., VisionTransformer], patch_size: int, factor: int
) -> None:
    encoder = make_encoder(patch_size=patch_size)
    features = encoder(torch.rand(2, 3, 2 * patch_size, 3 * patch_size), [1, 3])
    mask_logits, class_logits = make_decoder(encoder.spec)(features)
    assert mask_logits.shape == (2, 6, 2 * factor, 3 * factor)
    assert class_logits.shape == (2, 6, 5 + 1)


@torch.no_grad()
def test_a_picture_in_a_batch_gets_the_answer_it_gets_alone(tiny_encoder: VisionTransformer) -> None:
    decoder = make_decoder(tiny_encoder.spec)
    images = torch.rand(3, 3, 16, 24)
    batched = decoder(tiny_encoder(images, [1, 3]))
    for row in range(3):
        alone = decoder(tiny_encoder(images[row : row + 1], [1, 3]))
        torch.testing.assert_close(batched[0][row], alone[0][0], **MASKS)
        torch.testing.assert_close(batched[1][row], alone[1][0], **CLASSES)


@torch.no_grad()
def test_one_decoder_does_not_change_features_seen_by_the_next(tiny_encoder: VisionTransformer) -> None:
    first, second = (make_decoder(tiny_encoder.spec, seed=seed) for seed in (1, 2))
    features = tiny_encoder(torch.rand(2, 3, 16, 24), [1, 3])
    second_alone = second(features)
    before = {index: tokens.clone() for index, tokens in features.lateral_features.items()}
    first(features)
    first.forward_masked(features, [1.0, 0.5])
    assert all(torch.equal(features.tokens(index), tokens) for index, tokens in before.items())
    for after, alone in zip(second(features), second_alone, strict=True):
        torch.testing.assert_close(after, alone, atol=0, rtol=0)


@torch.no_grad()
def test_a_decoder_keeps_nothing_between_pictures(tiny_encoder: VisionTransformer) -> None:
    decoder = make_decoder(tiny_encoder.spec)
    features = tiny_encoder(torch.rand(1, 3, 16, 24), [1, 3])
    first = decoder(features)
    decoder(tiny_encoder(torch.rand(2, 3, 32, 16), [1, 3]))
    for again, before in zip(decoder(features), first, strict=True):
        torch.testing.assert_close(again, before, atol=0, rtol=0)


@torch.no_grad()
def test_the_order_of_out_indices_does_not_matter(tiny_encoder: VisionTransformer) -> None:
    features = tiny_encoder(torch.rand(1, 3, 16, 24), [0, 1, 3])
    forward, backward = (make_decoder(tiny_encoder.spec, taps=taps)(features)[0] for taps in ((1, 3), (3, 1)))
    torch.testing.assert_close(forward, backward, atol=0, rtol=0)


@torch.no_grad()
def test_every_tapped_level_reaches_the_answer(tiny_encoder: VisionTransformer) -> None:
    decoder = make_decoder(tiny_encoder.spec)
    features = tiny_encoder(torch.rand(1, 3, 16, 24), [1, 3])
    answer = decoder(features)[1]
    for index in (1, 3):
        changed = dict(features.lateral_features) | {index: features.tokens(index) + torch.randn(1, 9, 16)}
        assert not torch.allclose(decoder(EncoderFeatures(features.spec, features.grid_size, changed))[1], answer)


@pytest.mark.parametrize("variances", [(1e-12,), (1e-5,), (1.0,), (1e8,), (1e-12, 1.0, 1e8)], ids=str)
@torch.no_grad()
def test_folding_a_level_changes_nothing_whatever_its_variances(variances: tuple[float, ...]) -> None:
    lateral = LateralProjection(24).eval()
    for tensor in (lateral.norm.weight, lateral.norm.bias, lateral.norm.running_mean, lateral.scale):
        assert tensor is not None
        tensor.normal_()
    assert lateral.norm.running_var is not None
    lateral.norm.running_var.copy_(torch.tensor(variances).repeat(24 // len(variances)) * torch.rand(24).add(0.5))
    folded = FoldedLateralProjection(lateral)
    tokens = torch.randn(2, 9, 24)
    before, after = lateral(tokens), folded(tokens)
    exact = lateral.double()(tokens.double())
    largest = exact.abs().max().item()
    torch.testing.assert_close(after.double(), exact, atol=1e-5 * largest, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-5 * largest, rtol=0)


@torch.no_grad()
def test_a_decoder_answers_the_same_with_its_laterals_folded(tiny_encoder: VisionTransformer) -> None:
    decoder = make_decoder(tiny_encoder.spec)
    features = tiny_encoder(torch.rand(2, 3, 16, 24), [1, 3])
    before = decoder(features)
    decoder.fold_laterals()
    assert all(isinstance(lateral, FoldedLateralProjection) for lateral in decoder.laterals)
    for ours, theirs in zip(decoder(features), before, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-5)


@torch.no_grad()
def test_folding_twice_is_folding_once(tiny_encoder: VisionTransformer) -> None:
    decoder = make_decoder(tiny_encoder.spec)
    features = tiny_encoder(torch.rand(1, 3, 16, 24), [1, 3])
    decoder.fold_laterals()
    once = decoder(features)
    weights = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    decoder.fold_laterals()
    assert decoder.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in decoder.state_dict().items())
    for ours, theirs in zip(decoder(features), once, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_folding_leaves_no_norm_behind(tiny_encoder: VisionTransformer) -> None:
    decoder = make_decoder(tiny_encoder.spec)
    decoder.fold_laterals()
    assert not [name for name in decoder.laterals.state_dict() if ".norm." in name]


def test_a_tap_outside_the_encoder_is_refused_when_building(tiny_encoder: VisionTransformer) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.3 of tiny"):
        make_decoder(tiny_encoder.spec, taps=(1, 4))


@torch.no_grad()
def test_masked_attention_that_is_annealed_away_equals_the_plain_pass(tiny_encoder: VisionTransformer) -> None:
    decoder = make_decoder(tiny_encoder.spec)
    features = tiny_encoder(torch.rand(2, 3, 16, 24), [1, 3])
    masks, classes = decoder.forward_masked(features, [0.0, 0.0])[-1]
    plain_masks, plain_classes = decoder(features)
    torch.testing.assert_close(masks, plain_masks, **MASKS)
    torch.testing.assert_close(classes, plain_classes, **CLASSES)


@pytest.mark.parametrize(("probability", "sees_patches"), [(1.0, False), (0.0, True)])
@torch.no_grad()
def test_a_query_without_a_mask_sees_patches_only_where_its_row_was_reopened(
    tiny_encoder: VisionTransformer, probability: float, sees_patches: bool
) -> None:
    decoder = make_decoder(tiny_encoder.spec, blocks=1)
    last = decoder.mask_head[4]
    last.weight.zero_()
    last.bias.zero_()  # every mask logit is 0, which is not positive: nothing may be attended to
    features = tiny_encoder(torch.rand(1, 3, 16, 24), [1, 3])
    changed = {index: tokens.clone() for index, tokens in features.lateral_features.items()}
    for tokens in changed.values():
        tokens[:, tiny_encoder.spec.num_prefix_tokens :] += torch.randn(1, 6, 16)
    other = EncoderFeatures(features.spec, features.grid_size, changed)
    answers = [decoder.forward_masked(f, [probability])[-1][1] for f in (features, other)]
    assert torch.equal(*answers) is not sees_patches


@torch.no_grad()
def test_masked_attention_needs_one_probability_per_block(tiny_encoder: VisionTransformer) -> None:
    features = tiny_encoder(torch.rand(1, 3, 16, 24), [1, 3])
    with pytest.raises(ValueError, match="shorter"):
        make_decoder(tiny_encoder.spec).forward_masked(features, [1.0])
