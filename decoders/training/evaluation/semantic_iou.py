"""Mean intersection over union, and pixel accuracy."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from decoders.labels import LabelSet
from decoders.training.evaluation.measure import ClassFigures, Counts, Figures, Rows, mean_of, quotient

IGNORED = -1
"""In the truth: counts for nothing. In a prediction: of no class, and so wrong."""


class SemanticIou:
    """mIoU, the mean over classes that occur, and the part of pixels that are right, in percent; a `Measure`.

    Pixels are counted over all pictures before the quotient.

    Args:
        label_set: the classes.
    """

    main: ClassVar[str] = "mIoU"
    larger_is_better: ClassVar[bool] = True

    def __init__(self, label_set: LabelSet) -> None:
        self._label_set = label_set
        self._pixels = Rows()

    def __len__(self) -> int:
        return len(self._pixels)

    def add(self, predicted_labels: NDArray[np.int32], true_labels: NDArray[np.int32]) -> None:
        """Add one picture [H, W], or the frames of a clip [T, H, W]; label ids, `IGNORED` for none."""
        known = true_labels != IGNORED
        predicted, true = predicted_labels[known], true_labels[known]
        size = len(self._label_set)

        def pixels_by_class(labels: NDArray[np.int32]) -> NDArray[np.int64]:
            return np.bincount(labels[labels != IGNORED], minlength=size)

        rows = (true[predicted == true], predicted, true)  # shared, predicted, true
        self._pixels.append(np.stack([pixels_by_class(row) for row in rows]).astype(np.float64))

    def figures(self, counts: Counts) -> Figures:
        """As in `Measure`."""
        shared, predicted, true = self._pixels.total(counts)
        iou = quotient(shared, predicted + true - shared)
        pixels = true.sum()
        return {
            "mIoU": 100 * mean_of(iou, np.isfinite(iou)),
            "pixel_accuracy": 100 * float(shared.sum() / pixels) if pixels else float("nan"),
        }

    def per_class(self) -> ClassFigures:
        """As in `Measure`: IoU in percent, and the class's part of all labelled pixels."""
        shared, predicted, true = self._pixels.total()
        iou = quotient(shared, predicted + true - shared)
        return {
            label.name: {
                "IoU": 100 * float(iou[label.label_id]),
                "pixels": 100 * float(true[label.label_id] / true.sum()),
            }
            for label in self._label_set.labels
            if np.isfinite(iou[label.label_id])
        }
