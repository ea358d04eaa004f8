"""The plain ViT of timm (arXiv 2010.11929): learned positions, no LayerScale, no registers; its names to ours.

Pictures are standardised by one half, as timm's "augreg" weights want it; a directory's ``preprocessor_config.json``
may name another mean and deviation (DeiT has ImageNet's).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from encoders.key_map import CheckpointError, KeyMap, LoadOptions
from encoders.vit import ViTConfig

_HALF = (0.5, 0.5, 0.5)


def matches_timm(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of timm's VisionTransformer without LayerScale."""
    has_scale = any(name.endswith("ls1.gamma") for name in keys)
    return "patch_embed.proj.weight" in keys and "pos_embed" in keys and not has_scale


def from_timm(weights: Mapping[str, Tensor], options: LoadOptions) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Read timm's `vit_*_patch*_*`; its classifier is dropped.

    Args:
        weights: names as saved.
        options: the caller's; the patch size and the positions' grid are the file's own.

    Returns:
        (config, weights in our names).

    Raises:
        CheckpointError: names are missing or left over, or another patch size or grid is asked for.
    """
    if (options.patch_size, options.position_grid, options.resample_grid) != (None, None, None):
        raise CheckpointError("a plain ViT runs at its own patch size and grid of positions; leave both out")
    keys = KeyMap(weights, ignore=("head.weight", "head.bias"))
    positions = keys.take("pos_embed", ndim=3)
    ours = {
        "prefix_tokens": keys.take("cls_token", ndim=3) + positions[:, :1],
        "positions": positions[:, 1:].contiguous(),
    }
    ours |= keys.copy("", "", {"patch_embed.proj": "patch_embed", "norm": "norm"})
    depth = keys.count("blocks.{}.norm1.weight")
    dim = positions.shape[-1]
    for i in range(depth):
        block = f"blocks.{i}."
        names = {"norm1": "norm1", "norm2": "norm2", "attn.qkv": "attention.qkv", "attn.proj": "attention.proj"}
        ours |= keys.copy(block, block, names | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"})
        ours |= {f"{block}scale1": torch.ones(dim), f"{block}scale2": torch.ones(dim)}
    keys.finish("ViT (timm)")
    side = math.isqrt(positions.shape[1] - 1)
    config = ViTConfig(
        name=f"vit{dim}_patch{ours['patch_embed.weight'].shape[-1]}",
        embed_dim=dim,
        depth=depth,
        num_heads=options.num_heads or max(1, dim // 64),
        patch_size=ours["patch_embed.weight"].shape[-1],
        mlp_dim=ours["blocks.0.mlp.fc1.weight"].shape[0],
        norm_eps=1e-6,
        position_grid=(side, side),
        position_antialias=True,
        pixel_mean=_HALF,
        pixel_std=_HALF,
    )
    return config, ours
