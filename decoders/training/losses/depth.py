"""Depth: scale-invariant log loss (Eigen et al., arXiv 1406.2283) and a gradient term."""

from __future__ import annotations

import torch
from torch import Tensor


def depth_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant log error plus the error of log-depth differences between neighbours.

    Args:
        predicted: [B, 1, h, w] metres. target: [B, h, w] metres, NaN = unknown.
    """
    known = target.isfinite()
    difference = torch.where(known, predicted[:, 0].log() - torch.where(known, target, 1.0).log(), 0.0)
    count = known.sum().clamp_min(1)
    mean = difference.sum() / count
    scale_invariant = ((difference**2).sum() / count - 0.85 * mean**2).clamp_min(1e-8).sqrt()
    gradient = predicted.new_zeros(())
    for dim in (1, 2):
        both = known.narrow(dim, 1, known.shape[dim] - 1) & known.narrow(dim, 0, known.shape[dim] - 1)
        gradient = gradient + (difference.diff(dim=dim).abs() * both).sum() / both.sum().clamp_min(1)
    return scale_invariant + 0.5 * gradient
