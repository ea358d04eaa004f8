"""PMT's merge of overlapping queries into disjoint segments: one rule for pictures and clips, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.geometry import ImageGeometry

_CHUNK_PIXELS = 1 << 22
"""How many upsampled mask pixels are held at once (16 MiB of float32), whatever the picture and the query count."""


@dataclass(frozen=True)
class MergedSegment:
    """One accepted segment: ids count from 0 in order of acceptance, `query` is the row that it came from."""

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
    """Merge one picture's queries, as PMT's evaluation of still pictures does (its rules, our own memory plan).

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
    return _merge(
        lambda queries: geometry.to_output(mask_logits[queries]).sigmoid_(),
        class_logits,
        geometry.output_size,
        _chunk(geometry),
        stuff_ids,
        score_threshold,
        mask_threshold,
        overlap_threshold,
    )


def merge_clip(
    mask_logits: Tensor,
    class_logits: Tensor,
    geometry: ImageGeometry,
    *,
    stuff_ids: Iterable[int],
    score_threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[MergedSegment]]:
    """Merge the queries of a clip's frames at once, as PMT's video evaluation does.

    It differs from `merge_panoptic`: the sigmoid stands between the two resizes, and areas count over all frames.

    Args:
        mask_logits: [Q, T, h, w].
        class_logits: [Q, K + 1] of the clip ("no object" last): PMT takes the mean of the frames' logits.
        geometry: of every frame.
        stuff_ids, score_threshold, mask_threshold, overlap_threshold: as in `merge_panoptic`.

    Returns:
        (segment_map [T, H, W] int32 with -1 for void, the accepted segments).
    """
    frames = mask_logits.shape[1]

    def probabilities(queries: Tensor) -> Tensor:
        upsampled = mask_logits.new_empty((len(queries), frames, *geometry.output_size), dtype=torch.float32)
        for frame in range(frames):
            upsampled[:, frame] = geometry.scaled_to_output(geometry.to_scaled(mask_logits[queries, frame]).sigmoid())
        return upsampled

    return _merge(
        probabilities,
        class_logits,
        (frames, *geometry.output_size),
        max(1, _chunk(geometry) // frames),
        stuff_ids,
        score_threshold,
        mask_threshold,
        overlap_threshold,
    )


def _chunk(geometry: ImageGeometry) -> int:
    largest = max(height * width for height, width in (geometry.output_size, geometry.input_size, geometry.scaled_size))
    return max(1, _CHUNK_PIXELS // largest)


def _merge(
    probabilities_of: Callable[[Tensor], Tensor],
    class_logits: Tensor,
    shape: Sequence[int],
    chunk: int,
    stuff_ids: Iterable[int],
    score_threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[MergedSegment]]:
    """Merge queries whose mask probabilities `probabilities_of` upsamples to `shape`, `chunk` of them at a time.

    Queries are dropped by class before anything is upsampled, and the kept ones pass through in small groups against a
    running maximum, so the cost in memory is a few full-size maps whatever the number of queries.
    """
    scores, labels = class_logits.float().softmax(-1).max(-1)
    kept = ((labels != class_logits.shape[-1] - 1) & (scores > score_threshold)).nonzero()[:, 0]
    device = class_logits.device
    best = torch.full(tuple(shape), -1.0, device=device)
    owner = torch.full(tuple(shape), len(kept), dtype=torch.int32, device=device)
    inside = torch.zeros(tuple(shape), dtype=torch.bool, device=device)  # does the owner's own mask hold the pixel?
    mask_areas: list[Tensor] = []
    for start in range(0, len(kept), chunk):
        group = kept[start : start + chunk]
        for position, (query, mask) in enumerate(zip(group, probabilities_of(group), strict=True), start):
            in_mask = mask >= mask_threshold
            mask_areas.append(torch.count_nonzero(in_mask))
            weighted = mask.mul_(scores[query])
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
            segments.append(MergedSegment(segment_id, label_id, float(scores[query]), query))
            if label_id in stuff:
                segment_of_stuff[label_id] = segment_id
        segment_of_position[position] = segment_id
    owner[~inside] = len(kept)
    return segment_of_position.to(device)[owner.long()], segments
