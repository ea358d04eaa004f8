"""Segmentation and tracking quality (Weber et al., STEP, arXiv 2102.11859)."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from decoders.labels import LabelSet
from decoders.training.evaluation.clip_overlaps import ClipOverlaps, summed
from decoders.training.evaluation.measure import ClassFigures, Counts, Figures, Rows, mean_of, quotient


class SegmentationTrackingQuality:
    """STQ, the geometric mean of association (AQ) and segmentation (SQ, mean IoU), in percent; a `Measure` of clips.

    As in DeepLab2's code: a true object's association weighs every tube that shares pixels with it by the shared part
    and by the tubes' IoU; crowds count for neither; of the mean IoU, pixels that were left void are a class of IoU 0.

    Args:
        label_set: the classes.
    """

    main: ClassVar[str] = "STQ"
    larger_is_better: ClassVar[bool] = True

    def __init__(self, label_set: LabelSet) -> None:
        self._label_set = label_set
        self._association = Rows()
        self._pixels = Rows()

    def __len__(self) -> int:
        return len(self._pixels)

    def add(self, clip: ClipOverlaps) -> None:
        """Add one clip."""
        pairs = summed(clip.frames)
        void = len(self._label_set)
        pixels = np.zeros((3, void + 1))  # shared, predicted, true, by class
        for (predicted, true), shared in pairs.items():
            if true not in clip.true_labels:
                continue
            predicted_label, true_label = clip.predicted_labels.get(predicted, void), clip.true_labels[true]
            pixels[0, true_label] += shared * (predicted_label == true_label)
            pixels[1, predicted_label] += shared
            pixels[2, true_label] += shared
        self._pixels.append(pixels)
        self._association.append(np.array(self._associate(clip), dtype=np.float64))

    def figures(self, counts: Counts) -> Figures:
        """As in `Measure`."""
        iou = quotient(*_shared_and_union(self._pixels.total(counts)))
        summed_quality, tubes = self._association.total(counts)
        association = summed_quality / tubes if tubes else float("nan")
        segmentation = mean_of(iou, np.isfinite(iou))
        return {
            "STQ": 100 * float(np.sqrt(association * segmentation)),
            "AQ": 100 * float(association),
            "SQ": 100 * segmentation,
        }

    def per_class(self) -> ClassFigures:
        """As in `Measure`: the IoU that SQ is the mean of."""
        iou = quotient(*_shared_and_union(self._pixels.total()))
        return {
            label.name: {"IoU": 100 * float(iou[label.label_id])}
            for label in self._label_set.labels
            if np.isfinite(iou[label.label_id])
        }

    def _associate(self, clip: ClipOverlaps) -> tuple[float, int]:
        """The sum of the association of all true objects, and their number."""
        things = {label.label_id for label in self._label_set.labels if label.is_thing}
        predicted_areas, true_areas, shared_areas = Counter[int](), Counter[int](), Counter[tuple[int, int]]()
        for (predicted, true), shared in summed(clip.frames).items():
            if true in clip.crowd_ids and clip.true_labels[true] in things:
                continue
            is_predicted = clip.predicted_labels.get(predicted) in things
            is_true = clip.true_labels.get(true) in things
            predicted_areas[predicted] += shared * is_predicted
            true_areas[true] += shared * is_true
            shared_areas[predicted, true] += shared * (is_predicted and is_true)
        quality = 0.0
        for (predicted, true), shared in shared_areas.items():
            if shared:
                quality += shared**2 / (predicted_areas[predicted] + true_areas[true] - shared) / true_areas[true]
        return quality, sum(area > 0 for area in true_areas.values())


def _shared_and_union(pixels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shared, predicted, true = pixels
    return shared, predicted + true - shared
