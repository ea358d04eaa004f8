"""Training a panoptic head: set prediction after Mask2Former (arXiv 2112.01527), PMT's annealed masked attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from decoders.panoptic import PanopticDecoder
from decoders.training.data.samples import PanopticSample
from decoders.training.feature_cache import FeatureCache
from decoders.training.schedule import Schedule, train_steps
from decoders.training.views import View
from encoders.geometry import ImageGeometry

CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT, NO_OBJECT_WEIGHT = 2.0, 5.0, 5.0, 0.1


@dataclass(frozen=True)
class MaskTarget:
    """The truth of one view at the resolution of the mask logits.

    Attributes:
        labels: [M] int64.
        masks: [M, h, w] float16, the part of each cell that the segment covers.
        valid: [h, w] bool, cells that hold picture (not padding).
    """

    labels: Tensor
    masks: Tensor
    valid: Tensor


def mask_target(sample: PanopticSample, view: View, geometry: ImageGeometry, size: tuple[int, int]) -> MaskTarget:
    """Cut, fit and pool a sample's segments to the mask logits' resolution; crowds and specks are left out."""
    segment_map, segment_labels, crowd_ids = sample.read_segments()
    ids = view.cut(segment_map)
    labels, masks = [], []
    for segment_id, label_id in segment_labels.items():
        if segment_id in crowd_ids:
            continue
        mask = _place(ids == segment_id, geometry, size)
        if mask.sum() >= 1:
            labels.append(label_id)
            masks.append(mask)
    covered = _place(np.ones(ids.shape, dtype=bool), geometry, size)
    stacked = torch.stack(masks) if masks else torch.zeros(0, *size)
    return MaskTarget(torch.tensor(labels, dtype=torch.int64), stacked.half(), covered > 0.5)


def _place(mask: NDArray[np.bool_], geometry: ImageGeometry, size: tuple[int, int]) -> Tensor:
    scaled = F.adaptive_avg_pool2d(torch.from_numpy(mask.astype(np.float32))[None, None], geometry.scaled_size)
    padded = torch.zeros(1, 1, *geometry.input_size)
    padded[..., : geometry.scaled_size[0], : geometry.scaled_size[1]] = scaled
    return F.adaptive_avg_pool2d(padded, size)[0, 0]


def set_loss(mask_logits: Tensor, class_logits: Tensor, targets: Sequence[MaskTarget]) -> Tensor:
    """The loss of one prediction: match queries to segments, then class, mask and dice terms.

    Args:
        mask_logits: [B, Q, h, w].
        class_logits: [B, Q, K + 1].
        targets: one per picture, at the same resolution.
    """
    num_classes = class_logits.shape[-1] - 1
    class_weights = class_logits.new_ones(num_classes + 1)
    class_weights[-1] = NO_OBJECT_WEIGHT
    num_masks = max(1, sum(len(target.labels) for target in targets))
    wanted = torch.full(class_logits.shape[:2], num_classes, dtype=torch.int64)
    mask_loss = dice_loss = mask_logits.new_zeros(())
    for b, target in enumerate(targets):
        logits = mask_logits[b][:, target.valid]  # [Q, points]
        truth = target.masks.float()[:, target.valid]  # [M, points]
        queries, segments = match(logits.detach(), class_logits[b].detach(), truth, target.labels)
        wanted[b, queries] = target.labels[segments]
        picked, truth = logits[queries], truth[segments]
        mask_loss = mask_loss + F.binary_cross_entropy_with_logits(picked, truth, reduction="none").mean(-1).sum()
        dice_loss = dice_loss + _dice(picked.sigmoid(), truth).sum()
    class_loss = F.cross_entropy(class_logits.flatten(0, 1), wanted.flatten(), class_weights)
    return CLASS_WEIGHT * class_loss + (MASK_WEIGHT * mask_loss + DICE_WEIGHT * dice_loss) / num_masks


def match(mask_logits: Tensor, class_logits: Tensor, truth: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cheapest assignment of queries to segments.

    Args:
        mask_logits: [Q, points]. class_logits: [Q, K + 1]. truth: [M, points] in [0, 1]. labels: [M].

    Returns:
        (queries, segments), two index vectors of equal length min(Q, M).
    """
    points = truth.shape[1]
    positive, negative = F.softplus(-mask_logits), F.softplus(mask_logits)
    mask_cost = (positive @ truth.T + negative @ (1 - truth).T) / points
    probability = mask_logits.sigmoid()
    dice_cost = 1 - (2 * probability @ truth.T + 1) / (probability.sum(1)[:, None] + truth.sum(1)[None] + 1)
    class_cost = -class_logits.softmax(-1)[:, labels]
    cost = CLASS_WEIGHT * class_cost + MASK_WEIGHT * mask_cost + DICE_WEIGHT * dice_cost
    queries, segments = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(queries), torch.from_numpy(segments)


def _dice(probability: Tensor, truth: Tensor) -> Tensor:
    return 1 - (2 * (probability * truth).sum(-1) + 1) / (probability.sum(-1) + truth.sum(-1) + 1)


def train_panoptic(
    decoder: PanopticDecoder,
    cache: FeatureCache,
    features: NDArray[np.float16],
    targets: Sequence[MaskTarget],
    schedule: Schedule,
    *,
    report: Callable[[int, float], None],
) -> None:
    """Train a head in place on cached features.

    Every block's prediction is supervised. Masked attention starts everywhere and is annealed away, so that at the end
    the head runs as it will be served, without masks.

    Args:
        decoder: the head.
        cache: that made `features`.
        features: [views, levels, P + N, C].
        targets: one per view.
        schedule: of the optimisation.
        report: told (step, loss).
    """
    num_blocks = len(decoder.mask_decoder.blocks)

    def loss_of(rows: list[int], progress: float) -> Tensor:
        probability = max(0.0, 1 - progress / 0.7) ** 0.9
        batch = cache.features(features, rows)
        with torch.autocast(batch.device_type, torch.bfloat16):
            predictions = decoder.mask_decoder.forward_masked(batch, [probability] * num_blocks)
        wanted = [targets[row] for row in rows]
        losses = [set_loss(masks.float(), classes.float(), wanted) for masks, classes in predictions]
        return torch.stack(losses).sum() / math.sqrt(len(losses))

    train_steps(decoder, len(targets), loss_of, schedule, report=report)
