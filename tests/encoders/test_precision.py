"""Half precision: bfloat16 and float16 encoders agree with float32 as far as their types allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from encoders.rope import apply_rope, patch_rope
from encoders.vit import VisionTransformer

MakeEncoder = Callable[..., VisionTransformer]
HALVES = [torch.bfloat16, torch.float16]
KINDS: dict[str, dict[str, Any]] = {
    "dinov2": {"num_registers": 0, "position_grid": (4, 4), "norm_eps": 1e-6},
    "dinov2_registers_gated": {"num_registers": 4, "position_grid": (4, 4), "position_antialias": True}
    | {"norm_eps": 1e-6, "gated_mlp": True},
    "dinov3": {"num_registers": 4, "norm_eps": 1e-5},
    "dinov3_gated": {"num_registers": 4, "norm_eps": 1e-5, "gated_mlp": True},
}
DEPTH = 12


def make(make_encoder: MakeEncoder, kind: str) -> VisionTransformer:
    """Twelve blocks whose layers keep the size of their input, as trained ones roughly do."""
    encoder = make_encoder(embed_dim=64, num_heads=4, depth=DEPTH, mlp_dim=128, **KINDS[kind])
    for parameter in encoder.parameters():
        if parameter.ndim in (2, 4):
            parameter.div_(parameter.std() * parameter[0].numel() ** 0.5)
    return encoder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@torch.no_grad()
def test_every_token_points_where_the_token_of_float32_does(
    make_encoder: MakeEncoder, kind: str, dtype: torch.dtype
) -> None:
    """The angle between the two stays below 4 eps (0.03 for bfloat16, 0.004 for float16): 1 - cosine below 8 eps².

    A block rounds each token some ten times, by up to eps / 2 each and at random, and adds to a stream that keeps most
    of what it was; twelve such blocks were seen to turn a token by up to 2.2 eps, here and at the real size of ViT-S.
    """
    images = torch.randint(0, 256, (2, 3, 40, 24), dtype=torch.uint8)
    exact = make(make_encoder, kind)(images, range(DEPTH), [DEPTH - 1])
    rounded = make(make_encoder, kind).to(dtype)(images, range(DEPTH), [DEPTH - 1])
    assert rounded.hidden_state(DEPTH - 1).dtype == dtype
    assert rounded.hidden_state(DEPTH - 1).abs().max() < torch.finfo(torch.float16).max / 100
    for index in range(DEPTH):
        assert rounded.tokens(index).dtype == dtype
        cosines = F.cosine_similarity(rounded.tokens(index).double(), exact.tokens(index).double(), dim=-1)
        assert (1 - cosines).max() <= 8 * torch.finfo(dtype).eps ** 2


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rotation_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    rope = patch_rope((3, 5), 16)
    assert all(part.dtype == torch.float32 for part in rope)
    tokens = torch.randn(2, 3, 5 + 15, 16).to(dtype)
    assert torch.equal(apply_rope(tokens, rope), apply_rope(tokens.float(), rope).to(dtype))


def test_rotations_stay_float32_in_an_encoder_of_half_precision(make_encoder: MakeEncoder) -> None:
    encoder = make(make_encoder, "dinov3").to(torch.bfloat16)
    seen: list[torch.Tensor] = []
    encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.extend(args[1]))
    encoder(torch.rand(1, 3, 16, 24), [0])
    assert [part.dtype for part in seen] == [torch.float32, torch.float32]
    assert all(torch.equal(ours, exact) for ours, exact in zip(seen, patch_rope((2, 3), 16), strict=True))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_learned_positions_are_resampled_in_float32_and_rounded_once(
    make_encoder: MakeEncoder, dtype: torch.dtype
) -> None:
    encoder = make(make_encoder, "dinov2").to(dtype)
    exact = make(make_encoder, "dinov2")
    exact.load_state_dict(encoder.state_dict())
    encoder(torch.rand(1, 3, 16, 24), [0])
    exact(torch.rand(1, 3, 16, 24), [0])
    assert torch.equal(encoder._position_cache[2, 3], exact._position_cache[2, 3].to(dtype))
