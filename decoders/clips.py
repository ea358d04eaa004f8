"""A clip as a whole, as PMT's evaluation scores it: classes are settled over all frames before any mask is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoders.class_map import best_class
from decoders.instance import ScoredPair, top_pairs
from decoders.online import OnlineMaskDecoder
from decoders.semantic import class_votes
from encoders.features import EncoderFeatures
from encoders.geometry import ImageGeometry


def decode_clip(decoder: OnlineMaskDecoder, frames: Sequence[EncoderFeatures]) -> tuple[Tensor, Tensor, Tensor]:
    """Run the online decoder over the frames of one clip.

    Args:
        decoder: the network.
        frames: features of one frame each (B = 1), in order.

    Returns:
        (mask_logits [T, Q, h, w], class_logits [T, Q, K + 1], queries left after each frame [T, Q, C]).
    """
    masks, classes, states = [], [], []
    queries = None
    for features in frames:
        mask_logits, class_logits, queries = decoder.step(features, queries)
        masks.append(mask_logits[0])
        classes.append(class_logits[0])
        states.append(queries[0])
    return torch.stack(masks), torch.stack(classes), torch.stack(states)


def clip_instances(
    mask_logits: Tensor, class_logits: Tensor, geometry: ImageGeometry, *, top_k: int
) -> list[list[ScoredPair]]:
    """The best (query, class) pairs of a clip (video instance segmentation); the score is the class probability.

    Args:
        mask_logits: [Q, T, h, w].
        class_logits: [Q, K + 1], the mean over the frames.
        geometry: of every frame.
        top_k: pairs.

    Returns:
        For each frame the same pairs in the same order, with that frame's mask.
    """
    return [top_pairs(frame, class_logits, geometry, top_k=top_k) for frame in mask_logits.unbind(dim=1)]


def clip_classes(mask_logits: Tensor, class_logits: Tensor, geometry: ImageGeometry) -> Tensor:
    """The class of every pixel of a clip (video semantic segmentation); arguments as in `clip_instances`.

    Returns:
        [T, H, W] int32.
    """
    return torch.stack(
        [
            best_class(class_votes(geometry.to_scaled(frame), class_logits), geometry)
            for frame in mask_logits.unbind(dim=1)
        ]
    )
