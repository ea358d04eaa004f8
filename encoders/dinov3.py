"""DINOv3 ViT (arXiv 2508.10104): RoPE, four registers, no key bias; published names to ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from encoders.key_map import CheckpointError, KeyMap
from encoders.vit import ViTConfig

SIZES: dict[int, tuple[str, int]] = {384: ("vits16", 6), 768: ("vitb16", 12), 1024: ("vitl16", 16)}
"""Width to (size name, attention heads)."""


def matches_hugging_face(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of `transformers`' DINOv3ViTModel (with or without its `model.` prefix)."""
    return "embeddings.patch_embeddings.weight" in keys and any("layer.0.attention.q_proj.weight" in k for k in keys)


def from_hugging_face(
    weights: Mapping[str, Tensor], *, num_heads: int | None = None, position_grid: tuple[int, int] | None = None
) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Read a Hugging Face checkpoint.

    Args:
        weights: names as saved.
        num_heads: only for sizes that were never published.
        position_grid: must be None; RoPE learns no positions.

    Returns:
        (config, weights in our names); the absent key bias becomes zeros.

    Raises:
        CheckpointError: names are missing or left over.
    """
    if position_grid is not None:
        raise CheckpointError(f"position_grid {position_grid} was given, but DINOv3 has no learned positions")
    keys = KeyMap(weights, ignore=("embeddings.mask_token",))
    registers = keys.take("embeddings.register_tokens")
    ours = {"prefix_tokens": keys.join(keys.take("embeddings.cls_token"), registers)}
    ours |= keys.copy("", "", {"embeddings.patch_embeddings": "patch_embed", "norm": "norm"})
    stem = "model.layer." if "model.layer.0.norm1.weight" in weights else "layer."
    depth = keys.count(stem + "{}.norm1.weight")
    for i in range(depth):
        ours |= block_from_hugging_face(keys, f"{stem}{i}.", f"blocks.{i}.")
    keys.finish("DINOv3 (Hugging Face)")
    dim, _, _, patch = ours["patch_embed.weight"].shape
    size, heads = SIZES.get(dim, (f"vit{dim}", 0))
    config = ViTConfig(
        name=f"dinov3_{size}",
        embed_dim=dim,
        depth=depth,
        num_heads=num_heads or heads or max(1, dim // 64),
        patch_size=patch,
        mlp_dim=ours["blocks.0.mlp.fc1.weight"].shape[0],
        num_registers=registers.shape[1],
        norm_eps=1e-5,
    )
    return config, ours


def block_from_hugging_face(keys: KeyMap, theirs: str, ours: str) -> dict[str, Tensor]:
    """One Transformer block below the two prefixes; PMT's decoder names its blocks in the same way."""
    block = keys.copy(theirs, ours, {"norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attention.proj"})
    block |= keys.fuse(
        f"{theirs}attention.", ("q_proj", "k_proj", "v_proj"), f"{ours}attention.qkv", has_key_bias=False
    )
    block |= keys.copy(theirs, ours, {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"})
    block[f"{ours}scale1"] = keys.take(f"{theirs}layer_scale1.lambda1")
    block[f"{ours}scale2"] = keys.take(f"{theirs}layer_scale2.lambda1")
    return block
