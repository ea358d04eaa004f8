"""DINOv2 (arXiv 2304.07193), with and without registers (arXiv 2309.16588): sizes, and published names to ours.

The same weights give the same features under any of the names. Two details differ between the published codes:

- Positions on another grid than their own. Here, as in Hugging Face's code, they are resized bicubically to
  the grid's size, with antialiasing where the model has registers. timm antialiases without registers too, and Meta's
  hub, without registers, passes a scale of (grid + 0.1) / 37 instead of the size; neither is followed. Tokens of a
  trained ViT-S/14 differ by up to 5 % (timm, smaller grids) and 1.4 % (Meta's hub) from those here.
- The position of CLS. It is added to the CLS token here; timm's files with registers have it added already.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from encoders.key_map import CheckpointError, KeyMap, LoadOptions
from encoders.resample import resample_patch_kernel, resample_positions
from encoders.vit import ViTConfig

SIZES: dict[int, tuple[str, int]] = {384: ("vits", 6), 768: ("vitb", 12), 1024: ("vitl", 16), 1536: ("vitg", 24)}
"""Width to (size name, attention heads)."""


def matches_hugging_face(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of `transformers`' Dinov2Model or Dinov2WithRegistersModel."""
    return "embeddings.patch_embeddings.projection.weight" in keys


def matches_original(keys: Mapping[str, Tensor]) -> bool:
    """Whether these are Meta's names or timm's (a patch projection and learned positions)."""
    return "patch_embed.proj.weight" in keys and "pos_embed" in keys


def from_hugging_face(weights: Mapping[str, Tensor], options: LoadOptions) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Read a Hugging Face checkpoint (with or without registers, GELU or SwiGLU).

    Args:
        weights: names as saved; a head's are not expected, the mask token is not used.
        options: the caller's.

    Returns:
        (config, weights in our names).

    Raises:
        CheckpointError: names are missing or left over, or a shape does not fit.
    """
    keys = KeyMap(weights, ignore=("embeddings.mask_token",))
    ours = keys.copy("embeddings.", "", {"patch_embeddings.projection": "patch_embed"})
    cls_token, positions = (keys.take(f"embeddings.{name}", ndim=3) for name in ("cls_token", "position_embeddings"))
    registers = keys.take_optional("embeddings.register_tokens")
    ours |= _split_positions(keys, cls_token, registers, positions)
    mlp = {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    if keys.any_ends("mlp.weights_in.weight"):
        mlp = {"mlp.weights_in": "mlp.fc1", "mlp.weights_out": "mlp.fc2"}
    depth = keys.count("encoder.layer.{}.norm1.weight")
    for i in range(depth):
        theirs, block = f"encoder.layer.{i}.", f"blocks.{i}."
        ours |= keys.copy(theirs, block, mlp | {"norm1": "norm1", "norm2": "norm2"})
        ours |= keys.stack(f"{theirs}attention.attention.", ("query", "key", "value"), f"{block}attention.qkv")
        ours |= keys.copy(theirs, block, {"attention.output.dense": "attention.proj"})
        ours[f"{block}scale1"] = keys.take(f"{theirs}layer_scale1.lambda1")
        ours[f"{block}scale2"] = keys.take(f"{theirs}layer_scale2.lambda1")
    ours |= keys.copy("", "", {"layernorm": "norm"})
    keys.finish("DINOv2 (Hugging Face)")
    return _adapt(ours, depth, registers, options)


def from_original(weights: Mapping[str, Tensor], options: LoadOptions) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Read Meta's `dinov2_vit*14[_reg4]_pretrain` or timm's `vit_*_patch14[_reg4]_dinov2`; as `from_hugging_face`.

    Meta's has `register_tokens`, a mask token and, in the giant, `w12` and `w3`; timm's `reg_token`, and then positions
    for the patches only.
    """
    keys = KeyMap(weights, ignore=("mask_token",))
    ours = keys.copy("", "", {"patch_embed.proj": "patch_embed", "norm": "norm"})
    cls_token, positions = keys.take("cls_token", ndim=3), keys.take("pos_embed", ndim=3)
    patches_only = "reg_token" in weights or _grid_of(positions.shape[1], options) is not None
    registers: Tensor | None
    if patches_only:
        registers = keys.take("reg_token", ndim=3)
        ours |= {"prefix_tokens": keys.join((cls_token, registers), dim=1), "positions": positions}
    else:
        registers = keys.take_optional("register_tokens")
        ours |= _split_positions(keys, cls_token, registers, positions)
    mlp = {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    if keys.any_ends("mlp.w12.weight"):
        mlp = {"mlp.w12": "mlp.fc1", "mlp.w3": "mlp.fc2"}
    depth = keys.count("blocks.{}.norm1.weight")
    for i in range(depth):
        block = f"blocks.{i}."
        ours |= keys.copy(block, block, mlp | {"norm1": "norm1", "norm2": "norm2"})
        ours |= keys.copy(block, block, {"attn.qkv": "attention.qkv", "attn.proj": "attention.proj"})
        ours[f"{block}scale1"] = keys.take(f"{block}ls1.gamma")
        ours[f"{block}scale2"] = keys.take(f"{block}ls2.gamma")
    keys.finish("DINOv2 (Meta or timm)")
    return _adapt(ours, depth, registers, options)


def _split_positions(keys: KeyMap, cls_token: Tensor, registers: Tensor | None, positions: Tensor) -> dict[str, Tensor]:
    """Prefix tokens and patch positions, from positions that begin with that of CLS."""
    joined = keys.join((cls_token, positions), dim=1).float()  # so that half-precision files are not rounded twice
    prefix = joined[:, :1] + joined[:, 1:2]
    return {
        "prefix_tokens": prefix if registers is None else keys.join((prefix, registers), dim=1),
        "positions": joined[:, 2:],
    }


def _grid_of(num_positions: int, options: LoadOptions) -> tuple[int, int] | None:
    side = math.isqrt(num_positions)
    grid = options.position_grid or (side, side)
    return grid if math.prod(grid) == num_positions else None


def _adapt(
    ours: dict[str, Tensor], depth: int, registers: Tensor | None, options: LoadOptions
) -> tuple[ViTConfig, dict[str, Tensor]]:
    """Resample kernel and positions as asked, and tell the config.

    The name tells both: ``dinov2_vitl16_reg4`` is the published ViT-L/14 with registers at patch size 16, and
    ``dinov2_vitl16_reg4_grid40x40`` the same with its positions resampled to 40 x 40 first.
    """
    positions = ours["positions"].float()
    num_positions = positions.shape[1]
    grid = _grid_of(num_positions, options)
    if grid is None:
        height, width = options.position_grid or [math.isqrt(num_positions)] * 2
        raise CheckpointError(f"{num_positions} position embeddings do not form a {height} x {width} grid")
    kernel = resample_patch_kernel(ours["patch_embed.weight"].float(), options.patch_size)
    dim, patch = kernel.shape[0], kernel.shape[-1]
    mlp_dim = ours["blocks.0.mlp.fc2.weight"].numel() // dim
    size, heads = SIZES.get(dim, (f"vit{dim}_patch", max(1, dim // 64)))
    num_registers = 0 if registers is None else registers.shape[1]
    name = f"dinov2_{size}{patch}" + (f"_reg{num_registers}" if num_registers else "")
    if options.resample_grid is not None:
        positions = resample_positions(positions, grid, options.resample_grid, antialias=num_registers > 0)
        grid = options.resample_grid
        name += f"_grid{grid[0]}x{grid[1]}"
    config = ViTConfig(
        name=name,
        embed_dim=dim,
        depth=depth,
        num_heads=options.num_heads or heads,
        patch_size=patch,
        mlp_dim=mlp_dim,
        num_registers=num_registers,
        norm_eps=1e-6,
        gated_mlp=ours["blocks.0.mlp.fc1.weight"].numel() == 2 * mlp_dim * dim,
        position_grid=grid,
        position_antialias=num_registers > 0,
    )
    return config, ours | {"patch_embed.weight": kernel, "positions": positions}
