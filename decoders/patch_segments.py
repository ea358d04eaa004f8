"""What the linear heads that tell objects apart have in common: connected pieces of a map of classes stand for objects.

The network is that of linear semantic segmentation. A map of classes does not tell objects of a class apart: objects
that touch come out as one, an object that something hides as several.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from decoders.base import PostprocessOptions, RawOutput, first_set
from decoders.class_map import best_class
from decoders.labels import LabelSet
from decoders.panoptic_merge import MergedSegment
from decoders.patch_classification import PatchClassificationDecoder
from encoders.features import EncoderSpec
from encoders.geometry import ImageGeometry


class PatchSegmentsDecoder(PatchClassificationDecoder):
    """The classes of patches as segments: all of a stuff class is one, of a thing class each connected piece.

    Args:
        spec: of the encoder.
        label_set: the classes.
        out_indices: blocks to read.
        min_patches: pieces of things with a smaller area, in patches of the encoder, become void. Finer than a patch
            the head sees nothing, and one patch alone is noise more often than an object.
        score_threshold: segments with a lower score become void; a request may override it.

    Raises:
        ValueError: `min_patches` is negative.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        label_set: LabelSet,
        out_indices: Iterable[int],
        min_patches: float = 2.0,
        score_threshold: float = 0.0,
    ) -> None:
        super().__init__(spec, label_set=label_set, out_indices=out_indices)
        if not min_patches >= 0:
            raise ValueError(f"min_patches is {min_patches}; an area is 0 or more")
        self.patch_pixels = spec.patch_size**2
        self.min_patches = min_patches
        self.score_threshold = score_threshold

    def segments(
        self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions
    ) -> tuple[NDArray[np.int32], list[MergedSegment]]:
        """One picture's segments as of `segments_of`; of the options it heeds `score_threshold`."""
        logits = geometry.to_scaled(raw["class_logits"])
        top = logits.softmax(dim=0).amax(dim=0, keepdim=True)
        return segments_of(
            best_class(logits, geometry).cpu().numpy(),
            geometry.scaled_to_output(top)[0].cpu().numpy(),
            self.label_set,
            min_area=self.min_patches * self.patch_pixels * _output_pixels(geometry),
            score_threshold=first_set(options.score_threshold, self.score_threshold),
        )


def segments_of(
    class_map: NDArray[np.int32],
    probability: NDArray[np.float32],
    label_set: LabelSet,
    *,
    min_area: float,
    score_threshold: float,
) -> tuple[NDArray[np.int32], list[MergedSegment]]:
    """Segments of a map of classes.

    Args:
        class_map: [H, W] label ids.
        probability: [H, W], of each pixel's class.
        label_set: the classes.
        min_area: least pixels of a thing; neighbours share a side.
        score_threshold: least mean probability of a segment.

    Returns:
        As `merge_panoptic`: (segment_map [H, W] int32 with -1 for void, the segments, the largest first); the row that
        a segment comes from is its class's.
    """
    pieces = np.zeros(class_map.shape, dtype=np.int32)
    label_ids: list[int] = []
    boxes = ndimage.find_objects(class_map + 1, max_label=len(label_set))
    for label, box in zip(label_set.labels, boxes, strict=True):
        if box is None:
            continue
        mask = class_map[box] == label.label_id
        numbers, count = ndimage.label(mask) if label.is_thing else (mask.astype(np.int32), 1)
        pieces[box][mask] = numbers[mask] + len(label_ids)
        label_ids += [label.label_id] * count
    areas = np.bincount(pieces.ravel())[1:]
    scores = np.bincount(pieces.ravel(), probability.ravel())[1:] / areas
    is_thing = np.array([label_set[label_id].is_thing for label_id in label_ids])
    kept = (scores >= score_threshold) & ((areas >= min_area) | ~is_thing)
    order = [piece for piece in np.argsort(-areas, kind="stable").tolist() if kept[piece]]
    segment_of_piece = np.full(len(label_ids) + 1, -1, dtype=np.int32)
    segment_of_piece[np.array(order, dtype=np.int64) + 1] = np.arange(len(order))
    segments = [
        MergedSegment(number, label_ids[piece], min(float(scores[piece]), 1.0), label_ids[piece])
        for number, piece in enumerate(order)
    ]
    return segment_of_piece[pieces], segments


def _output_pixels(geometry: ImageGeometry) -> float:
    """Pixels of the output for one of the network's input."""
    (height, width), (scaled_height, scaled_width) = geometry.output_size, geometry.scaled_size
    return height * width / (scaled_height * scaled_width)
