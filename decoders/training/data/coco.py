"""COCO's two formats, panoptic (JSON and PNGs, https://cocodataset.org/#format-data) and instances (JSON).

Where things lie, tried in this order; ``SPLIT`` is ``train2017``, say:

- ``annotations/panoptic_SPLIT.json``, its PNGs in ``annotations/panoptic_SPLIT/``, photos in ``SPLIT/`` or
  ``images/SPLIT/``; the folder may be called ``panoptic`` instead of ``annotations``;
- a plain folder: ``annotations.json``, photos in ``images/`` or beside it, PNGs in ``panoptic/``;
- a plain folder for each split: ``SPLIT/annotations.json`` and so on.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from decoders.labels import LabelSet
from decoders.masks import Rle
from decoders.segment_png import read_segment_ids
from decoders.training.data.categories import label_set_of_categories, match_categories, read_categories
from decoders.training.data.folders import DataError, choose_split, first_folder
from decoders.training.data.samples import (
    Dataset,
    ImageFile,
    InstanceMask,
    InstanceSample,
    PanopticSample,
    Problem,
    Segments,
)

_INDEX_NAMES = ("annotations.json", "_annotations.coco.json")
_INDEX_FOLDERS = ("annotations", "panoptic", "instances")


@dataclass(frozen=True)
class CocoFiles:
    """Where a split lies: its JSON, its photos, and the folder of its PNGs (which instances have no use for)."""

    index: Path
    images: Path
    segments: Path


def find_coco(root: Path, form: str, split: str | None, prefer: str) -> CocoFiles | None:
    """Find a split.

    Args:
        root: the data's folder.
        form: ``"panoptic"`` or ``"instances"``.
        split: its name or how it begins; None: the only one, or the one that begins with `prefer`.
        prefer: see `split`.

    Returns:
        The files, or None if this is no COCO folder of that form.

    Raises:
        DataError: there is no such split.
    """
    plain = find_plain(root)
    if plain is not None:
        if split is not None:
            raise DataError(f"{root}: a plain folder with {plain.index.name} has no split '{split}'")
        return plain
    splits: dict[str, CocoFiles] = {}
    for folder in _INDEX_FOLDERS:
        for index in (root / folder).glob(f"{form}_*.json"):
            name = index.stem.removeprefix(f"{form}_")
            images = first_folder(root, (f"images/{name}", name)) or root / "images" / name
            splits.setdefault(name, CocoFiles(index, images, index.with_suffix("")))
    for folder_path in root.iterdir():
        plain = find_plain(folder_path)
        if plain is not None:
            splits.setdefault(folder_path.name, plain)
    return splits[choose_split(splits, split, prefer, root)] if splits else None


def find_plain(root: Path) -> CocoFiles | None:
    """A plain folder's files, or None if it is none."""
    for name in _INDEX_NAMES:
        if (root / name).is_file():
            return CocoFiles(root / name, first_folder(root, ("images",)) or root, root / "panoptic")
    return None


def load_coco_panoptic(
    root: Path, split: str | None = None, label_set: LabelSet | None = None, *, prefer: str = "train"
) -> Dataset[PanopticSample]:
    """List a COCO panoptic split; no picture is opened.

    Args:
        root: the data's folder.
        split: as in `find_coco`.
        label_set: its names are super-categories or categories of the data; None: one is made of the categories.
        prefer: as in `find_coco`.

    Raises:
        DataError: there is no such split, or its JSON can't be read.
    """
    files = find_coco(root, "panoptic", split, prefer)
    if files is None:
        raise DataError(f"{root} holds no COCO panoptic data: neither annotations/panoptic_*.json nor annotations.json")
    index = _read_index(files.index)
    problems: list[Problem] = []
    pictures = _pictures(index, files.images, problems)
    annotations = [entry for entry in index["annotations"] if "segments_info" in entry]
    if index["annotations"] and not annotations:
        raise DataError(f"{files.index} holds instances, not panoptic segments (no 'segments_info')")
    categories = read_categories(index["categories"])
    used = Counter(info["category_id"] for entry in annotations for info in entry["segments_info"])
    label_set = label_set or label_set_of_categories(root.name, categories)
    label_of, unknown = match_categories(categories, label_set, used)
    samples: dict[int, PanopticSample] = {}
    for entry in annotations:
        image_id, png = entry["image_id"], files.segments / entry["file_name"]
        if image_id not in pictures:
            problems.append(Problem(entry["file_name"], f"belongs to picture {image_id}, which is not listed"))
            continue
        name, path = pictures[image_id]
        if image_id in samples:
            problems.append(Problem(name, "has two panoptic annotations"))
            continue
        if not png.is_file():
            problems.append(Problem(name, f"its segments are missing: {png}"))
        if not (png.is_file() and path.is_file()):
            continue
        infos = entry["segments_info"]
        labels = {info["id"]: label_of.get(info["category_id"], 0) for info in infos}
        crowds = frozenset(info["id"] for info in infos if info.get("iscrowd", 0))
        samples[image_id] = PanopticSample(name, ImageFile(path), partial(read_segments, png, labels, crowds))
    without = len(pictures.keys() - {entry["image_id"] for entry in annotations})
    if without and annotations:
        problems.append(Problem(files.index.name, f"{without} pictures have no annotation and are left out", False))
    return Dataset(root.name, tuple(samples.values()), label_set, (*problems, *unknown))


def load_coco_instances(
    root: Path, split: str | None = None, label_set: LabelSet | None = None, *, prefer: str = "train"
) -> Dataset[InstanceSample]:
    """List a COCO instances split; arguments and errors as in `load_coco_panoptic`. Pictures may have no objects."""
    files = find_coco(root, "instances", split, prefer)
    if files is None:
        raise DataError(f"{root} holds no COCO instances: neither annotations/instances_*.json nor annotations.json")
    index = _read_index(files.index)
    problems: list[Problem] = []
    pictures = _pictures(index, files.images, problems)
    sizes = {entry["id"]: (entry.get("height"), entry.get("width")) for entry in index["images"]}
    by_picture: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in index["annotations"]:
        if "segmentation" not in entry:
            raise DataError(f"{files.index} holds annotations without 'segmentation' (is it a panoptic file?)")
        if entry["image_id"] in pictures:
            by_picture[entry["image_id"]].append(entry)
        else:
            what = f"belongs to picture {entry['image_id']}, which is not listed"
            problems.append(Problem(f"annotation {entry.get('id')}", what))
    categories = read_categories(index["categories"])
    label_set = label_set or label_set_of_categories(root.name, categories)
    used = Counter(entry["category_id"] for entry in index["annotations"])
    label_of, unknown = match_categories(categories, label_set, used)
    samples = []
    for image_id, (name, path) in pictures.items():
        height, width = sizes[image_id]
        if not (height and width):
            problems.append(Problem(name, "the JSON does not say its height and width"))
        if not (height and width and path.is_file()):
            continue
        entries = [(label_of.get(each["category_id"], 0), each) for each in by_picture[image_id]]
        samples.append(InstanceSample(name, ImageFile(path), partial(_read_masks, (height, width), entries)))
    return Dataset(root.name, tuple(samples), label_set, (*problems, *unknown))


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("images", "annotations", "categories") if not isinstance(index.get(key), list)]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path} can't be read: {error}") from None
    if missing:
        raise DataError(f"{path} is no COCO file: it has no list of {' and '.join(missing)}")
    return dict(index)


def _pictures(index: dict[str, Any], folder: Path, problems: list[Problem]) -> dict[int, tuple[str, Path]]:
    """``{image id: (name, path)}`` of the pictures listed, in order; what is wrong is added to `problems`."""
    found: dict[int, tuple[str, Path]] = {}
    names = Counter(str(entry["file_name"]) for entry in index["images"])
    problems += [Problem(name, f"is listed {count} times") for name, count in names.items() if count > 1]
    if not names:
        problems.append(Problem(str(folder), "no pictures are listed"))
    for entry in index["images"]:
        name, path = str(entry["file_name"]), folder / str(entry["file_name"])
        if not path.is_file():
            problems.append(Problem(name, f"the picture is missing: {path}"))
        found[entry["id"]] = (name, path)
    return found


def read_segments(png: Path, labels: dict[int, int], crowds: frozenset[int]) -> Segments:
    """A panoptic PNG's segments, of which the index has told `labels` by id and `crowds`."""
    return Segments(read_segment_ids(png), labels, crowds)


def _read_masks(size: tuple[int, int], entries: list[tuple[int, dict[str, Any]]]) -> list[InstanceMask]:
    return [
        InstanceMask(label_id, read_rle(entry["segmentation"], size), bool(entry.get("iscrowd", 0)))
        for label_id, entry in entries
    ]


def read_rle(segmentation: Any, size: tuple[int, int]) -> Rle:
    """COCO's polygons, run lengths in numbers, or compressed run lengths, as pycocotools' `annToRLE` reads them."""
    if isinstance(segmentation, list):
        whole = [polygon for polygon in segmentation if len(polygon) >= 6]
        parts = (
            coco_mask.frPyObjects(whole, *size) if whole else [coco_mask.encode(np.zeros(size, np.uint8, order="F"))]
        )
        compressed = coco_mask.merge(parts)
    elif isinstance(segmentation["counts"], list):
        compressed = coco_mask.frPyObjects(segmentation, *segmentation["size"])
    else:
        compressed = segmentation
    counts = compressed["counts"]
    text = counts if isinstance(counts, str) else counts.decode("ascii")
    height, width = compressed["size"]
    return Rle((height, width), text)
