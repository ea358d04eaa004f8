"""Rotary positions: the published angles, and which tokens they touch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.rope import apply_rope, patch_rope, rope_frequencies

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]


@pytest.mark.parametrize("case", ["image_dinov2_tiny", "image_dinov3_tiny"])
def test_angles_equal_pmt(read_golden: ReadGolden, case: str) -> None:
    facts, expected = read_golden(f"{case}.io")
    config = facts["config"]
    height, width = config["img_size"]
    cos, sin = patch_rope((height // 16, width // 16), config["dim"] // config["heads"])
    torch.testing.assert_close(cos, expected["rope_cos"], atol=1e-6, rtol=0)
    torch.testing.assert_close(sin, expected["rope_sin"], atol=1e-6, rtol=0)


def test_angles_follow_the_formula_with_y_before_x() -> None:
    grid_h, grid_w, head_dim = 2, 3, 8
    cos, sin = patch_rope((grid_h, grid_w), head_dim)
    for row in range(grid_h):
        for column in range(grid_w):
            y, x = 2 * (row + 0.5) / grid_h - 1, 2 * (column + 0.5) / grid_w - 1
            half = [2 * math.pi * axis * 100 ** -(4 * i / head_dim) for axis in (y, x) for i in range(head_dim // 4)]
            angles = torch.tensor(half + half)
            torch.testing.assert_close(cos[row * grid_w + column], angles.cos(), atol=1e-5, rtol=0)
            torch.testing.assert_close(sin[row * grid_w + column], angles.sin(), atol=1e-5, rtol=0)


def test_tokens_before_the_patches_are_not_rotated() -> None:
    tokens = torch.randn(2, 3, 5 + 6, 8)
    rotated = apply_rope(tokens, patch_rope((2, 3), 8))
    torch.testing.assert_close(rotated[:, :, :5], tokens[:, :, :5], atol=0, rtol=0)
    assert (rotated[:, :, 5:] != tokens[:, :, 5:]).any(dim=-1).all()


def test_rotation_pairs_the_two_halves_and_keeps_lengths() -> None:
    cos, sin = patch_rope((3, 3), 8)
    tokens = torch.randn(1, 1, 9, 8)
    rotated = apply_rope(tokens, (cos, sin))
    first, second = tokens[..., :4], tokens[..., 4:]
    torch.testing.assert_close(rotated[..., :4], first * cos[:, :4] - second * sin[:, :4])
    torch.testing.assert_close(rotated[..., 4:], second * cos[:, :4] + first * sin[:, :4])
    torch.testing.assert_close(rotated.norm(dim=-1), tokens.norm(dim=-1))


def test_rotation_keeps_the_dtype_of_the_tokens() -> None:
    assert apply_rope(torch.randn(1, 1, 4, 8, dtype=torch.bfloat16), patch_rope((2, 2), 8)).dtype == torch.bfloat16


def test_frequencies_are_the_inverse_of_metas_periods() -> None:
    head_dim = 64
    periods = 100.0 ** (2 * torch.arange(head_dim // 4) / (head_dim // 2))
    torch.testing.assert_close(1 / rope_frequencies(head_dim), periods)


def test_head_dim_that_four_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="not 6"):
        patch_rope((2, 2), 6)
