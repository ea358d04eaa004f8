"""From a server's JSON answer back to typed results: the inverse of `serving.answers.render`, for clients."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.labels import Label, LabelSet
from decoders.masks import Rle
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


def parse_results(answer: Mapping[str, Any]) -> dict[str, Result]:
    """The results in an answer of `POST /segment` that was asked for with ``masks=rle``, by task.

    Raises:
        ValueError: a result is of a kind that this version does not know.
    """
    return {task: _parse_result(task, result, answer["image"]) for task, result in answer["results"].items()}


def parse_label_sets(tasks: Mapping[str, Any]) -> dict[str, LabelSet]:
    """The label sets in an answer of `GET /tasks`, by task."""
    return {
        entry["name"]: LabelSet(
            entry["name"],
            tuple(Label(x["label_id"], x["name"], x["is_thing"], tuple(x["color"])) for x in entry["labels"]),
        )
        for entry in tasks["tasks"]
        if entry["labels"]
    }


def _parse_result(task: str, result: Mapping[str, Any], image: Mapping[str, int]) -> Result:
    kind = result.get("kind")
    match kind:
        case "panoptic":
            return PanopticResult(_segment_map(result["segments"], image), _segments(result["segments"]))
        case "semantic":
            return SemanticResult(_segment_map(result["segments"], image), _segments(result["segments"]))
        case "instance":
            items = result["instances"]
            return InstanceResult(_map_size(items, image), _segments(items), tuple(_rle(item) for item in items))
        case "depth":
            steps = np.asarray(Image.open(io.BytesIO(base64.b64decode(result["png16"]))))
            return DepthResult((steps * result["scale"]).astype(np.float32))
        case "classification":
            return ClassificationResult(
                tuple(ClassScore(x["label_id"], x["label"], x["score"]) for x in result["classes"])
            )
        case "embedding":
            return EmbeddingResult(np.array(result["vector"], dtype=np.float32))
        case "dense_embedding":
            halves = np.frombuffer(base64.b64decode(result["vectors16"]), dtype="<f2")
            return DenseEmbeddingResult(halves.reshape(*result["grid"], result["dim"]).astype(np.float32))
    raise ValueError(f"the result of task '{task}' is of unknown kind '{kind}'; its fields: {', '.join(result)}")


def _segments(items: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
    fields = ("segment_id", "label_id", "label", "is_thing", "score", "area")
    return tuple(
        Segment(**{field: item[field] for field in fields}, bbox=tuple(item["bbox"]), track_id=item.get("track_id"))
        for item in items
    )


def _segment_map(items: Sequence[Mapping[str, Any]], image: Mapping[str, int]) -> NDArray[np.int32]:
    segment_map = np.zeros(_map_size(items, image), dtype=np.int32)
    for item in items:
        segment_map[_rle(item).decode()] = item["segment_id"]
    return segment_map


def _map_size(items: Sequence[Mapping[str, Any]], image: Mapping[str, int]) -> tuple[int, int]:
    """(height, width) of the masks; without any, the picture's stands in."""
    return _rle(items[0]).size if items else (image["height"], image["width"])


def _rle(item: Mapping[str, Any]) -> Rle:
    height, width = item["rle"]["size"]
    return Rle((height, width), item["rle"]["counts"])
