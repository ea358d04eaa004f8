"""Panoptic segmentation with batch norm and one linear layer: what features give without a decoder, to compare with."""

from __future__ import annotations

from typing import ClassVar

import torch

from decoders.base import PostprocessOptions, RawOutput
from decoders.panoptic import panoptic_result
from decoders.patch_segments import PatchSegmentsDecoder
from decoders.results import PanopticResult
from encoders.geometry import ImageGeometry


class LinearPanopticDecoder(PatchSegmentsDecoder):
    """Segments of patches' classes, whole stuff and pieces of things."""

    kind: ClassVar[str] = "panoptic"

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> PanopticResult:
        """One picture's segments, the largest first; a score is the mean probability of the class over its pixels.

        Of the options it heeds `score_threshold`.
        """
        segment_map, segments = self.segments(raw, geometry, options)
        return panoptic_result(torch.from_numpy(segment_map), segments, self.label_set)
