"""The teacher: a plain ViT of timm (no LayerScale, no registers, absolute positions), in our forward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from encoders.checkpoints import digest_of, read_weights
from encoders.key_map import KeyMap, fill
from encoders.vit import VisionTransformer, ViTConfig

_HALF = (0.5, 0.5, 0.5)


def load_teacher(path: str | Path) -> VisionTransformer:
    """Load timm's `vit_*_patch16_224` (its classifier is dropped), frozen, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: names are missing or left over.
    """
    config, ours = from_timm(read_weights(path))
    with torch.device("meta"):
        teacher = VisionTransformer(config, digest_of((Path(path),))[:12])
    teacher.to_empty(device="cpu")
    fill(teacher, ours, f"{path} ({config.name})")
    return teacher.eval().requires_grad_(False)


def from_timm(weights: Mapping[str, Tensor]) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Names of timm's VisionTransformer to ours; pictures are standardised by one half, as timm's "augreg" models want.

    Raises:
        CheckpointError: names are missing or left over.
    """
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
        num_heads=max(1, dim // 64),
        patch_size=ours["patch_embed.weight"].shape[-1],
        mlp_dim=ours["blocks.0.mlp.fc1.weight"].shape[0],
        norm_eps=1e-6,
        position_grid=(side, side),
        position_antialias=True,
        pixel_mean=_HALF,
        pixel_std=_HALF,
    )
    return config, ours
