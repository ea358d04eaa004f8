"""A clip's segments against its truth, frame by frame, with identities that hold over the frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from decoders.training.evaluation.segment_matching import Overlaps


@dataclass(frozen=True)
class ClipOverlaps:
    """What the measures of panoptic video compare.

    Attributes:
        frames: overlaps of each frame; ids are the same for the same object in every frame.
        predicted_labels, true_labels: ``{segment id: label_id}``, over all frames.
        crowd_ids: true segments that stand for a group.
    """

    frames: tuple[Overlaps, ...]
    predicted_labels: Mapping[int, int]
    true_labels: Mapping[int, int]
    crowd_ids: frozenset[int]


def summed(frames: Iterable[Overlaps]) -> Overlaps:
    """The overlaps of several frames together."""
    total = Overlaps()
    for frame in frames:
        total.update(frame)
    return total
