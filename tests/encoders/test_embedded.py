"""Encoders inside PMT checkpoints: taken out, loaded, and equal to what PMT's decoder was given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.checkpoints import build_encoder
from encoders.embedded import embedded_encoder

Weights = dict[str, Tensor]
ReadGolden = Callable[[str], tuple[dict[str, Any], Weights]]
PREFIX = "backbone.encoder.backbone."


def decoder_input(weights: Weights, features: list[Tensor]) -> Tensor:
    """What PMT makes of the encoder's normed levels (its batch norm, then its lateral projections, summed)."""
    total = torch.zeros(1)
    for i, feature in enumerate(features):
        bn = {name: weights[f"backbone.bn.{i}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")}
        level = F.batch_norm(feature.transpose(1, 2), **bn, eps=1e-5).transpose(1, 2)
        first, second = (
            {kind: weights[f"backbone.decoder.lateral_projections.{i}.{n}.{kind}"] for kind in ("weight", "bias")}
            for n in (0, 2)
        )
        level = level + F.linear(F.gelu(F.linear(level, **first)), **second)
        total = total + level * weights[f"backbone.decoder.scalers.{i}"]
    return total


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
@torch.no_grad()
def test_the_encoder_of_a_video_model_gives_what_pmt_gives_its_decoder(read_golden: ReadGolden, family: str) -> None:
    facts, expected = read_golden(f"video_{family}_tiny.io")
    weights = read_golden(f"video_{family}_tiny.ckpt")[1]
    inner = embedded_encoder(weights)
    assert inner is not None
    config = facts["config"]
    encoder = build_encoder(inner, revision="r", num_heads=config["heads"])
    assert encoder.spec.name.startswith(family)
    frames = expected["frames_u8"][[0, 5]].float() / 255
    height, width = facts["padded_hw"]
    padded = torch.tensor(encoder.pixel_mean).view(1, 3, 1, 1).repeat(2, 1, height, width)
    padded[:, :, : frames.shape[2], : frames.shape[3]] = frames
    features = encoder(padded, config["interaction"])
    tokens = decoder_input(weights, [features.tokens(index) for index in config["interaction"]])
    for row, frame in enumerate((0, 5)):
        after_queries = expected[f"tokens_in.{frame}"][config["num_q"] :]
        torch.testing.assert_close(tokens[row], after_queries, atol=5e-5, rtol=0)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_an_image_model_before_stripping_is_read_alike(read_golden: ReadGolden, family: str) -> None:
    weights = read_golden(f"video_{family}_tiny.ckpt")[1]
    image = {name.replace("backbone.", "network.", 1): tensor for name, tensor in weights.items()}
    from_video, from_image = embedded_encoder(weights), embedded_encoder(image)
    assert from_video is not None and from_image is not None
    assert from_video.keys() == from_image.keys()
    assert all(torch.equal(from_video[name], from_image[name]) for name in from_video)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_an_image_model_without_its_encoder_has_none(read_golden: ReadGolden, family: str) -> None:
    weights = read_golden(f"image_{family}_tiny.ckpt")[1]
    assert "network.encoder.pixel_mean" in weights
    assert embedded_encoder(weights) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ("patch_embed.cls_token", "blocks.11.norm1.weight", "norm.bias"),
            ("embeddings.cls_token", "layer.11.norm1.weight", "norm.bias"),
        ),
        (("pos_embed", "patch_embed.proj.weight"), ("pos_embed", "patch_embed.proj.weight")),
    ],
)
def test_names_become_those_of_hugging_face_for_dinov3_and_stay_timms_for_dinov2(
    names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    whole = [f"{PREFIX}{name}" for name in names] + ["backbone.encoder.pixel_mean", "backbone.bn.0.bias"]
    inner = embedded_encoder({name: torch.ones(1) for name in whole})
    assert inner is not None
    assert tuple(inner) == expected


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_every_name_of_the_published_size_has_its_place(golden_dir: Path, family: str) -> None:
    listed = json.loads((golden_dir.parent / f"video_l_{family}_keys.json").read_text())
    weights = {name: torch.empty(shape, device="meta") for name, shape in listed}
    inner = embedded_encoder(weights)
    assert inner is not None
    encoder = build_encoder(inner, revision="r")
    assert encoder.spec.name == {"dinov2": "dinov2_vitl16_reg4", "dinov3": "dinov3_vitl16"}[family]
    assert (encoder.spec.depth, encoder.spec.num_heads) == (24, 16)
    assert encoder.config.position_grid == {"dinov2": (40, 40), "dinov3": None}[family]
