"""Instance segmentation with the Plain Mask Decoder: the best (query, class) pairs, as PMT's evaluation takes them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from decoders.base import PostprocessOptions, RawOutput, first_set
from decoders.labels import LabelSet
from decoders.mask_classification import MaskClassificationDecoder
from decoders.masks import Rle, encode
from decoders.results import InstanceResult, Segment
from encoders.features import EncoderSpec
from encoders.geometry import ImageGeometry

_CHUNK_PIXELS = 1 << 22
"""How many upsampled mask pixels are held at once (16 MiB of float32)."""


@dataclass(frozen=True)
class ScoredPair:
    """A query under one class.

    Attributes:
        query, label_id: which.
        probability: of the class, "no object" in the softmax.
        mask_score: mean probability of the pixels inside its mask; 0 for an empty one.
        mask: where the query's upsampled logit is positive.
    """

    query: int
    label_id: int
    probability: float
    mask_score: float
    mask: Rle

    @property
    def score(self) -> float:
        """Class probability times mask score."""
        return self.probability * self.mask_score


def top_pairs(
    mask_logits: Tensor,
    class_logits: Tensor,
    geometry: ImageGeometry,
    *,
    top_k: int = 100,
    least_probability: float = 0.0,
    stuff_ids: Collection[int] = (),
) -> list[ScoredPair]:
    """The (query, class) pairs of the highest class probability; a query may come under several classes.

    Args:
        mask_logits: [Q, h, w] over the whole network input.
        class_logits: [Q, K + 1], "no object" last.
        geometry: where the picture lies in the input.
        top_k: most pairs.
        least_probability: pairs below are left out before anything is upsampled.
        stuff_ids: labels that are no objects: in the softmax, but in no pair.

    Returns:
        Best class probability first.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    num_queries, num_classes = probabilities.shape
    probabilities[:, list(stuff_ids)] = -1
    num_pairs = num_queries * (num_classes - len(stuff_ids))
    values, places = probabilities.flatten().topk(min(top_k, num_pairs))
    pairs = [
        (place // num_classes, place % num_classes, value)
        for value, place in zip(values.tolist(), places.tolist(), strict=True)
        if value >= least_probability
    ]
    queries = list(dict.fromkeys(query for query, _, _ in pairs))
    masks = dict(zip(queries, _upsampled_masks(mask_logits, queries, geometry), strict=True))
    return [ScoredPair(query, label, value, *masks[query]) for query, label, value in pairs]


def object_pairs(
    raw: RawOutput, geometry: ImageGeometry, label_set: LabelSet, *, top_k: int, least_probability: float
) -> list[ScoredPair]:
    """`top_pairs` of one picture's raw output, under the things of its label set alone."""
    return top_pairs(
        raw["mask_logits"],
        raw["class_logits"],
        geometry,
        top_k=top_k,
        least_probability=least_probability,
        stuff_ids=label_set.stuff_ids,
    )


def instance_result(
    pairs: list[tuple[float, ScoredPair]], geometry: ImageGeometry, label_set: LabelSet, *, track_queries: bool = False
) -> InstanceResult:
    """Name and rank pairs; empty masks are left out.

    Args:
        pairs: (score to report, pair).
        geometry: where the picture lies in the input.
        label_set: the classes.
        track_queries: give each instance its query (from 1) as `track_id`.
    """
    seen = [(score, pair) for score, pair in pairs if pair.mask_score > 0]
    seen.sort(key=lambda entry: -entry[0])
    instances = tuple(
        Segment(
            segment_id=rank,
            label_id=pair.label_id,
            label=label_set[pair.label_id].name,
            is_thing=label_set[pair.label_id].is_thing,
            score=score,
            area=pair.mask.area(),
            bbox=pair.mask.bbox(),
            track_id=pair.query + 1 if track_queries else None,
        )
        for rank, (score, pair) in enumerate(seen, 1)
    )
    return InstanceResult(geometry.output_size, instances, tuple(pair.mask for _, pair in seen))


class InstanceDecoder(MaskClassificationDecoder):
    """PMD with instance scoring.

    Args:
        spec: of the encoder.
        label_set: the classes.
        top_k: most instances.
        score_threshold: instances below are left out; the published evaluation keeps all, which is 0.
        sizes: of `MaskClassificationDecoder`.
    """

    kind: ClassVar[str] = "instance"

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        label_set: LabelSet,
        top_k: int = 100,
        score_threshold: float = 0.0,
        **sizes: Any,
    ) -> None:
        super().__init__(spec, label_set=label_set, **sizes)
        self.top_k = top_k
        self.score_threshold = score_threshold

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> InstanceResult:
        """One picture's instances, best first; only `score_threshold` is heeded."""
        threshold = first_set(options.score_threshold, self.score_threshold)
        pairs = object_pairs(raw, geometry, self.label_set, top_k=self.top_k, least_probability=threshold)
        scored = [(pair.score, pair) for pair in pairs if pair.score >= threshold]
        return instance_result(scored, geometry, self.label_set)


def _upsampled_masks(mask_logits: Tensor, queries: list[int], geometry: ImageGeometry) -> Iterator[tuple[float, Rle]]:
    """(mask score, mask) of each query, a few at a time."""
    largest = max(height * width for height, width in (geometry.output_size, geometry.input_size))
    chunk = max(1, _CHUNK_PIXELS // largest)
    for start in range(0, len(queries), chunk):
        logits = geometry.to_output(mask_logits[queries[start : start + chunk]])
        inside = logits > 0
        scores = (logits.sigmoid_() * inside).sum(dim=(1, 2)) / (inside.sum(dim=(1, 2)) + 1e-6)
        # Turned on the device, so that each mask reaches the encoder column by column.
        columns: NDArray[np.bool_] = inside.transpose(1, 2).contiguous().cpu().numpy()
        for score, mask in zip(scores.tolist(), columns, strict=True):
            yield score, encode(mask.T)
