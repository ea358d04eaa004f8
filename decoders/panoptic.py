"""Panoptic segmentation with the Plain Mask Decoder: the head, and PMT's merge of its queries into segments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from decoders.base import PostprocessOptions, RawOutput, first_set
from decoders.labels import LabelSet
from decoders.plain_mask_decoder import PlainMaskDecoder
from decoders.results import PanopticResult, Segment
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.preprocess import ImageGeometry

_CHUNK_PIXELS = 1 << 22
"""How many upsampled mask pixels are held at once (16 MiB of float32), whatever the picture and the query count."""


@dataclass(frozen=True)
class MergedSegment:
    """One accepted segment of `merge_panoptic`: ids count from 0, `query` is the row that it came from."""

    segment_id: int
    label_id: int
    score: float
    query: int


def merge_panoptic(
    mask_logits: Tensor,
    class_logits: Tensor,
    geometry: ImageGeometry,
    *,
    stuff_ids: Iterable[int],
    score_threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[MergedSegment]]:
    """Merge one picture's queries into disjoint segments, as PMT's evaluation does (its rules, our own memory plan).

    Queries are dropped by class before anything is upsampled, and the kept ones pass through in small groups against a
    running maximum, so the cost in memory is a few full-size maps whatever the number of queries.

    Args:
        mask_logits: [Q, h, w] over the whole network input.
        class_logits: [Q, K + 1], "no object" last.
        geometry: where the picture lies in the input.
        stuff_ids: labels whose segments are joined into one.
        score_threshold: a query is kept if its best class is an object and more probable than this.
        mask_threshold: probability from which a pixel belongs to a query's mask.
        overlap_threshold: least ratio of the pixels that a query owns to the pixels of its mask.

    Returns:
        (segment_map [H, W] int32 with -1 for void, the accepted segments); H, W = `geometry.output_size`.
    """
    probabilities, labels = class_logits.float().softmax(-1).max(-1)
    kept = ((labels != class_logits.shape[-1] - 1) & (probabilities > score_threshold)).nonzero()[:, 0]
    height, width = geometry.output_size
    device = mask_logits.device
    best = torch.full((height, width), -1.0, device=device)
    owner = torch.full((height, width), len(kept), dtype=torch.int32, device=device)
    inside = torch.zeros((height, width), dtype=torch.bool, device=device)  # does the owner's own mask hold the pixel?
    mask_areas: list[Tensor] = []
    chunk = max(1, _CHUNK_PIXELS // max(height * width, math.prod(geometry.input_size)))
    for start in range(0, len(kept), chunk):
        group = kept[start : start + chunk]
        masks = geometry.to_output(mask_logits[group]).sigmoid_()
        for position, (query, mask) in enumerate(zip(group, masks, strict=True), start):
            in_mask = mask >= mask_threshold
            mask_areas.append(torch.count_nonzero(in_mask))
            weighted = mask.mul_(probabilities[query])
            better = weighted > best
            torch.fmax(best, weighted, out=best)  # a query of NaNs costs the others nothing
            owner.masked_fill_(better, position)
            inside ^= (inside ^ in_mask) & better  # where(better, in_mask, inside), in place

    owned_areas = torch.bincount(owner.flatten(), minlength=len(kept) + 1).tolist()
    final_areas = torch.bincount(owner[inside], minlength=len(kept) + 1).tolist()
    stuff = frozenset(stuff_ids)
    segments: list[MergedSegment] = []
    segment_of_stuff: dict[int, int] = {}
    segment_of_position = torch.full((len(kept) + 1,), -1, dtype=torch.int32)
    for position, query in enumerate(kept.tolist()):
        mask_area = int(mask_areas[position])
        if not (mask_area and owned_areas[position] and final_areas[position]):
            continue
        if owned_areas[position] / mask_area < overlap_threshold:
            continue
        label_id = int(labels[query])
        segment_id = segment_of_stuff.get(label_id)
        if segment_id is None:
            segment_id = len(segments)
            segments.append(MergedSegment(segment_id, label_id, float(probabilities[query]), query))
            if label_id in stuff:
                segment_of_stuff[label_id] = segment_id
        segment_of_position[position] = segment_id
    owner[~inside] = len(kept)
    return segment_of_position.to(device)[owner.long()], segments


class PanopticDecoder(nn.Module):
    """PMD with the panoptic merge.

    Args:
        spec: of the encoder.
        label_set: the classes; its stuff is joined.
        out_indices, num_queries, num_blocks: as in `PlainMaskDecoder`.
        score_threshold, mask_threshold, overlap_threshold: defaults of `merge_panoptic`, which a request may override.
    """

    kind: ClassVar[str] = "panoptic"

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        label_set: LabelSet,
        out_indices: Iterable[int],
        num_queries: int,
        num_blocks: int,
        score_threshold: float = 0.8,
        mask_threshold: float = 0.5,
        overlap_threshold: float = 0.8,
    ) -> None:
        super().__init__()
        self.label_set = label_set
        self.score_threshold = score_threshold
        self.mask_threshold = mask_threshold
        self.overlap_threshold = overlap_threshold
        self.mask_decoder = PlainMaskDecoder(
            spec,
            out_indices=out_indices,
            num_queries=num_queries,
            num_classes=len(label_set),
            num_blocks=num_blocks,
        )
        self.out_indices = self.mask_decoder.out_indices

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """``{"mask_logits": [B, Q, h, w], "class_logits": [B, Q, K + 1]}``."""
        mask_logits, class_logits = self.mask_decoder(features)
        return {"mask_logits": mask_logits, "class_logits": class_logits}

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
        ids: NDArray[np.int32] = (segment_map + 1).cpu().numpy()
        areas = np.bincount(ids.ravel(), minlength=len(merged) + 1)
        boxes = ndimage.find_objects(ids, max_label=len(merged))
        segments = []
        for segment, box in zip(merged, boxes, strict=True):
            label = self.label_set[segment.label_id]
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
                )
            )
        return PanopticResult(ids, tuple(segments))
