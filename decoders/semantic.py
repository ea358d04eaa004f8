"""Semantic segmentation with the Plain Mask Decoder: every query votes for its classes where its mask is."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from decoders.base import PostprocessOptions, RawOutput
from decoders.class_map import best_class, class_confidence, semantic_result
from decoders.mask_classification import MaskClassificationDecoder
from decoders.results import SemanticResult
from encoders.geometry import ImageGeometry

_CHUNK = 32
"""Queries whose masks are made probabilities at once."""


def class_votes(mask_logits: Tensor, class_logits: Tensor) -> Tensor:
    """Per-pixel class scores: the sum over the queries of mask probability times class probability.

    Args:
        mask_logits: [Q, h, w].
        class_logits: [Q, K + 1], "no object" last.

    Returns:
        [K, h, w] float32, not normalised.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    height, width = mask_logits.shape[-2:]
    votes = torch.zeros((probabilities.shape[1], height * width), device=mask_logits.device)
    for masks, classes in zip(mask_logits.split(_CHUNK), probabilities.split(_CHUNK), strict=True):
        votes.addmm_(classes.T, masks.float().sigmoid().flatten(1))
    return votes.unflatten(1, (height, width))


def picture_votes(mask_logits: Tensor, class_logits: Tensor, geometry: ImageGeometry) -> Tensor:
    """Class scores of the scaled picture, from one network input or from windows (whose overlaps are averaged).

    Args:
        mask_logits: [Q, h, w], or [V, Q, h, w] for windows.
        class_logits: [Q, K + 1], or [V, Q, K + 1].
        geometry: where the picture lies in the input.

    Returns:
        [K, *scaled_size] float32.
    """
    if geometry.window_starts is None:
        return geometry.to_scaled(class_votes(geometry.to_input(mask_logits), class_logits))
    windows = zip(mask_logits, class_logits, strict=True)
    return geometry.to_scaled(class_votes(geometry.to_input(masks), classes) for masks, classes in windows)


class SemanticDecoder(MaskClassificationDecoder):
    """PMD with per-pixel votes. Works on windows, as the published evaluation does, and on a whole picture at once."""

    kind: ClassVar[str] = "semantic"
    takes_windows: ClassVar[bool] = True

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> SemanticResult:
        """One picture's classes; a class's score is its mean share of the votes where it wins. No option is heeded."""
        votes = picture_votes(raw["mask_logits"], raw["class_logits"], geometry)
        return semantic_result(best_class(votes, geometry), class_confidence(votes), self.label_set)
