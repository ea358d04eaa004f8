"""The first step of every encoder: pictures of any kind to standardised float32."""

from __future__ import annotations

import torch
from torch import Tensor

Standardisation = tuple[tuple[float, float, float], tuple[float, float, float]]
"""(mean, standard deviation) of RGB in [0, 1]."""


def standardise(images: Tensor, patch_size: int, standardisation: Standardisation) -> Tensor:
    """Check pictures and standardise them, in float32 whatever the encoder's type.

    Args:
        images: [B, 3, H, W] RGB, uint8 in [0, 255] or float in [0, 1].
        patch_size: what H and W must be multiples of.
        standardisation: mean and standard deviation.

    Returns:
        [B, 3, H, W] float32.

    Raises:
        ValueError: wrong shape.
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % patch_size or images.shape[3] % patch_size:
        shape = list(images.shape)
        raise ValueError(f"images must be [B, 3, H, W] with H and W multiples of {patch_size}, not {shape}")
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    mean, std = (torch.tensor(values, device=pixels.device).view(1, 3, 1, 1) for values in standardisation)
    return (pixels - mean) / std
