"""What heads answer with: plain frozen values in the picture's own pixels, on the CPU, ready to be rendered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoders.masks import Rle


@dataclass(frozen=True)
class Segment:
    """One panoptic or semantic segment, or one instance.

    Attributes:
        segment_id: its value in the map, from 1; for instances its rank.
        label_id, label, is_thing: its class.
        score: in [0, 1]; what it means is the head's to say.
        area: pixels.
        bbox: (x, y, width, height) in pixels, tight, x and y from the top left.
        track_id: the same for the same object in every frame of a video; None for still pictures.
    """

    segment_id: int
    label_id: int
    label: str
    is_thing: bool
    score: float
    area: int
    bbox: tuple[int, int, int, int]
    track_id: int | None = None


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
class SemanticResult:
    """Every pixel has a class; one segment for each class present.

    Attributes:
        segment_map: [H, W] int32, label_id + 1 of each pixel (a segment's `segment_id`), 0 = void.
        segments: the classes present, largest first.
    """

    segment_map: NDArray[np.int32]
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class InstanceResult:
    """Objects, each with a mask of its own; masks may overlap.

    Attributes:
        image_size: (height, width) of the masks.
        instances: best score first; `segment_id` counts from 1.
        masks: one for each instance.
    """

    image_size: tuple[int, int]
    instances: tuple[Segment, ...]
    masks: tuple[Rle, ...]


@dataclass(frozen=True)
class DepthResult:
    """Distance along the optical axis.

    Attributes:
        depth_m: [H, W] float32, metres, positive.
    """

    depth_m: NDArray[np.float32]


@dataclass(frozen=True)
class ClassScore:
    """One class of a picture as a whole. `score`: probability in [0, 1]."""

    label_id: int
    label: str
    score: float


@dataclass(frozen=True)
class ClassificationResult:
    """What a picture shows. `classes`: the most probable first."""

    classes: tuple[ClassScore, ...]


@dataclass(frozen=True)
class EmbeddingResult:
    """A picture as one vector: [D] float32."""

    vector: NDArray[np.float32]


@dataclass(frozen=True)
class DenseEmbeddingResult:
    """A picture as a grid of vectors.

    Attributes:
        vectors: [h, w, D] float32; the grid covers the picture, without padding.
    """

    vectors: NDArray[np.float32]


Result = (
    PanopticResult
    | SemanticResult
    | InstanceResult
    | DepthResult
    | ClassificationResult
    | EmbeddingResult
    | DenseEmbeddingResult
)
