"""What heads answer with: plain frozen values in the picture's own pixels, on the CPU, ready to be rendered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Segment:
    """One panoptic or semantic segment.

    Attributes:
        segment_id: its value in the map, from 1.
        label_id, label, is_thing: its class.
        score: class probability in [0, 1].
        area: pixels.
        bbox: (x, y, width, height) in pixels, tight, x and y from the top left.
    """

    segment_id: int
    label_id: int
    label: str
    is_thing: bool
    score: float
    area: int
    bbox: tuple[int, int, int, int]


@dataclass(frozen=True)
class PanopticResult:
    """Every pixel belongs to at most one segment.

    Attributes:
        segment_map: [H, W] int32, the segment_id of each pixel, 0 = void.
        segments: in order of acceptance.
    """

    segment_map: NDArray[np.int32]
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class DepthResult:
    """Distance along the optical axis.

    Attributes:
        depth_m: [H, W] float32, metres, positive.
    """

    depth_m: NDArray[np.float32]


Result = PanopticResult | DepthResult
