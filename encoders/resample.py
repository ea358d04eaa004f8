"""Fitting a ViT's learned positions and patch kernels to another grid or patch size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.key_map import CheckpointError


def resample_positions(
    positions: Tensor, source: tuple[int, int], grid_size: tuple[int, int], *, antialias: bool
) -> Tensor:
    """Resize a grid of position embeddings bicubically.

    Args:
        positions: [1, N, C], patches only, row-major over `source`.
        source: (grid_h, grid_w) that the positions were learned on.
        grid_size: (grid_h, grid_w) wanted.
        antialias: as the checkpoint's own code does it (DINOv2: no; DINOv2 with registers, timm: yes).

    Returns:
        [1, grid_h * grid_w, C] in the dtype of `positions`; computed in float32.
    """
    if grid_size == source:
        return positions
    grid = positions.float().transpose(1, 2).unflatten(2, source)
    grid = F.interpolate(grid, size=grid_size, mode="bicubic", align_corners=False, antialias=antialias)
    return grid.flatten(2).transpose(1, 2).to(positions.dtype)


def resample_patch_kernel(kernel: Tensor, patch_size: int | None) -> Tensor:
    """Resize a patch projection so that a patch resized alike gives (in least squares) the same token.

    The pseudo-inverse rule of FlexiViT (arXiv 2212.08013, section 3.4), which the PMT code applies through timm.

    Args:
        kernel: [C, 3, p, p].
        patch_size: the new side; None: as it is.

    Returns:
        [C, 3, patch_size, patch_size] in the dtype of `kernel`; computed in float32.

    Raises:
        CheckpointError: it is no kernel of square patches.
    """
    if kernel.ndim != 4 or kernel.shape[-1] != kernel.shape[-2] or not kernel.numel():
        raise CheckpointError(f"a patch projection must be [C, 3, p, p], not {list(kernel.shape)}")
    old = kernel.shape[-1]
    if patch_size is None or old == patch_size:
        return kernel
    size = (patch_size, patch_size)
    basis = torch.eye(old * old, device=kernel.device).view(old * old, 1, old, old)
    resize = F.interpolate(basis, size=size, mode="bicubic", align_corners=False, antialias=True).flatten(1)
    # resize: [old², new²], one row per basis picture; a resized picture is `resize.T @ picture`.
    weights = torch.linalg.pinv(resize.double()).to(torch.float32)  # [new², old²]
    resized = kernel.float().flatten(2) @ weights.T
    return resized.unflatten(2, size).to(kernel.dtype)
