"""From a server's JSON answer back to typed results: the inverse of `serving.render`, for clients."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from decoders.labels import Label, LabelSet
from decoders.results import DepthResult, PanopticResult, Result, Segment


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
    if "segments" in result:
        items = result["segments"]
        size = items[0]["rle"]["size"] if items else (image["height"], image["width"])
        segment_map = np.zeros(size, dtype=np.int32)
        for item in items:
            segment_map[coco_mask.decode(item["rle"]).astype(bool)] = item["segment_id"]
        fields = ("segment_id", "label_id", "label", "is_thing", "score", "area")
        segments = (Segment(**{f: item[f] for f in fields}, bbox=tuple(item["bbox"])) for item in items)
        return PanopticResult(segment_map, tuple(segments))
    if "png16" in result:
        steps = np.asarray(Image.open(io.BytesIO(base64.b64decode(result["png16"]))))
        return DepthResult((steps * result["scale"]).astype(np.float32))
    raise ValueError(f"the result of task '{task}' is of no known kind; its fields: {', '.join(result)}")
