"""Heads for video: an answer for every frame from what was seen so far (PMT's whole-clip rules, made causal)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from decoders.base import Decoder, PostprocessOptions, RawOutput, first_set
from decoders.class_map import best_class, class_confidence, semantic_result
from decoders.instance import ScoredPair, instance_result, object_pairs
from decoders.labels import LabelSet
from decoders.mask_classification import MaskClassificationDecoder
from decoders.online import OnlineMaskDecoder, StreamState, advance, stack_queries
from decoders.panoptic import panoptic_result
from decoders.panoptic_merge import merge_clip
from decoders.plain_mask_decoder import PlainMaskDecoder
from decoders.results import InstanceResult, PanopticResult, SemanticResult
from decoders.semantic import class_votes
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry


@runtime_checkable
class StreamDecoder(Decoder, Protocol):
    """A head that remembers: beside `Decoder`, which answers a picture as the first frame of a stream."""

    def step(
        self, features: EncoderFeatures, states: Sequence[StreamState | None]
    ) -> tuple[RawOutput, list[StreamState]]:
        """One frame of each of B streams.

        Args:
            features: of the frames.
            states: what the last `step` returned for each stream; None for a stream that begins.

        Returns:
            (raw output for `postprocess`, the streams' states after the frame).
        """
        ...


class _VideoDecoder(MaskClassificationDecoder):
    """Running class scores over the online decoder; `track_id` is the query, from 1.

    Args:
        spec: of the encoder.
        label_set: the classes.
        propagates: as in `OnlineMaskDecoder`.
        class_window: frames that the running class of a query remembers about; None: the whole stream, as PMT's
            evaluation of a clip, which in a long stream takes as long to forget as it took to learn.
        sizes: of `MaskClassificationDecoder`.

    Raises:
        ValueError: `class_window` is not positive.
    """

    mask_decoder: OnlineMaskDecoder
    mask_decoder_class: type[PlainMaskDecoder] = OnlineMaskDecoder

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        label_set: LabelSet,
        propagates: bool = True,
        class_window: int | None = 16,
        **sizes: Any,
    ) -> None:
        if class_window is not None and class_window < 1:
            raise ValueError(f"class_window is {class_window} frames; it must be at least 1, or None")
        super().__init__(spec, label_set=label_set, propagates=propagates, **sizes)
        self.class_window = class_window

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """As `MaskClassificationDecoder.forward`, for pictures that each are a stream's first frame."""
        return self.step(features, [None] * features.batch_size)[0]

    def step(
        self, features: EncoderFeatures, states: Sequence[StreamState | None]
    ) -> tuple[Mapping[str, Tensor], list[StreamState]]:
        """As in `StreamDecoder`; "class_logits" is the running mean of each stream."""
        queries = stack_queries(states, self.mask_decoder.queries)
        mask_logits, class_logits, next_queries = self.mask_decoder.step(features, queries)
        after = advance(states, next_queries, class_logits, self.class_window)
        running = torch.stack([state.class_logits for state in after])
        return {"mask_logits": mask_logits, "class_logits": running}, after


class VideoInstanceDecoder(_VideoDecoder):
    """Video instance segmentation: the best (query, class) pairs, each query under its best class only.

    Args:
        top_k: most pairs looked at.
        score_threshold: instances of a lower class probability are left out.
        others: as in the other video heads.
    """

    kind: ClassVar[str] = "instance"

    def __init__(self, spec: EncoderSpec, *, top_k: int = 20, score_threshold: float = 0.3, **others: Any) -> None:
        super().__init__(spec, **others)
        self.top_k = top_k
        self.score_threshold = score_threshold

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> InstanceResult:
        """One frame's instances; the score is the running class probability alone."""
        threshold = first_set(options.score_threshold, self.score_threshold)
        pairs = object_pairs(raw, geometry, self.label_set, top_k=self.top_k, least_probability=threshold)
        best: dict[int, ScoredPair] = {}
        for pair in pairs:  # the most probable first
            best.setdefault(pair.query, pair)
        scored = [(pair.probability, pair) for pair in best.values()]
        return instance_result(scored, geometry, self.label_set, track_queries=True)


class VideoPanopticDecoder(_VideoDecoder):
    """Video panoptic segmentation.

    Args:
        score_threshold, mask_threshold, overlap_threshold: defaults of `merge_clip`, which a request may override.
        others: as in the other video heads.
    """

    kind: ClassVar[str] = "panoptic"

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        score_threshold: float = 0.8,
        mask_threshold: float = 0.5,
        overlap_threshold: float = 0.8,
        **others: Any,
    ) -> None:
        super().__init__(spec, **others)
        self.score_threshold = score_threshold
        self.mask_threshold = mask_threshold
        self.overlap_threshold = overlap_threshold

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> PanopticResult:
        """One frame's segments; things carry their `track_id`."""
        segment_map, merged = merge_clip(
            raw["mask_logits"][:, None],
            raw["class_logits"],
            geometry,
            stuff_ids=self.label_set.stuff_ids,
            score_threshold=first_set(options.score_threshold, self.score_threshold),
            mask_threshold=first_set(options.mask_threshold, self.mask_threshold),
            overlap_threshold=first_set(options.overlap_threshold, self.overlap_threshold),
        )
        return panoptic_result(segment_map[0], merged, self.label_set, track_queries=True)


class VideoSemanticDecoder(_VideoDecoder):
    """Video semantic segmentation: votes of all queries under their running classes."""

    kind: ClassVar[str] = "semantic"

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> SemanticResult:
        """One frame's classes; no option is heeded."""
        votes = class_votes(geometry.to_scaled(raw["mask_logits"]), raw["class_logits"])
        return semantic_result(best_class(votes, geometry), class_confidence(votes), self.label_set)
