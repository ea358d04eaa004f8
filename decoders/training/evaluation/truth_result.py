"""The truth as if it were an answer, to be drawn in the same colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decoders.labels import LabelSet
from decoders.masks import Rle, encode
from decoders.results import DepthResult, InstanceResult, PanopticResult, Result, Segment, SemanticResult
from decoders.training.data.samples import DepthSample, InstanceSample, PanopticSample, Sample, SemanticSample


def truth_result(sample: Sample, label_set: LabelSet | None) -> Result | None:
    """A sample's truth as a result of its kind, every score 1.

    Args:
        sample: the picture.
        label_set: of its labels; None for depth.

    Returns:
        The result, None for a kind of truth that is no picture; unknown depth stays NaN.
    """
    match sample, label_set:
        case PanopticSample(), LabelSet():
            segment_map, labels, _ = sample.read_segments()
            numbers = {segment_id: number for number, segment_id in enumerate(labels, 1)}  # COCO's ids reach 2**24
            small = np.zeros(segment_map.shape, dtype=np.int32)
            for segment_id, number in numbers.items():
                small[segment_map == segment_id] = number
            return PanopticResult(small, _segments(small, {numbers[i]: k for i, k in labels.items()}, label_set))
        case SemanticSample(), LabelSet():
            shown = sample.read_label_map() + np.int32(1)
            present = [int(value) for value in np.unique(shown) if value > 0]
            return SemanticResult(shown, _segments(shown, {value: value - 1 for value in present}, label_set))
        case InstanceSample(), LabelSet():
            objects = [each for each in sample.read_masks() if each.mask.area()]
            items = [_segment(n, each.label_id, each.mask, label_set) for n, each in enumerate(objects, 1)]
            image = sample.read_image()
            return InstanceResult((image.height, image.width), tuple(items), tuple(each.mask for each in objects))
        case DepthSample(), _:
            return DepthResult(sample.read_depth_m())
    return None


def _segments(segment_map: NDArray[np.int32], labels: dict[int, int], label_set: LabelSet) -> tuple[Segment, ...]:
    return tuple(_segment(i, k, encode(segment_map == i), label_set) for i, k in labels.items())


def _segment(segment_id: int, label_id: int, mask: Rle, label_set: LabelSet) -> Segment:
    label = label_set[label_id]
    return Segment(segment_id, label_id, label.name, label.is_thing, 1.0, mask.area(), mask.bbox())
