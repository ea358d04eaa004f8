"""Cross-entropy of masks at points."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def mask_cross_entropy(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """The mean over the points of each mask: [M].

    Args:
        logits: [M, P].
        truth: [M, P] in [0, 1].
        weight: [M, P], 0 where nothing is known.
    """
    each = F.binary_cross_entropy_with_logits(logits, truth, weight, reduction="none")
    return each.sum(dim=1) / weight.sum(dim=1).clamp_min(1)


def pairwise_mask_cross_entropy(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """The same for every pair of a query and an object: logits [Q, P], truth [M, P], weight [P] to [Q, M]."""
    positive, negative = F.softplus(-logits) * weight, F.softplus(logits) * weight
    return (positive @ truth.T + negative @ (1 - truth).T) / weight.sum().clamp_min(1)
