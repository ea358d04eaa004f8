"""Set prediction after Mask2Former (arXiv 2112.01527): match queries with objects, then class, mask and dice losses.

An example is a clip of T frames; a still picture has one. A query is matched with an object for the whole clip, so that
it learns to keep to it. Everything about masks is computed at points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from decoders.training.losses.dice import dice_loss, pairwise_dice_loss
from decoders.training.losses.mask_cross_entropy import mask_cross_entropy, pairwise_mask_cross_entropy
from decoders.training.losses.points import num_points, random_points, read_points, undecided_points

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT, NO_OBJECT_WEIGHT = 2.0, 5.0, 5.0, 0.1


@dataclass(frozen=True)
class MaskTarget:
    """The objects of one example, in the pixels of the network's input.

    Attributes:
        labels: [M] int64.
        masks: [T, M, H, W] bool; an object that is out of a frame has an empty mask there.
        known: [T, H, W] bool, pixels that are picture and whose class is known.
        extents: of each frame, (down, across), the part of the input that the picture covers.
    """

    labels: Tensor
    masks: Tensor
    known: Tensor
    extents: tuple[tuple[float, float], ...]

    def to(self, device: torch.device) -> MaskTarget:
        """The same on a device."""
        return MaskTarget(self.labels.to(device), self.masks.to(device), self.known.to(device), self.extents)


def set_loss(mask_logits: Tensor, class_logits: Tensor, targets: Sequence[MaskTarget]) -> dict[str, Tensor]:
    """The weighted losses of one prediction, by name; their sum is what is to be made small.

    Args:
        mask_logits: [B, T, Q, h, w] over the network's input.
        class_logits: [B, T, Q, K + 1], "no object" last.
        targets: one for each example.
    """
    num_frames, num_classes = mask_logits.shape[1], class_logits.shape[-1] - 1
    class_weights = class_logits.new_ones(num_classes + 1)
    class_weights[-1] = NO_OBJECT_WEIGHT
    num_masks = max(1, sum(len(target.labels) for target in targets))
    wanted = torch.full(class_logits.shape[:1] + class_logits.shape[2:3], num_classes, device=class_logits.device)
    mask_loss = dice = mask_logits.new_zeros(())
    # unbound, not indexed: each index would give a gradient as large as the whole batch
    for b, (masks, target) in enumerate(zip(mask_logits.unbind(), targets, strict=True)):
        queries, objects = match_target(masks.detach(), class_logits[b].detach(), target)
        wanted[b, queries] = target.labels[objects]
        if len(queries):
            logits, truth, weight = _at_undecided_points(masks[:, queries], target, objects)
            mask_loss = mask_loss + mask_cross_entropy(logits, truth, weight).sum()
            dice = dice + dice_loss(logits, truth, weight).sum()
    each_frame = wanted[:, None].expand(-1, num_frames, -1)
    return {
        "class": CLASS_WEIGHT * F.cross_entropy(class_logits.flatten(0, 2), each_frame.flatten(), class_weights),
        "mask": MASK_WEIGHT * mask_loss / num_masks,
        "dice": DICE_WEIGHT * dice / num_masks,
    }


def match_target(mask_logits: Tensor, class_logits: Tensor, target: MaskTarget) -> tuple[Tensor, Tensor]:
    """The cheapest assignment of queries to objects over all frames of one example.

    Args:
        mask_logits: [T, Q, h, w].
        class_logits: [T, Q, K + 1].
        target: M objects.

    Returns:
        (queries, objects), two index vectors of equal length min(Q, M).
    """
    count = num_points(*mask_logits.shape[-2:])
    logits, truth, weight = [], [], []
    for t, extent in enumerate(target.extents):
        points = random_points((count,), extent, mask_logits.device)
        logits.append(read_points(mask_logits[t], points))
        truth.append(read_points(target.masks[t], points))
        weight.append(read_points(target.known[t][None], points)[0])
    probabilities = class_logits.float().softmax(dim=-1).mean(dim=0)
    return match(torch.cat(logits, dim=1), probabilities, torch.cat(truth, dim=1), torch.cat(weight), target.labels)


def match(
    mask_logits: Tensor, probabilities: Tensor, truth: Tensor, weight: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The cheapest assignment at given points.

    Args:
        mask_logits: [Q, P]. probabilities: [Q, K + 1]. truth: [M, P] in [0, 1]. weight: [P]. labels: [M].

    Returns:
        As `match_target`.
    """
    cost = (
        -CLASS_WEIGHT * probabilities[:, labels]
        + MASK_WEIGHT * pairwise_mask_cross_entropy(mask_logits, truth, weight)
        + DICE_WEIGHT * pairwise_dice_loss(mask_logits, truth, weight)
    )
    queries, objects = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(queries).to(labels.device), torch.from_numpy(objects).to(labels.device)


def _at_undecided_points(logits: Tensor, target: MaskTarget, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logits, truth, weight) of matched pairs at points of all frames, [M, T * P]; logits are [T, M, h, w]."""
    parts = []
    for t, extent in enumerate(target.extents):
        points = undecided_points(logits[t], num_points(*logits.shape[-2:]), extent)
        known = target.known[t][None].expand(len(objects), -1, -1)
        parts.append(
            (read_points(logits[t], points), read_points(target.masks[t, objects], points), read_points(known, points))
        )
    picked, truth, weight = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return picked, truth, weight
