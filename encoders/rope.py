"""Rotary position embedding over a patch grid, as in DINOv3 (used by its encoder and by PMT's decoder)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Rope = tuple[Tensor, Tensor]
"""(cos, sin), each [N, head_dim] float32; row n belongs to patch n in row-major order."""


def rope_frequencies(head_dim: int, theta: float = 100.0, device: torch.device | str | None = None) -> Tensor:
    """[head_dim / 4] float32: 1 / theta^(4i / head_dim), the inverse of what Meta's code calls periods.

    Raises:
        ValueError: 4 does not divide `head_dim`.
    """
    if head_dim % 4:
        raise ValueError(f"RoPE needs a head_dim that 4 divides, not {head_dim}")
    return theta ** -torch.arange(0, 1, 4 / head_dim, dtype=torch.float32, device=device)


def patch_rope(
    grid_size: tuple[int, int], head_dim: int, theta: float = 100.0, device: torch.device | str | None = None
) -> Rope:
    """The rotation of every patch of a grid.

    A patch's coordinate along an axis is 2 * (index + 0.5) / size - 1, each axis by its own size. The first half of the
    angles belongs to y and x (head_dim / 4 frequencies each, 1 / theta^(4i / head_dim)); the second half repeats it,
    since element k is rotated with element k + head_dim / 2.

    Args:
        grid_size: (grid_h, grid_w).
        head_dim: channels of one attention head, a multiple of 4.
        theta: base of the frequencies.

    Returns:
        (cos, sin), each [grid_h * grid_w, head_dim] float32.
    """
    frequencies = rope_frequencies(head_dim, theta, device)
    y, x = (2 * (torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size - 1 for size in grid_size)
    coordinates = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)  # [N, 2]
    angles = (2 * math.pi * coordinates[:, :, None] * frequencies).flatten(1).tile(2)
    return angles.cos(), angles.sin()


def apply_rope(tokens: Tensor, rope: Rope) -> Tensor:
    """Rotate the last N tokens; those before them (CLS, registers, queries) have no position and stay.

    Args:
        tokens: [B, heads, T, head_dim] with T >= N.
        rope: (cos, sin) of N patches.

    Returns:
        The same shape and dtype; half-precision tokens are rotated in float32, as Meta's code does, and rounded once.
    """
    cos, sin = rope
    split = tokens.shape[-2] - cos.shape[0]
    prefix, patches = tokens[..., :split, :], tokens[..., split:, :]
    first, second = patches.chunk(2, dim=-1)
    rotated = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((prefix, rotated.to(tokens.dtype)), dim=-2)
