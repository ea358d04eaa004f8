"""DINOv2 (arXiv 2304.07193), with and without registers (arXiv 2309.16588): sizes, and published names to ours."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from encoders.key_map import CheckpointError, KeyMap
from encoders.vit import ViTConfig

SIZES: dict[int, tuple[str, int]] = {
    384: ("vits14", 6),
    768: ("vitb14", 12),
    1024: ("vitl14", 16),
    1536: ("vitg14", 24),
}
"""Width to (size name, attention heads)."""


def matches_hugging_face(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of `transformers`' Dinov2Model or Dinov2WithRegistersModel."""
    return "embeddings.patch_embeddings.projection.weight" in keys


def matches_timm(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are timm's names of a ViT with registers and a patch-only position embedding."""
    return "patch_embed.proj.weight" in keys and "reg_token" in keys and "pos_embed" in keys


def from_hugging_face(
    weights: Mapping[str, Tensor], *, num_heads: int | None = None, position_grid: tuple[int, int] | None = None
) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Read a Hugging Face checkpoint (with or without registers, GELU or SwiGLU).

    Args:
        weights: names as saved; a head's and the mask token's are not expected.
        num_heads: only for sizes that were never published.
        position_grid: only for positions that were resampled to a grid that is not square.

    Returns:
        (config, weights in our names).

    Raises:
        CheckpointError: names are missing or left over.
    """
    keys = KeyMap(weights, ignore=("embeddings.mask_token",))
    patch_weight = keys.take("embeddings.patch_embeddings.projection.weight")
    cls_token, positions = keys.take("embeddings.cls_token"), keys.take("embeddings.position_embeddings")
    registers = keys.take_optional("embeddings.register_tokens")
    cls_token = cls_token + positions[:, :1]
    ours = {
        "patch_embed.weight": patch_weight,
        "patch_embed.bias": keys.take("embeddings.patch_embeddings.projection.bias"),
        "prefix_tokens": cls_token if registers is None else keys.join(cls_token, registers),
        "positions": positions[:, 1:],
    }
    depth = keys.count("encoder.layer.{}.norm1.weight")
    gated = "encoder.layer.0.mlp.weights_in.weight" in weights
    for i in range(depth):
        theirs, block = f"encoder.layer.{i}.", f"blocks.{i}."
        ours |= keys.copy(theirs, block, {"norm1": "norm1", "norm2": "norm2"})
        ours |= keys.fuse(
            f"{theirs}attention.attention.", ("query", "key", "value"), f"{block}attention.qkv", has_key_bias=True
        )
        ours |= keys.copy(theirs, block, {"attention.output.dense": "attention.proj"})
        mlp = (
            {"mlp.weights_in": "mlp.fc1", "mlp.weights_out": "mlp.fc2"}
            if gated
            else {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        )
        ours |= keys.copy(theirs, block, mlp)
        ours[f"{block}scale1"] = keys.take(f"{theirs}layer_scale1.lambda1")
        ours[f"{block}scale2"] = keys.take(f"{theirs}layer_scale2.lambda1")
    ours |= keys.copy("", "", {"layernorm": "norm"})
    keys.finish("DINOv2 (Hugging Face)")
    return _config(ours, depth, gated, registers, num_heads, position_grid, antialias=registers is not None), ours


def from_timm(
    weights: Mapping[str, Tensor], *, num_heads: int | None = None, position_grid: tuple[int, int] | None = None
) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Read timm's `vit_*_patch14_reg4_dinov2` (and the resampled form that PMT runs); as `from_hugging_face`."""
    keys = KeyMap(weights)
    registers = keys.take("reg_token")
    ours = {
        "prefix_tokens": keys.join(keys.take("cls_token"), registers),
        "positions": keys.take("pos_embed"),
    }
    ours |= keys.copy("", "", {"patch_embed.proj": "patch_embed", "norm": "norm"})
    depth = keys.count("blocks.{}.norm1.weight")
    same = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
    for i in range(depth):
        block = f"blocks.{i}."
        ours |= keys.copy(block, block, {name: name for name in same})
        ours |= keys.copy(block, block, {"attn.qkv": "attention.qkv", "attn.proj": "attention.proj"})
        ours[f"{block}scale1"] = keys.take(f"{block}ls1.gamma")
        ours[f"{block}scale2"] = keys.take(f"{block}ls2.gamma")
    keys.finish("DINOv2 (timm)")
    gated = ours["blocks.0.mlp.fc1.weight"].shape[0] != ours["blocks.0.mlp.fc2.weight"].shape[1]
    return _config(ours, depth, gated, registers, num_heads, position_grid, antialias=True), ours


def _config(
    ours: Mapping[str, Tensor],
    depth: int,
    gated: bool,
    registers: Tensor | None,
    num_heads: int | None,
    position_grid: tuple[int, int] | None,
    *,
    antialias: bool,
) -> ViTConfig:
    dim, _, _, patch = ours["patch_embed.weight"].shape
    size, heads = SIZES.get(dim, (f"vit{dim}", 0))
    num_registers = 0 if registers is None else registers.shape[1]
    if num_heads is None:
        num_heads = heads or max(1, dim // 64)
    num_positions = ours["positions"].shape[1]
    grid_h, grid_w = position_grid or (math.isqrt(num_positions), math.isqrt(num_positions))
    if grid_h * grid_w != num_positions:
        raise CheckpointError(f"{num_positions} position embeddings do not form a {grid_h} x {grid_w} grid")
    return ViTConfig(
        name=f"dinov2_{size}" + (f"_reg{num_registers}" if num_registers else ""),
        embed_dim=dim,
        depth=depth,
        num_heads=num_heads,
        patch_size=patch,
        mlp_dim=ours["blocks.0.mlp.fc2.weight"].shape[1],
        num_registers=num_registers,
        norm_eps=1e-6,
        gated_mlp=gated,
        position_grid=(grid_h, grid_w),
        position_antialias=antialias,
    )
