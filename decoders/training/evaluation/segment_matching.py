"""Which predicted segment is which true one: the rule behind panoptic quality, of pictures and of video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from decoders.labels import LabelSet
from decoders.training.evaluation.measure import ClassFigures, Figures, mean_of, quotient

Overlaps = Counter[tuple[int, int]]
"""Pixels by (predicted segment id, true segment id); 0 is void and unlabelled."""


class SegmentMatches(NamedTuple):
    """What matching found, by class: [K] each.

    Attributes:
        iou_sum: of the matched pairs.
        true_positives, false_positives, false_negatives: segments.
    """

    iou_sum: NDArray[np.float64]
    true_positives: NDArray[np.float64]
    false_positives: NDArray[np.float64]
    false_negatives: NDArray[np.float64]


def count_overlaps(predicted_map: NDArray[np.int32], true_map: NDArray[np.int32]) -> Overlaps:
    """Pixels of every pair of segments of two maps of equal shape."""
    pairs = predicted_map.astype(np.int64) << 32 | true_map.astype(np.int64)
    keys, counts = np.unique(pairs, return_counts=True)
    return Counter({(key >> 32, key & 0xFFFFFFFF): n for key, n in zip(keys.tolist(), counts.tolist(), strict=True)})


def match_segments(
    overlaps: Overlaps,
    predicted_labels: Mapping[int, int],
    true_labels: Mapping[int, int],
    crowd_ids: frozenset[int],
    num_labels: int,
) -> SegmentMatches:
    """Match segments as panopticapi does (Kirillov et al., arXiv 1801.00868).

    A predicted and a true segment of the same class match if their IoU is over one half, where a prediction's
    unlabelled pixels don't count against it; a prediction mostly on unlabelled pixels or crowds of its class is
    pardoned. Segments that have no pixel are not there.

    Args:
        overlaps: of the picture, or summed over the frames of a stretch of video.
        predicted_labels, true_labels: ``{segment id: label_id}``.
        crowd_ids: true segments that stand for a group.
        num_labels: K.
    """
    predicted_areas, true_areas = Counter[int](), Counter[int]()
    for (predicted, true), shared in overlaps.items():
        predicted_areas[predicted] += shared
        true_areas[true] += shared
    iou_sum, hits, mistakes, misses = (np.zeros(num_labels) for _ in range(4))
    matched_predictions, matched_truths = set(), set()
    for (predicted, true), shared in overlaps.items():
        if predicted == 0 or true not in true_labels or true in crowd_ids:
            continue
        label = true_labels[true]
        if predicted_labels[predicted] != label:
            continue
        iou = shared / (predicted_areas[predicted] + true_areas[true] - shared - overlaps[predicted, 0])
        if iou > 0.5:
            hits[label] += 1
            iou_sum[label] += iou
            matched_predictions.add(predicted)
            matched_truths.add(true)
    for true, label in true_labels.items():
        if true_areas[true] and true not in matched_truths and true not in crowd_ids:
            misses[label] += 1
    for predicted, label in predicted_labels.items():
        if not predicted_areas[predicted] or predicted in matched_predictions:
            continue
        own_crowds = sum(overlaps[predicted, crowd] for crowd in crowd_ids if true_labels[crowd] == label)
        if (overlaps[predicted, 0] + own_crowds) / predicted_areas[predicted] <= 0.5:
            mistakes[label] += 1
    return SegmentMatches(iou_sum, hits, mistakes, misses)


def quality_figures(total: SegmentMatches, label_set: LabelSet, prefix: str = "") -> Figures:
    """PQ, SQ and RQ in percent, means over the classes that occur, and the same over things and over stuff."""
    quality, segmentation, recognition, present = _class_quality(total)
    things = np.array([label.is_thing for label in label_set.labels])
    figures = {}
    for name, values in (("PQ", quality), ("SQ", segmentation), ("RQ", recognition)):
        for group, which in (("", present), ("_things", present & things), ("_stuff", present & ~things)):
            figures[f"{prefix}{name}{group}"] = 100 * mean_of(values, which)
    return figures


def quality_per_class(total: SegmentMatches, label_set: LabelSet) -> ClassFigures:
    """PQ, SQ and RQ in percent and the numbers of segments, for every class that occurs."""
    quality, segmentation, recognition, present = _class_quality(total)
    return {
        label_set[k].name: {
            "PQ": 100 * float(quality[k]),
            "SQ": 100 * float(segmentation[k]),
            "RQ": 100 * float(recognition[k]),
            "true_positives": float(total.true_positives[k]),
            "false_positives": float(total.false_positives[k]),
            "false_negatives": float(total.false_negatives[k]),
        }
        for k in np.flatnonzero(present).tolist()
    }


def _class_quality(
    total: SegmentMatches,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """PQ, SQ, RQ and whether the class occurs, [K] each; a class without a match has SQ 0, as in panopticapi."""
    weight = total.true_positives + 0.5 * total.false_positives + 0.5 * total.false_negatives
    segmentation = np.nan_to_num(quotient(total.iou_sum, total.true_positives))
    recognition = quotient(total.true_positives, weight)
    return quotient(total.iou_sum, weight), segmentation, recognition, weight > 0
