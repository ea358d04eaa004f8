"""DINOv3 ViT (arXiv 2508.10104): RoPE, four registers, no key bias; published names to ours.

Meta's files carry the periods of RoPE, rounded to bfloat16; they are checked against the exact ones that Hugging Face's
and timm's code (and ours) compute, and not used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from encoders.key_map import CheckpointError, KeyMap, LoadOptions
from encoders.resample import resample_patch_kernel
from encoders.rope import rope_frequencies
from encoders.vit import ViTConfig

SIZES: dict[tuple[int, bool], tuple[str, str, int]] = {
    (192, False): ("polyhead_tiny", "", 3),
    (384, False): ("dinov3_vits", "", 6),
    (384, True): ("dinov3_vits", "plus", 6),
    (768, False): ("dinov3_vitb", "", 12),
    (1024, False): ("dinov3_vitl", "", 16),
    (1024, True): ("dinov3_vitl", "plus", 16),
    (1280, True): ("dinov3_vith", "plus", 20),
    (4096, True): ("dinov3_vit7b", "", 32),
}
"""(width, whether the MLP is gated) to (name before and after the patch size, attention heads)."""


def matches_hugging_face(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of `transformers`' DINOv3ViTModel (with or without its `model.` prefix)."""
    return "embeddings.patch_embeddings.weight" in keys and any("layer.0.attention.q_proj.weight" in k for k in keys)


def matches_meta(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of Meta's DinoVisionTransformer of DINOv3."""
    return "patch_embed.proj.weight" in keys and ("storage_tokens" in keys or "rope_embed.periods" in keys)


def matches_timm(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of timm's Eva without learned positions."""
    return "patch_embed.proj.weight" in keys and "blocks.0.gamma_1" in keys and "pos_embed" not in keys


def from_hugging_face(weights: Mapping[str, Tensor], options: LoadOptions) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Read a Hugging Face checkpoint.

    Args:
        weights: names as saved; the mask token is not used.
        options: the caller's; no grid, since RoPE learns no positions.

    Returns:
        (config, weights in our names); absent biases become zeros.

    Raises:
        CheckpointError: names are missing or left over, or a shape does not fit.
    """
    keys = KeyMap(weights, ignore=("embeddings.mask_token",))
    registers = keys.take("embeddings.register_tokens", ndim=3)
    ours = {"prefix_tokens": keys.join((keys.take("embeddings.cls_token", ndim=3), registers), dim=1)}
    ours |= keys.copy("", "", {"embeddings.patch_embeddings": "patch_embed", "norm": "norm"})
    stem = "model.layer." if "model.layer.0.norm1.weight" in weights else "layer."
    depth = keys.count(stem + "{}.norm1.weight")
    gated, has_bias = keys.any_ends("mlp.gate_proj.weight"), keys.any_ends("attention.q_proj.bias")
    for i in range(depth):
        ours |= block_from_hugging_face(keys, f"{stem}{i}.", f"blocks.{i}.", gated=gated, has_bias=has_bias)
    keys.finish("DINOv3 (Hugging Face)")
    return _adapt(ours, depth, gated, registers, options)


def from_meta(weights: Mapping[str, Tensor], options: LoadOptions) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Read Meta's `dinov3_vit*16*_pretrain_*`; as `from_hugging_face`.

    The query, key and value bias is multiplied by its mask, as at run time in Meta's code. The mask token and the norm
    for local crops serve training only.
    """
    keys = KeyMap(weights, ignore=("mask_token", "local_cls_norm.weight", "local_cls_norm.bias"))
    registers = keys.take("storage_tokens", ndim=3)
    ours = {"prefix_tokens": keys.join((keys.take("cls_token", ndim=3), registers), dim=1)}
    ours |= keys.copy("", "", {"patch_embed.proj": "patch_embed", "norm": "norm"})
    periods = keys.take("rope_embed.periods", ndim=1)
    depth = keys.count("blocks.{}.norm1.weight")
    gated, has_bias = keys.any_ends("mlp.w3.weight"), keys.any_ends("attn.qkv.bias")
    masked = keys.any_ends("attn.qkv.bias_mask")
    for i in range(depth):
        ours |= _block_from_meta(keys, f"blocks.{i}.", gated=gated, has_bias=has_bias, masked=masked)
    keys.finish("DINOv3 (Meta)")
    config, ours = _adapt(ours, depth, gated, registers, options)
    if options.num_heads is None:  # a head's width is four times the number of periods
        config = dataclasses.replace(config, num_heads=max(1, config.embed_dim // max(1, 4 * len(periods))))
    _check_periods(periods, config)
    return config, ours


def from_timm(weights: Mapping[str, Tensor], options: LoadOptions) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Read timm's `vit_*_patch16_dinov3[_qkvb]` (class Eva); as `from_hugging_face`."""
    keys = KeyMap(weights)
    registers = keys.take("reg_token", ndim=3)
    ours = {"prefix_tokens": keys.join((keys.take("cls_token", ndim=3), registers), dim=1)}
    ours |= keys.copy("", "", {"patch_embed.proj": "patch_embed", "norm": "norm"})
    depth = keys.count("blocks.{}.norm1.weight")
    gated, has_bias = keys.any_ends("mlp.fc1_g.weight"), keys.any_ends("attn.q_bias")
    for i in range(depth):
        ours |= _block_from_timm(keys, f"blocks.{i}.", gated=gated, has_bias=has_bias)
    keys.finish("DINOv3 (timm)")
    return _adapt(ours, depth, gated, registers, options)


def block_from_hugging_face(
    keys: KeyMap, theirs: str, ours: str, *, gated: bool = False, has_bias: bool = True
) -> dict[str, Tensor]:
    """One Transformer block below the two prefixes; PMT's decoder names its blocks in the same way.

    Args:
        keys: of the checkpoint.
        theirs, ours: prefixes of the block.
        gated: whether the MLP has a gate.
        has_bias: whether query and value have a bias (the key has none).
    """
    block = keys.copy(theirs, ours, {"norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attention.proj"})
    names = ("q_proj", "k_proj", "v_proj")
    block |= keys.stack(
        f"{theirs}attention.", names, f"{ours}attention.qkv", without_bias=("k_proj",) if has_bias else names
    )
    if gated:
        block |= keys.stack(f"{theirs}mlp.", ("gate_proj", "up_proj"), f"{ours}mlp.fc1")
    else:
        block |= keys.copy(theirs, ours, {"mlp.up_proj": "mlp.fc1"})
    block |= keys.copy(theirs, ours, {"mlp.down_proj": "mlp.fc2"})
    block[f"{ours}scale1"] = keys.take(f"{theirs}layer_scale1.lambda1")
    block[f"{ours}scale2"] = keys.take(f"{theirs}layer_scale2.lambda1")
    return block


def _block_from_meta(keys: KeyMap, block: str, *, gated: bool, has_bias: bool, masked: bool) -> dict[str, Tensor]:
    ours = keys.copy(block, block, {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.proj"})
    weight = keys.take(f"{block}attn.qkv.weight", ndim=2)
    bias = keys.take(f"{block}attn.qkv.bias", ndim=1) if has_bias else weight.new_zeros(len(weight))
    if masked:
        mask = keys.take(f"{block}attn.qkv.bias_mask", ndim=1)
        if len(mask) == len(bias):
            bias = bias.float() * mask.float()
        else:
            keys.refuse(f"{block}attn.qkv.bias_mask is {list(mask.shape)}")
        if not bias.is_meta and not bias.isfinite().all():
            keys.refuse(f"{block}attn.qkv.bias times its mask is not finite (the model was never initialised)")
    ours |= {f"{block}attention.qkv.weight": weight, f"{block}attention.qkv.bias": bias}
    if gated:
        ours |= keys.stack(f"{block}mlp.", ("w1", "w2"), f"{block}mlp.fc1")
        ours |= keys.copy(block, block, {"mlp.w3": "mlp.fc2"})
    else:
        ours |= keys.copy(block, block, {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"})
    ours[f"{block}scale1"] = keys.take(f"{block}ls1.gamma")
    ours[f"{block}scale2"] = keys.take(f"{block}ls2.gamma")
    return ours


def _block_from_timm(keys: KeyMap, block: str, *, gated: bool, has_bias: bool) -> dict[str, Tensor]:
    ours = keys.copy(block, block, {"norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.proj"})
    weight = keys.take(f"{block}attn.qkv.weight", ndim=2)
    bias = weight.new_zeros(len(weight))
    if has_bias:
        query_bias, value_bias = (keys.take(f"{block}attn.{name}_bias", ndim=1) for name in "qv")
        bias = keys.join((query_bias, query_bias.new_zeros(len(query_bias)), value_bias), dim=0)
    ours |= {f"{block}attention.qkv.weight": weight, f"{block}attention.qkv.bias": bias}
    if gated:
        ours |= keys.stack(f"{block}mlp.", ("fc1_g", "fc1_x"), f"{block}mlp.fc1")
        ours |= keys.copy(block, block, {"mlp.fc2": "mlp.fc2"})
    else:
        ours |= keys.copy(block, block, {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"})
    ours[f"{block}scale1"] = keys.take(f"{block}gamma_1")
    ours[f"{block}scale2"] = keys.take(f"{block}gamma_2")
    return ours


def _check_periods(periods: Tensor, config: ViTConfig) -> None:
    head_dim = config.embed_dim // config.num_heads
    if len(periods) != head_dim // 4:
        raise CheckpointError(
            f"rope_embed.periods has {len(periods)} entries, but {config.num_heads} heads of {config.name} need "
            f"{head_dim // 4}"
        )
    if not periods.is_meta:
        ratio = periods.float() * rope_frequencies(head_dim, config.rope_theta)
        if not (ratio - 1).abs().max() <= 2**-8:  # bfloat16 keeps 8 bits
            raise CheckpointError(f"rope_embed.periods are not the powers of {config.rope_theta:g} that DINOv3 uses")


def _adapt(
    ours: dict[str, Tensor], depth: int, gated: bool, registers: Tensor, options: LoadOptions
) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Resample the kernel if asked, and tell the config."""
    for grid in (options.position_grid, options.resample_grid):
        if grid is not None:
            raise CheckpointError(f"a grid of positions was given, {grid}, but DINOv3 has no learned positions")
    kernel = resample_patch_kernel(ours["patch_embed.weight"].float(), options.patch_size)
    dim, patch = kernel.shape[0], kernel.shape[-1]
    unknown = f"dinov3_vit{dim}_patch", "plus" if gated else "", max(1, dim // 64)
    before, after, heads = SIZES.get((dim, gated), unknown)
    config = ViTConfig(
        name=f"{before}{patch}{after}",
        embed_dim=dim,
        depth=depth,
        num_heads=options.num_heads or heads,
        patch_size=patch,
        mlp_dim=ours["blocks.0.mlp.fc2.weight"].numel() // dim,
        num_registers=registers.shape[1],
        norm_eps=1e-5,
        gated_mlp=gated,
    )
    return config, ours | {"patch_embed.weight": kernel}
