"""From typed results to what goes over the wire: JSON objects, PNGs, overlays and NumPy archives."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, Literal

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from decoders.labels import LabelSet
from decoders.results import DepthResult, PanopticResult, Result, Segment
from serving.types import Prediction

MaskFormat = Literal["rle", "polygon", "none"]
DEPTH_SCALE_M = 0.001
"""Metres per step of a 16-bit depth PNG."""


def prediction_json(prediction: Prediction, *, request_id: str, bundle: str, masks: MaskFormat) -> dict[str, Any]:
    """The JSON answer of `POST /segment`."""
    height, width = prediction.image_size
    return {
        "request_id": request_id,
        "bundle": bundle,
        "image": {"height": height, "width": width},
        "results": {task: result_json(result, masks) for task, result in prediction.results.items()},
        "errors": {task: error.problem() for task, error in prediction.errors.items()},
        "timing": _rounded(asdict(prediction.timing)),
    }


def result_json(result: Result, masks: MaskFormat) -> dict[str, Any]:
    """One task's result as a JSON object."""
    match result:
        case PanopticResult():
            return {"segments": _segments_json(result, masks)}
        case DepthResult():
            return {
                "unit": "m",
                "min": float(result.depth_m.min()),
                "max": float(result.depth_m.max()),
                "scale": DEPTH_SCALE_M,
                "png16": base64.b64encode(_png(depth_image(result))).decode("ascii"),
            }


def result_png(result: Result) -> bytes:
    """One task's result as a PNG: panoptic ids in COCO's RGB code, depth in 16-bit millimetres."""
    match result:
        case PanopticResult():
            ids = result.segment_map
            return _png(Image.fromarray(np.stack((ids & 255, ids >> 8 & 255, ids >> 16), axis=-1).astype(np.uint8)))
        case DepthResult():
            return _png(depth_image(result))


def overlay_png(result: Result, picture: Image.Image, label_set: LabelSet | None) -> bytes:
    """One task's result for people: segments in their labels' colours over the picture, depth as a colour map.

    Args:
        result: at the picture's size or smaller.
        picture: upright RGB.
        label_set: of the head, for colours.
    """
    match result:
        case PanopticResult():
            assert label_set is not None
            height, width = result.segment_map.shape
            colors = segment_colors(result.segments, label_set)[result.segment_map]
            base = np.asarray(picture.resize((width, height))).astype(np.float32)
            covered = (result.segment_map > 0)[..., None]
            blended = np.where(covered, 0.45 * base + 0.55 * colors, base)
            blended[_edges(result.segment_map)] = 255
            return _png(Image.fromarray(blended.astype(np.uint8)))
        case DepthResult():
            return _png(Image.fromarray(_colored(result.depth_m)))


def prediction_npz(prediction: Prediction) -> bytes:
    """All results as arrays in a compressed NumPy archive: ``<task>/segment_map`` and ``<task>/segments`` (JSON), or
    ``<task>/depth_m``.
    """  # the names don't fit in one line
    arrays: dict[str, NDArray[Any]] = {}
    for task, result in prediction.results.items():
        match result:
            case PanopticResult():
                arrays[f"{task}/segment_map"] = result.segment_map
                arrays[f"{task}/segments"] = np.array(json.dumps([asdict(s) for s in result.segments]))
            case DepthResult():
                arrays[f"{task}/depth_m"] = result.depth_m
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def depth_image(result: DepthResult) -> Image.Image:
    """Depth in 16-bit grey, one step per millimetre; beyond 65.535 m it saturates."""
    steps = np.clip(np.rint(result.depth_m / DEPTH_SCALE_M), 0, 65535).astype(np.uint16)
    return Image.fromarray(steps)


def segment_colors(segments: Sequence[Segment], label_set: LabelSet) -> NDArray[np.float32]:
    """A colour per segment id, [S + 1, 3] in [0, 255]: the label's, in a shade of its own for each further instance."""
    colors = np.zeros((len(segments) + 1, 3), dtype=np.float32)
    seen: dict[int, int] = {}
    for segment in segments:
        number = seen.get(segment.label_id, 0)
        seen[segment.label_id] = number + 1
        shade = 1.0 if number == 0 else (0.7, 1.25, 0.85, 1.12)[(number - 1) % 4]
        colors[segment.segment_id] = np.clip(np.array(label_set[segment.label_id].color) * shade, 0, 255)
    return colors


def _segments_json(result: PanopticResult, masks: MaskFormat) -> list[dict[str, Any]]:
    items = []
    columns_first = np.asfortranarray(result.segment_map)  # COCO's order; turned once, not for every segment
    for segment in result.segments:
        item = asdict(segment)
        item["bbox"] = list(segment.bbox)
        if masks == "rle":
            item["rle"] = _rle(columns_first == segment.segment_id)
        elif masks == "polygon":
            item["polygons"] = _polygons(result.segment_map == segment.segment_id)
        items.append(item)
    return items


def _rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask in column-major memory."""
    encoded = coco_mask.encode(mask.view(np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}


def _polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Outer outlines as COCO polygons, [x0, y0, x1, y1, …] in pixels; holes are not told."""
    padded = np.pad(mask.astype(np.float32), 1)
    generator = contourpy.contour_generator(z=padded, fill_type="OuterOffset")
    outlines = []
    for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True):
        outer = points[: offsets[1] - 1] - 0.5  # the ring repeats its first point; the pad and the half pixel go
        outlines.append([round(float(value), 1) for value in outer.ravel()])
    return outlines


def _edges(ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    edges = np.zeros(ids.shape, dtype=bool)
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edges[1:] |= ids[1:] != ids[:-1]
    return edges


def _colored(depth_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Depth in the Turbo colour map over the middle 98 % of its range: near is warm, far is cold."""
    low, high = np.percentile(depth_m[::4, ::4], (1, 99))
    nearness = 1 - np.clip((depth_m - low) / np.float32(max(float(high - low), 1e-6)), 0, 1)
    return _turbo()[(255 * nearness).astype(np.uint8)]


@cache
def _turbo() -> NDArray[np.uint8]:
    """The Turbo colour map by its published polynomial (Google, Apache-2.0): [256, 3]."""
    powers = np.linspace(0, 1, 256)[:, None] ** np.arange(6)
    coefficients = np.array(
        [
            [0.13572138, 0.09140261, 0.10667330],
            [4.61539260, 2.19418839, 12.64194608],
            [-42.66032258, 4.84296658, -60.58204836],
            [132.13108234, -14.18503333, 110.36276771],
            [-152.94239396, 4.27729857, -89.90310912],
            [59.28637943, 2.82956604, 27.34824973],
        ]
    )
    return (np.clip(powers @ coefficients, 0, 1) * 255).astype(np.uint8)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _rounded(timing: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, Mapping) else round(value, 3) if isinstance(value, float) else value
        for key, value in timing.items()
    }
