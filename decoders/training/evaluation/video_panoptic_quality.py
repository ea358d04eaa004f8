"""Video panoptic quality (Kim et al., arXiv 2006.11339)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from decoders.labels import LabelSet
from decoders.training.evaluation.clip_overlaps import ClipOverlaps, summed
from decoders.training.evaluation.measure import ClassFigures, Counts, Figures, Rows
from decoders.training.evaluation.segment_matching import (
    SegmentMatches,
    match_segments,
    quality_figures,
    quality_per_class,
)

WINDOWS = (1, 2, 4, 6)
"""Frames of the windows, as in the papers on VIPSeg (Miao et al., CVPR 2022)."""


class VideoPanopticQuality:
    """VPQ in percent, over all classes, things and stuff; a `Measure` of clips.

    A window of k frames slides over each clip; within it a segment is the tube of all its pixels, and tubes are matched
    as `match_segments` says. VPQk counts over all windows of all clips; VPQ is the mean over k. A clip shorter than
    a window is one window.

    Args:
        label_set: the classes.
    """

    main: ClassVar[str] = "VPQ"
    larger_is_better: ClassVar[bool] = True

    def __init__(self, label_set: LabelSet) -> None:
        self._label_set = label_set
        self._matches = {window: Rows() for window in WINDOWS}

    def __len__(self) -> int:
        return len(self._matches[WINDOWS[0]])

    def add(self, clip: ClipOverlaps) -> None:
        """Add one clip."""
        for window, matches in self._matches.items():
            starts = range(max(len(clip.frames) - window + 1, 1))
            matches.append(np.sum([self._match(clip, start, start + window) for start in starts], axis=0))

    def figures(self, counts: Counts) -> Figures:
        """As in `Measure`: VPQ1 to VPQ6 and their mean, and the mean over things and over stuff."""
        by_window = [
            quality_figures(SegmentMatches(*matches.total(counts)), self._label_set)
            for matches in self._matches.values()
        ]
        means = {
            f"VPQ{group}": float(np.mean([figures[f"PQ{group}"] for figures in by_window]))
            for group in ("", "_things", "_stuff")
        }
        return means | {f"VPQ{k}": figures["PQ"] for k, figures in zip(WINDOWS, by_window, strict=True)}

    def per_class(self) -> ClassFigures:
        """As in `Measure`: PQ, SQ and RQ over the windows of all sizes together."""
        total = np.sum([matches.total() for matches in self._matches.values()], axis=0)
        return quality_per_class(SegmentMatches(*total), self._label_set)

    def _match(self, clip: ClipOverlaps, start: int, stop: int) -> SegmentMatches:
        overlaps = summed(clip.frames[start:stop])
        return match_segments(overlaps, clip.predicted_labels, clip.true_labels, clip.crowd_ids, len(self._label_set))
