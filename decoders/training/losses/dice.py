"""Dice loss of masks at points (V-Net, arXiv 1606.04797, with one added above and below, as in Mask2Former)."""

from __future__ import annotations

from torch import Tensor


def dice_loss(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """One minus the overlap of each mask: [M].

    Args:
        logits: [M, P].
        truth: [M, P] in [0, 1].
        weight: [M, P], 0 where nothing is known.
    """
    probability = logits.sigmoid() * weight
    total = probability.sum(dim=1) + (truth * weight).sum(dim=1)
    return 1 - (2 * (probability * truth).sum(dim=1) + 1) / (total + 1)


def pairwise_dice_loss(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """The same for every pair of a query and an object: logits [Q, P], truth [M, P], weight [P] to [Q, M]."""
    probability = logits.sigmoid() * weight
    total = probability.sum(dim=1)[:, None] + (truth * weight).sum(dim=1)[None]
    return 1 - (2 * probability @ truth.T + 1) / (total + 1)
