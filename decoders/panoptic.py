"""Panoptic segmentation with the Plain Mask Decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from decoders.base import PostprocessOptions, RawOutput, first_set
from decoders.labels import LabelSet
from decoders.mask_classification import MaskClassificationDecoder
from decoders.panoptic_merge import MergedSegment, merge_panoptic
from decoders.results import PanopticResult, Segment
from encoders.features import EncoderSpec
from encoders.geometry import ImageGeometry


class PanopticDecoder(MaskClassificationDecoder):
    """PMD with the panoptic merge.

    Args:
        spec: of the encoder.
        label_set: the classes; its stuff is joined.
        score_threshold, mask_threshold, overlap_threshold: defaults of `merge_panoptic`, which a request may override.
        sizes: of `MaskClassificationDecoder`.
    """

    kind: ClassVar[str] = "panoptic"

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        label_set: LabelSet,
        score_threshold: float = 0.8,
        mask_threshold: float = 0.5,
        overlap_threshold: float = 0.8,
        **sizes: Any,
    ) -> None:
        super().__init__(spec, label_set=label_set, **sizes)
        self.score_threshold = score_threshold
        self.mask_threshold = mask_threshold
        self.overlap_threshold = overlap_threshold

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> PanopticResult:
        """Merge one picture's queries; segment ids count from 1 and 0 is void, as in COCO's panoptic format."""
        segment_map, merged = merge_panoptic(
            raw["mask_logits"],
            raw["class_logits"],
            geometry,
            stuff_ids=self.label_set.stuff_ids,
            score_threshold=first_set(options.score_threshold, self.score_threshold),
            mask_threshold=first_set(options.mask_threshold, self.mask_threshold),
            overlap_threshold=first_set(options.overlap_threshold, self.overlap_threshold),
        )
        return panoptic_result(segment_map, merged, self.label_set)


def panoptic_result(
    segment_map: Tensor, merged: Sequence[MergedSegment], label_set: LabelSet, *, track_queries: bool = False
) -> PanopticResult:
    """Name and measure merged segments.

    Args:
        segment_map: [H, W] int32, -1 for void.
        merged: its segments.
        label_set: the classes.
        track_queries: give each thing its query (from 1) as `track_id`.
    """
    ids: NDArray[np.int32] = (segment_map + 1).cpu().numpy()
    areas = np.bincount(ids.ravel(), minlength=len(merged) + 1)
    boxes = ndimage.find_objects(ids, max_label=len(merged))
    segments = []
    for segment, box in zip(merged, boxes, strict=True):
        label = label_set[segment.label_id]
        rows, columns = box
        segments.append(
            Segment(
                segment_id=segment.segment_id + 1,
                label_id=segment.label_id,
                label=label.name,
                is_thing=label.is_thing,
                score=segment.score,
                area=int(areas[segment.segment_id + 1]),
                bbox=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
                track_id=segment.query + 1 if track_queries and label.is_thing else None,
            )
        )
    return PanopticResult(ids, tuple(segments))
