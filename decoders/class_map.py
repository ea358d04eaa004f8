"""From per-class score maps to a map of classes, in bounded memory however many classes and pixels there are."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from decoders.labels import LabelSet
from decoders.results import Segment, SemanticResult
from encoders.geometry import ImageGeometry

_CHUNK_PIXELS = 1 << 22
"""Upsampled score pixels held at once (16 MiB of float32)."""


def best_class(scores: Tensor, geometry: ImageGeometry) -> Tensor:
    """The best class of every output pixel.

    Args:
        scores: [K, *scaled_size], from `ImageGeometry.to_scaled`; upsampled bilinearly a few classes at a time.
        geometry: where the picture lies in the input.

    Returns:
        [H, W] int32 class indices, H, W = `geometry.output_size`; among equals the first.
    """
    height, width = geometry.output_size
    best = torch.full((height, width), -math.inf, device=scores.device)
    winner = torch.zeros((height, width), dtype=torch.int32, device=scores.device)
    chunk = max(1, _CHUNK_PIXELS // (height * width))
    for start in range(0, len(scores), chunk):
        maps = geometry.scaled_to_output(scores[start : start + chunk])
        for number, map_ in enumerate(maps, start):
            better = map_ > best
            torch.fmax(best, map_, out=best)
            winner.masked_fill_(better, number)
    return winner


def class_confidence(scores: Tensor) -> Tensor:
    """How sure a map is of each class: its mean share of the scores where it wins, or its best share if it never does.

    Args:
        scores: [K, h, w], not negative.

    Returns:
        [K] in [0, 1].
    """
    total = scores.sum(dim=0).clamp_(min=1e-12)
    top, winner = scores.max(dim=0)
    areas = torch.bincount(winner.flatten(), minlength=len(scores))
    sums = torch.bincount(winner.flatten(), (top / total).flatten().double(), minlength=len(scores))
    best = torch.stack([(map_ / total).amax() for map_ in scores])  # one by one: a few maps at a time
    return torch.where(areas > 0, (sums / areas.clamp(min=1)).float(), best).clamp(max=1)


def semantic_result(class_map: Tensor, confidence: Tensor, label_set: LabelSet) -> SemanticResult:
    """Name the classes of a map.

    Args:
        class_map: [H, W] int32 class indices.
        confidence: [K], the score reported for each class, in [0, 1].
        label_set: the K classes.
    """
    ids = (class_map + 1).cpu().numpy()
    areas = np.bincount(ids.ravel(), minlength=len(label_set) + 1)
    boxes = ndimage.find_objects(ids, max_label=len(label_set))
    segments = []
    for label_id in np.argsort(-areas[1:], kind="stable").tolist():
        box = boxes[label_id]
        if box is None:
            break  # the classes that follow are absent as well
        rows, columns = box
        label = label_set[label_id]
        segments.append(
            Segment(
                segment_id=label_id + 1,
                label_id=label_id,
                label=label.name,
                is_thing=label.is_thing,
                score=float(confidence[label_id]),
                area=int(areas[label_id + 1]),
                bbox=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
            )
        )
    return SemanticResult(ids, tuple(segments))
