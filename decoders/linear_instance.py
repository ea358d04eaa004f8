"""Instance segmentation with batch norm and one linear layer: what features give without a decoder, to compare with."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from decoders.base import PostprocessOptions, RawOutput
from decoders.masks import encode
from decoders.panoptic import panoptic_result
from decoders.patch_segments import PatchSegmentsDecoder
from decoders.results import InstanceResult
from encoders.geometry import ImageGeometry


class LinearInstanceDecoder(PatchSegmentsDecoder):
    """Objects are the connected pieces of things. Its classes need stuff too: what is no object must be something."""

    kind: ClassVar[str] = "instance"

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> InstanceResult:
        """One picture's objects, best first; a score is the mean probability of the class over its pixels.

        Of the options it heeds `score_threshold`.
        """
        segment_map, segments = self.segments(raw, geometry, options)
        panoptic = panoptic_result(torch.from_numpy(segment_map), segments, self.label_set)
        things = sorted((each for each in panoptic.segments if each.is_thing), key=lambda thing: -thing.score)
        masks = tuple(encode(panoptic.segment_map == thing.segment_id) for thing in things)
        ranked = tuple(replace(thing, segment_id=rank) for rank, thing in enumerate(things, 1))
        return InstanceResult(geometry.output_size, ranked, masks)
