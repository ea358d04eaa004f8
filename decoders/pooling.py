"""From a picture's tokens to one vector: CLS, the mean of the patches that lie on the picture, or both.

The mean is taken in post-processing, because only there it is known which patches are padding; until then the patch
tokens travel along as they are, on their device and in their precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoders.base import RawOutput
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry

POOLINGS = ("cls", "mean", "cls+mean")
"""What `pooled_dim` and `tokens_to_pool` understand."""


def check_has_cls(spec: EncoderSpec) -> None:
    """Make sure of a CLS token, which is the first where there are prefix tokens.

    Raises:
        ValueError: the encoder has none.
    """
    if spec.num_prefix_tokens == 0:
        raise ValueError(f"the head reads the CLS token, and {spec.name} has none")


def pooled_dim(spec: EncoderSpec, pooling: str, num_blocks: int = 1) -> int:
    """The length of a pooled vector.

    Args:
        spec: of the encoder.
        pooling: one of `POOLINGS`.
        num_blocks: whose CLS tokens are read.

    Raises:
        ValueError: there is no such pooling, or no CLS token for it.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"no pooling '{pooling}'; there are: {', '.join(POOLINGS)}")
    parts = pooling.split("+")
    if "cls" in parts:
        check_has_cls(spec)
    return spec.embed_dim * (num_blocks * ("cls" in parts) + ("mean" in parts))


def tokens_to_pool(features: EncoderFeatures, pooling: str, out_indices: Sequence[int]) -> dict[str, Tensor]:
    """The tokens that `pool` needs.

    Args:
        features: of the blocks in `out_indices`.
        pooling: one of `POOLINGS`.
        out_indices: blocks whose CLS tokens are read; the patch tokens are those of the last.

    Returns:
        Some of ``{"cls": [B, blocks * C], "patch_map": [B, grid_h, grid_w, C]}``; the latter is a view.
    """
    parts = pooling.split("+")
    tokens = {}
    if "cls" in parts:
        tokens["cls"] = torch.cat([features.prefix_tokens(index)[:, 0] for index in out_indices], dim=-1)
    if "mean" in parts:
        tokens["patch_map"] = features.patch_tokens(out_indices[-1]).unflatten(1, features.grid_size)
    return tokens


def patches_on_picture(patch_map: Tensor, geometry: ImageGeometry) -> Tensor:
    """Leave out padding; a patch that is partly on the picture stays.

    Args:
        patch_map: [grid_h, grid_w, C] over the whole input.
        geometry: where the picture lies in the input.

    Returns:
        [h, w, C], a view.
    """
    rows, columns = (
        -(-scaled * patches // whole)  # rounded up
        for scaled, patches, whole in zip(geometry.scaled_size, patch_map.shape, geometry.input_size, strict=False)
    )
    return patch_map[:rows, :columns]


def pool(tokens: RawOutput, geometry: ImageGeometry) -> Tensor:
    """One picture's vector: CLS tokens first, then the mean of the patches.

    Args:
        tokens: from `tokens_to_pool`, without the batch dimension.
        geometry: where the picture lies in the input.

    Returns:
        [D] float32, as long as `pooled_dim` says, not normalised.
    """
    parts = [tokens["cls"].float()] if "cls" in tokens else []
    if "patch_map" in tokens:
        parts.append(patches_on_picture(tokens["patch_map"], geometry).float().mean(dim=(0, 1)))
    return torch.cat(parts)
