"""Cross-entropy of classes, of pixels or of whole pictures."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from decoders.training.data.samples import IGNORE


def class_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over all that has a class; 0 where nothing has.

    Args:
        logits: [B, K] or [B, K, h, w].
        labels: [B] or [B, h, w] int64, `IGNORE` where there is no class.
    """
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp_min(1)
