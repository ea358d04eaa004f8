"""Labelled pictures on disk: COCO panoptic folders and RGB-D frames, read into plain samples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.labels import LabelSet


@dataclass(frozen=True)
class PanopticSample:
    """A picture and its panoptic truth.

    Attributes:
        name: file name, for messages.
        image: RGB.
        segment_map: [H, W] int32, segment ids, 0 = unlabelled.
        labels: ``{segment id: label_id}``.
        crowd_ids: segments that stand for a group; never a target, and pardoned when scoring.
    """

    name: str
    image: Image.Image
    segment_map: NDArray[np.int32]
    labels: dict[int, int]
    crowd_ids: frozenset[int]


@dataclass(frozen=True)
class DepthSample:
    """A picture and its depth: [H, W] float32 metres, NaN where nothing was measured."""

    name: str
    image: Image.Image
    depth_m: NDArray[np.float32]


def load_coco_panoptic(root: Path, split: str, label_set: LabelSet) -> list[PanopticSample]:
    """Read a COCO panoptic split: ``panoptic/panoptic_<split>.json``, its folder of PNGs, and ``images/<split>``.

    A category is looked up in `label_set` by its super-category, or else by its own name.

    Raises:
        FileNotFoundError: the JSON, a picture or a PNG is missing.
        ValueError: a category is in neither form in the label set.
    """
    truth = json.loads((root / "panoptic" / f"panoptic_{split}.json").read_text())
    by_name = {label.name: label.label_id for label in label_set.labels}
    label_of_category: dict[int, int] = {}
    for category in truth["categories"]:
        label_id = by_name.get(category["supercategory"], by_name.get(category["name"]))
        if label_id is None:
            raise ValueError(
                f"category {category['name']!r} ({category['supercategory']!r}) is not in label set {label_set.name}"
            )
        label_of_category[category["id"]] = label_id
    file_names = {image["id"]: image["file_name"] for image in truth["images"]}
    samples = []
    for annotation in truth["annotations"]:
        name = file_names[annotation["image_id"]]
        image = Image.open(root / "images" / split / name).convert("RGB")
        rgb = np.asarray(Image.open(root / "panoptic" / f"panoptic_{split}" / annotation["file_name"]).convert("RGB"))
        ids = rgb.astype(np.int32) @ np.array([1, 256, 65536], dtype=np.int32)
        segments = annotation["segments_info"]
        samples.append(
            PanopticSample(
                name,
                image,
                ids,
                {segment["id"]: label_of_category[segment["category_id"]] for segment in segments},
                frozenset(segment["id"] for segment in segments if segment["iscrowd"]),
            )
        )
    return samples


def load_rgbd_frames(root: Path, first: int, last: int) -> list[DepthSample]:
    """Read the frames ``frame-NNNNNN.color.jpg`` / ``.depth.png`` (16-bit millimetres) numbered first..last.

    Raises:
        FileNotFoundError: there is no such frame.
    """
    samples = []
    for color in sorted(root.glob("frame-*.color.jpg")):
        number = int(color.name.split("-")[1].split(".")[0])
        if not first <= number <= last:
            continue
        raw = np.asarray(Image.open(color.with_name(color.name.replace(".color.jpg", ".depth.png"))))
        depth_m = raw.astype(np.float32) / np.float32(1000)
        depth_m[(raw == 0) | (raw == 65535)] = np.nan
        samples.append(DepthSample(color.name, Image.open(color).convert("RGB"), depth_m))
    if not samples:
        raise FileNotFoundError(f"no RGB-D frames {first}..{last} in {root}")
    return samples
