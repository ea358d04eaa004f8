"""Panoptic quality (Kirillov et al., arXiv 1801.00868)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from decoders.labels import LabelSet
from decoders.training.evaluation.measure import ClassFigures, Counts, Figures, Rows
from decoders.training.evaluation.segment_matching import (
    SegmentMatches,
    count_overlaps,
    match_segments,
    quality_figures,
    quality_per_class,
)


class PanopticQuality:
    """PQ, SQ and RQ in percent, over all classes, things and stuff; a `Measure`.

    Segments are matched within each picture and counted over all of them before the quotient.

    Args:
        label_set: the classes.
    """

    main: ClassVar[str] = "PQ"
    larger_is_better: ClassVar[bool] = True

    def __init__(self, label_set: LabelSet) -> None:
        self._label_set = label_set
        self._matches = Rows()

    def __len__(self) -> int:
        return len(self._matches)

    def add(
        self,
        predicted_map: NDArray[np.int32],
        predicted_labels: Mapping[int, int],
        true_map: NDArray[np.int32],
        true_labels: Mapping[int, int],
        crowd_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Add one picture; both maps are [H, W] with 0 for void, the labels ``{segment id: label_id}``."""
        overlaps = count_overlaps(predicted_map, true_map)
        self._matches.append(
            np.stack(match_segments(overlaps, predicted_labels, true_labels, crowd_ids, len(self._label_set)))
        )

    def figures(self, counts: Counts) -> Figures:
        """As in `Measure`."""
        return quality_figures(SegmentMatches(*self._matches.total(counts)), self._label_set)

    def per_class(self) -> ClassFigures:
        """As in `Measure`."""
        return quality_per_class(SegmentMatches(*self._matches.total()), self._label_set)
