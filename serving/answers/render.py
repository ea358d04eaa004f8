"""From typed results to what goes over the wire: JSON objects, PNGs, overlays and NumPy archives."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any, Literal

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.labels import LabelSet
from decoders.masks import Rle, encode
from decoders.results import (
    ClassificationResult,
    DenseEmbeddingResult,
    DepthResult,
    EmbeddingResult,
    InstanceResult,
    PanopticResult,
    Result,
    Segment,
    SemanticResult,
)
from decoders.segment_png import segment_image
from serving.errors import InvalidOptionError
from serving.feature_cache import FeatureEntry
from serving.types import Prediction, Timing

MaskFormat = Literal["rle", "polygon", "none"]
PICTURE_KINDS = frozenset({"panoptic", "semantic", "instance", "depth"})
"""The kinds of results that format=png and format=overlay can show."""
_KINDS = {
    PanopticResult: "panoptic",
    SemanticResult: "semantic",
    InstanceResult: "instance",
    DepthResult: "depth",
    ClassificationResult: "classification",
    EmbeddingResult: "embedding",
    DenseEmbeddingResult: "dense_embedding",
}
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


def features_json(
    entry: FeatureEntry, timing: Timing, *, request_id: str, bundle: str, tasks: Sequence[str]
) -> dict[str, Any]:
    """The JSON answer of `POST /features`."""
    height, width = entry.image_size
    return {
        "request_id": request_id,
        "id": entry.features_id,
        "bundle": bundle,
        "image": {"height": height, "width": width},
        "tasks": list(tasks),
        "bytes": entry.num_bytes,
        "timing": _rounded(asdict(timing)),
    }


def kind_of(result: Result) -> str:
    """Which of `decoders.results` a result is, as its JSON and `GET /tasks` say it, e.g. ``"dense_embedding"``."""
    return next(kind for result_class, kind in _KINDS.items() if isinstance(result, result_class))


def result_json(result: Result, masks: MaskFormat) -> dict[str, Any]:
    """One task's result as a JSON object."""
    return {"kind": kind_of(result)} | _fields_json(result, masks)


def result_png(result: Result, label_set: LabelSet | None = None) -> bytes:
    """One task's result as a PNG that holds the values themselves.

    Panoptic: segment ids in COCO's RGB code (R + 256 G + 65536 B), 0 = void. Instance: likewise, 0 = none, where
    instances overlap the best one's. Semantic: label ids in 8-bit grey, 255 = void; if there are more than 255
    classes, in 16-bit grey, 65535 = void. Depth: 16-bit grey, millimetres.

    Args:
        result: of a kind in `PICTURE_KINDS`.
        label_set: of the head, for the number of classes; without it, the largest id in a semantic result stands in.

    Raises:
        InvalidOptionError: the result is of a kind that is no picture.
    """
    match result:
        case PanopticResult():
            return _png(segment_image(result.segment_map))
        case SemanticResult():
            return _png(_label_image(result, label_set))
        case InstanceResult():
            return _png(segment_image(instance_map(result)))
        case DepthResult():
            return _png(depth_image(result))
        case ClassificationResult() | EmbeddingResult() | DenseEmbeddingResult():
            raise no_picture(kind_of(result), "png")


def overlay_png(result: Result, picture: Image.Image, label_set: LabelSet | None) -> bytes:
    """One task's result for people: segments, instances or classes in their labels' colours over the picture, depth as
    a colour map.

    Args:
        result: at the picture's size or smaller, of a kind in `PICTURE_KINDS`.
        picture: upright RGB.
        label_set: of the head, for colours.

    Raises:
        InvalidOptionError: the result is of a kind that is no picture.
    """  # the first line doesn't fit in one line
    match result:
        case PanopticResult() | SemanticResult():
            return _png(_overlay(result.segment_map, result.segments, picture, label_set))
        case InstanceResult():
            return _png(_overlay(instance_map(result), result.instances, picture, label_set))
        case DepthResult():
            return _png(Image.fromarray(_colored(result.depth_m)))
        case ClassificationResult() | EmbeddingResult() | DenseEmbeddingResult():
            raise no_picture(kind_of(result), "overlay")


def prediction_npz(prediction: Prediction) -> bytes:
    """All results as arrays in a compressed NumPy archive.

    Panoptic and semantic: ``<task>/segment_map`` [H, W] int32 and ``<task>/segments`` (JSON); instance:
    ``<task>/masks`` [N, H, W] bool and ``<task>/instances`` (JSON); depth: ``<task>/depth_m`` [H, W] float32;
    classification: ``<task>/classes`` (JSON); embedding: ``<task>/vector`` [D] float32; dense embedding:
    ``<task>/vectors`` [h, w, D] float32. Maps are as in `decoders.results`.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for task, result in prediction.results.items():
            match result:
                case PanopticResult() | SemanticResult():
                    _write_array(archive, f"{task}/segment_map", result.segment_map)
                    _write_json(archive, f"{task}/segments", [_item_json(segment) for segment in result.segments])
                case InstanceResult():
                    _write_masks(archive, f"{task}/masks", result)
                    _write_json(archive, f"{task}/instances", [_item_json(segment) for segment in result.instances])
                case DepthResult():
                    _write_array(archive, f"{task}/depth_m", result.depth_m)
                case ClassificationResult():
                    _write_json(archive, f"{task}/classes", [asdict(score) for score in result.classes])
                case EmbeddingResult():
                    _write_array(archive, f"{task}/vector", result.vector)
                case DenseEmbeddingResult():
                    _write_array(archive, f"{task}/vectors", result.vectors)
    return buffer.getvalue()


def no_picture(kind: str, form: str) -> InvalidOptionError:
    """What to raise when a result of a kind that is not in `PICTURE_KINDS` is asked for as a picture."""
    return InvalidOptionError(f"a result of kind '{kind}' has no format={form}", remedy="ask with format=json or npz")


def depth_image(result: DepthResult) -> Image.Image:
    """Depth in 16-bit grey, one step per millimetre; beyond 65.535 m it saturates."""
    steps = np.clip(np.rint(result.depth_m / DEPTH_SCALE_M), 0, 65535).astype(np.uint16)
    return Image.fromarray(steps)


def instance_map(result: InstanceResult) -> NDArray[np.int32]:
    """[H, W], the `segment_id` of the best instance at each pixel, 0 = none; holds one mask at a time."""
    ids = np.zeros(result.image_size, dtype=np.int32, order="F")  # masks decode column by column
    for instance, mask in zip(reversed(result.instances), reversed(result.masks), strict=True):
        ids[mask.decode()] = instance.segment_id
    return ids


def segment_colors(segments: Sequence[Segment], label_set: LabelSet) -> NDArray[np.float32]:
    """A colour per segment id, [largest id + 1, 3] in [0, 255]: the label's, in a shade of its own for each further
    instance. A tracked one keeps its shade from frame to frame.
    """  # the first line doesn't fit in one line
    colors = np.zeros((max((segment.segment_id for segment in segments), default=0) + 1, 3), dtype=np.float32)
    seen: dict[int, int] = {}
    for segment in segments:
        number = seen.get(segment.label_id, 0)
        seen[segment.label_id] = number + 1
        if segment.track_id is not None:
            number = segment.track_id - 1
        shade = 1.0 if number == 0 else (0.7, 1.25, 0.85, 1.12)[(number - 1) % 4]
        colors[segment.segment_id] = np.clip(np.array(label_set[segment.label_id].color) * shade, 0, 255)
    return colors


def _fields_json(result: Result, masks: MaskFormat) -> dict[str, Any]:
    match result:
        case PanopticResult() | SemanticResult():
            return {"segments": _segments_json(result, masks)}
        case InstanceResult():
            return {"instances": _items_json(result.instances, result.masks.__getitem__, masks)}
        case DepthResult():
            return {
                "unit": "m",
                "min": float(result.depth_m.min()),
                "max": float(result.depth_m.max()),
                "scale": DEPTH_SCALE_M,
                "png16": _base64(_png(depth_image(result))),
            }
        case ClassificationResult():
            return {"classes": [asdict(score) for score in result.classes]}
        case EmbeddingResult():
            digits = result.vector.astype(str)  # the fewest that read back as the same float32
            return {"dim": len(result.vector), "vector": digits.astype(np.float64).tolist()}
        case DenseEmbeddingResult():
            height, width, dim = result.vectors.shape
            limit = np.finfo(np.float16).max
            halves = np.clip(result.vectors, -limit, limit).astype("<f2")
            return {"dim": dim, "grid": [height, width], "vectors16": _base64(halves.tobytes())}


def _segments_json(result: PanopticResult | SemanticResult, masks: MaskFormat) -> list[dict[str, Any]]:
    columns_first = np.asfortranarray(result.segment_map)  # COCO's order; turned once, not for every segment
    segments = result.segments
    return _items_json(segments, lambda number: encode(columns_first == segments[number].segment_id), masks)


def _items_json(segments: Sequence[Segment], mask_of: Callable[[int], Rle], masks: MaskFormat) -> list[dict[str, Any]]:
    """Segments with their masks, which are asked for by the segment's place, and only if they are wanted."""
    items = []
    for number, segment in enumerate(segments):
        item = _item_json(segment)
        if masks == "rle":
            rle = mask_of(number)
            item["rle"] = {"size": list(rle.size), "counts": rle.counts}
        elif masks == "polygon":
            item["polygons"] = _polygons(mask_of(number))
        items.append(item)
    return items


def _item_json(segment: Segment) -> dict[str, Any]:
    item = asdict(segment) | {"bbox": list(segment.bbox)}
    if segment.track_id is None:
        del item["track_id"]
    return item


def _polygons(mask: Rle) -> list[list[float]]:
    """Outer outlines as COCO polygons, [x0, y0, x1, y1, …] in pixels; holes are not told."""
    x, y, width, height = mask.bbox()
    padded = np.pad(mask.decode()[y : y + height, x : x + width].astype(np.float32), 1)
    generator = contourpy.contour_generator(z=padded, fill_type="OuterOffset")
    outlines = []
    for points, offsets in zip(*generator.filled(0.5, np.inf), strict=True):
        outer = points[: offsets[1] - 1]  # the ring repeats its first point
        steps = np.diff(outer, axis=0, prepend=outer[-1:])
        corners = outer[(steps != np.roll(steps, -1, axis=0)).any(axis=1)]
        corners += (x - 0.5, y - 0.5)  # the pad and the half pixel go
        outlines.append([round(value, 1) for value in corners.ravel().tolist()])
    return outlines


def _label_image(result: SemanticResult, label_set: LabelSet | None) -> Image.Image:
    num_labels = int(result.segment_map.max(initial=0)) if label_set is None else len(label_set)
    # Void is 0 in the map; one less wraps to the largest value, 255 or 65535.
    return Image.fromarray((result.segment_map - 1).astype(np.uint8 if num_labels <= 255 else np.uint16))


def _overlay(
    ids: NDArray[np.int32], segments: Sequence[Segment], picture: Image.Image, label_set: LabelSet | None
) -> Image.Image:
    assert label_set is not None
    height, width = ids.shape
    colors = segment_colors(segments, label_set)[ids]
    base = np.asarray(picture.resize((width, height))).astype(np.float32)
    blended = np.where((ids > 0)[..., None], 0.45 * base + 0.55 * colors, base)
    blended[_edges(ids)] = 255
    return Image.fromarray(blended.astype(np.uint8))


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


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _write_json(archive: zipfile.ZipFile, name: str, value: object) -> None:
    _write_array(archive, name, np.array(json.dumps(value)))


def _write_masks(archive: zipfile.ZipFile, name: str, result: InstanceResult) -> None:
    """[N, H, W] bool, of which only one mask is in memory at a time: all may be more than fits."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        shape = (len(result.masks), *result.image_size)
        np.lib.format.write_array_header_1_0(file, {"descr": "|b1", "fortran_order": False, "shape": shape})
        for mask in result.masks:
            file.write(mask.decode().tobytes())


def _rounded(timing: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _rounded(value) if isinstance(value, Mapping) else round(value, 3) if isinstance(value, float) else value
        for key, value in timing.items()
    }
