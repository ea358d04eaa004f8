"""Reading maps at points, and choosing the points where a mask is undecided (PointRend, arXiv 1912.08193).

Mask2Former (arXiv 2112.01527, section 3.3) computes its mask losses at such points and not on whole masks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_POINTS, _CELLS = 112 * 112, 256 * 256
"""Mask2Former's points, and the cells of the masks that it takes them from."""
_OVERSAMPLE, _IMPORTANCE = 3, 0.75


def num_points(height: int, width: int) -> int:
    """How many points stand for a map of so many cells: Mask2Former's part of them, and never more than its 12544."""
    return min(_POINTS, max(1, round(height * width * _POINTS / _CELLS)))


def read_points(maps: Tensor, points: Tensor) -> Tensor:
    """Maps at points: bilinearly, beyond the centres of the outermost cells what is there; of masks the nearest pixel.

    Args:
        maps: [M, h, w], numbers or bool.
        points: [P, 2], for all maps, or [M, P, 2]: (x, y), in [0, 1] over the map.

    Returns:
        [M, P] float32.
    """
    grid = 2 * points - 1
    mode = "nearest" if maps.dtype == torch.bool else "bilinear"
    if points.ndim == 2:
        found = F.grid_sample(maps[None].float(), grid[None, None], mode, padding_mode="border", align_corners=False)
        return found[0, :, 0]
    found = F.grid_sample(maps[:, None].float(), grid[:, None], mode, padding_mode="border", align_corners=False)
    return found[:, 0, 0]


def random_points(count: tuple[int, ...], extent: tuple[float, float], device: torch.device) -> Tensor:
    """Points spread evenly over the part of a map that holds picture: [*count, 2].

    Args:
        count: how many.
        extent: (down, across), the part of the map's sides that the picture covers from the top left; in (0, 1].
        device: where they are wanted.
    """
    return torch.rand((*count, 2), device=device) * torch.tensor((extent[1], extent[0]), device=device)


def undecided_points(logits: Tensor, num_points: int, extent: tuple[float, float]) -> Tensor:
    """Points for each mask: three quarters where its logit is nearest 0 among thrice as many, the others anywhere.

    Args:
        logits: [M, h, w].
        num_points: P.
        extent: as in `random_points`.

    Returns:
        [M, P, 2], without gradient.
    """
    with torch.no_grad():
        candidates = random_points((len(logits), _OVERSAMPLE * num_points), extent, logits.device)
        doubt = -read_points(logits, candidates).abs()
        chosen = doubt.topk(int(_IMPORTANCE * num_points), dim=1).indices
        undecided = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        anywhere = random_points((len(logits), num_points - undecided.shape[1]), extent, logits.device)
        return torch.cat((undecided, anywhere), dim=1)
