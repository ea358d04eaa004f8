"""Figures of merit: panoptic quality, and the usual depth errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decoders.labels import LabelSet


@dataclass
class PanopticQuality:
    """Panoptic quality (Kirillov et al., arXiv 1801.00868), accumulated over pictures.

    A predicted and a true segment of the same class match if their IoU is over one half, where a prediction's
    unlabelled pixels don't count against it; a prediction mostly on crowd or unlabelled pixels is pardoned.
    """

    label_set: LabelSet
    iou_sum: NDArray[np.float64] = field(init=False)
    true_positives: NDArray[np.int64] = field(init=False)
    false_positives: NDArray[np.int64] = field(init=False)
    false_negatives: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        size = len(self.label_set)
        self.iou_sum = np.zeros(size)
        self.true_positives, self.false_positives, self.false_negatives = (np.zeros(size, np.int64) for _ in range(3))

    def add(
        self,
        predicted_map: NDArray[np.int32],
        predicted_labels: Mapping[int, int],
        true_map: NDArray[np.int32],
        true_labels: Mapping[int, int],
        crowd_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Add one picture; both maps are [H, W] with 0 for void, the labels ``{segment id: label_id}``."""
        predicted_areas = dict(zip(*(a.tolist() for a in np.unique(predicted_map, return_counts=True)), strict=True))
        true_areas = dict(zip(*(a.tolist() for a in np.unique(true_map, return_counts=True)), strict=True))
        pairs = predicted_map.astype(np.int64) << 32 | true_map.astype(np.int64)
        keys, counts = np.unique(pairs, return_counts=True)
        overlap = {(int(k >> 32), int(k & 0xFFFFFFFF)): int(c) for k, c in zip(keys, counts, strict=True)}
        matched_predictions, matched_truths = set(), set()
        for (predicted, true), shared in overlap.items():
            if predicted == 0 or true not in true_labels or true in crowd_ids:
                continue
            label = true_labels[true]
            if predicted_labels[predicted] != label:
                continue
            union = predicted_areas[predicted] + true_areas[true] - shared - overlap.get((predicted, 0), 0)
            if shared / union > 0.5:
                self.true_positives[label] += 1
                self.iou_sum[label] += shared / union
                matched_predictions.add(predicted)
                matched_truths.add(true)
        for true, label in true_labels.items():
            if true in true_areas and true not in matched_truths and true not in crowd_ids:
                self.false_negatives[label] += 1
        for predicted, label in predicted_labels.items():
            if predicted in matched_predictions or predicted not in predicted_areas:
                continue
            pardoned = overlap.get((predicted, 0), 0) + sum(
                overlap.get((predicted, crowd), 0) for crowd in crowd_ids if true_labels[crowd] == label
            )
            if pardoned / predicted_areas[predicted] <= 0.5:
                self.false_positives[label] += 1

    def summary(self) -> dict[str, float]:
        """PQ, SQ and RQ in percent, over all classes that occur, and PQ over things and over stuff."""
        weight = self.true_positives + 0.5 * self.false_positives + 0.5 * self.false_negatives
        present = weight > 0
        quality = np.divide(self.iou_sum, weight, out=np.zeros_like(self.iou_sum), where=present)
        recognition = np.divide(self.true_positives, weight, out=np.zeros_like(self.iou_sum), where=present)
        matched = np.maximum(self.true_positives, 1)
        segmentation = self.iou_sum / matched
        things = np.array([label.is_thing for label in self.label_set.labels])

        def mean(values: NDArray[np.float64], which: NDArray[np.bool_]) -> float:
            return 100 * float(values[which].mean()) if which.any() else 0.0

        return {
            "PQ": mean(quality, present),
            "SQ": mean(segmentation, present),
            "RQ": mean(recognition, present),
            "PQ_things": mean(quality, present & things),
            "PQ_stuff": mean(quality, present & ~things),
        }


def depth_errors(predicted_m: NDArray[np.float32], true_m: NDArray[np.float32]) -> dict[str, float]:
    """AbsRel, RMSE (metres) and delta1 (part within a factor of 1.25) over the known pixels of one picture.

    Args:
        predicted_m, true_m: [H, W] metres; NaN in the truth = unknown.
    """
    known = np.isfinite(true_m)
    predicted, true = predicted_m[known], true_m[known]
    ratio = np.maximum(predicted / true, true / predicted)
    return {
        "AbsRel": float(np.mean(np.abs(predicted - true) / true)),
        "RMSE_m": float(np.sqrt(np.mean((predicted - true) ** 2))),
        "delta1": float(np.mean(ratio < 1.25)),
    }
