"""Results of every kind, small and drawn here, and what a server tells of them, for the playground to show."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.masks import encode
from decoders.results import (
    ClassificationResult,
    ClassScore,
    DenseEmbeddingResult,
    DepthResult,
    EmbeddingResult,
    InstanceResult,
    PanopticResult,
    Result,
    Segment,
    SemanticResult,
)
from serving.answers.render import kind_of, prediction_json
from serving.types import Prediction, Timing

HEIGHT, WIDTH = 240, 320
COLORS = {"cat": [220, 60, 60], "sky": [110, 180, 250], "road": [150, 140, 130]}
CATS = ((150, 140, 50), (150, 200, 60), (150, 200, 20), (190, 40, 30))
"""(row, column, radius) of round cats, best first; the second covers the third, the first a part of the second."""


def disc(row: int, column: int, radius: int) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def cats(track_id: int | None = None) -> InstanceResult:
    """Overlapping instances of one label; the first has the given track, the next the next one."""
    masks = tuple(encode(disc(*cat)) for cat in CATS)
    instances = (
        Segment(rank, 0, "cat", True, 1 - 0.2 * rank, mask.area(), mask.bbox(), track_id and track_id + rank - 1)
        for rank, mask in enumerate(masks, 1)
    )
    return InstanceResult((HEIGHT, WIDTH), tuple(instances), masks)


def scenery() -> SemanticResult:
    """Sky over road, without a score that is sure."""
    segment_map = np.repeat([[2], [3]], (100, 140), axis=0) * np.ones((1, WIDTH), int)
    sky = Segment(2, 1, "sky", False, 0.9, 100 * WIDTH, (0, 0, WIDTH, 100))
    road = Segment(3, 2, "road", False, 0.6, 140 * WIDTH, (0, 100, WIDTH, 140))
    return SemanticResult(segment_map.astype(np.int32), (road, sky))


def panoptic() -> PanopticResult:
    """A cat (1) before sky and road."""
    segment_map = scenery().segment_map.copy()
    segment_map[disc(*CATS[0])] = 1
    segments = [cats().instances[0], *scenery().segments]
    return PanopticResult(
        segment_map, tuple(replace(x, area=int((segment_map == x.segment_id).sum())) for x in segments)
    )


def features() -> DenseEmbeddingResult:
    """12 x 16 vectors: those of the left half alike, those of the right half alike, with a little noise."""
    random = np.random.default_rng(0)
    halves = random.standard_normal((2, 24))
    vectors = np.repeat(np.repeat(halves[None], (8, 8), axis=1), 12, axis=0)
    return DenseEmbeddingResult((vectors + 0.05 * random.standard_normal(vectors.shape)).astype(np.float32))


def every_kind() -> dict[str, Result]:
    """One result of each kind, under the kind's name, and a tracked one."""
    depth_m = np.linspace(9, 1, HEIGHT, dtype=np.float32)[:, None] * np.ones((1, WIDTH), np.float32)
    vector = np.random.default_rng(1).standard_normal(384).astype(np.float32)
    results = (
        panoptic(),
        scenery(),
        cats(),
        DepthResult(depth_m),
        ClassificationResult((ClassScore(281, "tabby", 0.875), ClassScore(282, "tiger cat", 0.0625))),
        EmbeddingResult(vector / np.linalg.norm(vector)),
        features(),
    )
    return {kind_of(result): result for result in results} | {"tracks": cats(track_id=7)}


def photo_of_cats() -> Image.Image:
    pixels = np.array([(0, 0, 0), COLORS["cat"], COLORS["sky"], COLORS["road"]], np.uint8)[panoptic().segment_map]
    return Image.fromarray(pixels // 2 + 60)


def png() -> bytes:
    """The photo of cats as a file."""
    buffer = io.BytesIO()
    photo_of_cats().save(buffer, "PNG")
    return buffer.getvalue()


def square_of(picture: Image.Image) -> InstanceResult:
    """What a perfect head finds in a frame of `make_clip`: the bright pixels, as one tracked cat."""
    mask = encode(np.asarray(picture.convert("L")) > 128)
    cat = Segment(1, 0, "cat", True, 0.9, mask.area(), mask.bbox(), track_id=1)
    return InstanceResult((picture.height, picture.width), (cat,), (mask,))


def answer_of(results: Mapping[str, Result], size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    timing = Timing(1, 2, 3, 40, dict.fromkeys(results, 5.0), 6, 90, 1, 1)
    return prediction_json(Prediction(size, size, results, {}, timing), request_id="r1", bundle="all", masks="rle")
