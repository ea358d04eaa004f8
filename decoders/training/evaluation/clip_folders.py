"""Labelled video on disk, in the two layouts that the field has.

- VIPSeg's and Cityscapes-VPS's: ``panoptic_*.json`` with ``videos`` and, for each, its frames' ``annotations``; PNGs in
  ``panomasksRGB/VIDEO/`` or in a folder of the JSON's name, frames in ``images/VIDEO/``;
- YouTube-VIS's: ``instances*.json`` or ``annotations.json`` with ``videos[].file_names`` and, for each object, run
  lengths by frame; frames in ``JPEGImages/`` or ``images/``.
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
from decoders.masks import Rle, encode
from decoders.training.data.categories import label_set_of_categories, match_categories, read_categories
from decoders.training.data.coco import read_segments
from decoders.training.data.folders import DataError, first_folder
from decoders.training.data.samples import (
    Dataset,
    ImageFile,
    InstanceMask,
    InstanceSample,
    PanopticSample,
    Problem,
    Sample,
    as_semantic,
)
from decoders.training.evaluation.clips import Clip

_PNG_FOLDERS = ("panomasksRGB", "panoptic_video")
_IMAGE_FOLDERS = ("JPEGImages", "images", "imgs")


@dataclass(frozen=True)
class ClipData:
    """Clips of one kind; `frames` holds all their frames, for `check_data`."""

    clips: tuple[Clip, ...]
    frames: Dataset[Sample]


def holds_clips(root: Path, split: str | None = None) -> bool:
    """Whether a folder holds labelled video, as against labelled pictures."""
    return bool(_indices(root, split))


def open_clips(kind: str, root: Path, split: str | None = None, label_set: LabelSet | None = None) -> ClipData:
    """List the clips of a folder; no frame is opened.

    Args:
        kind: ``"panoptic"``, ``"semantic"`` (both of VIPSeg's layout) or ``"instance"`` (YouTube-VIS's).
        root: the folder.
        split: part of the JSON's name, ``"val"`` say, where there are several.
        label_set: as in `open_data`.

    Raises:
        DataError: the folder holds no such clips, or several such files and no split says which.
    """
    form = "instances" if kind == "instance" else "panoptic"
    found = {path: index for path, index in _indices(root, split).items() if _form(index) == form}
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{root}: one JSON file of {form} with 'videos' is needed; there are: {names}")
    [(path, index)] = found.items()
    categories = read_categories(index["categories"])
    entries = index["annotations"]
    if form == "panoptic":
        used = Counter(s["category_id"] for video in entries for f in video["annotations"] for s in f["segments_info"])
    else:
        used = Counter(entry["category_id"] for entry in entries)
    label_set = label_set or label_set_of_categories(root.name, categories)
    label_of, unknown = match_categories(categories, label_set, used)
    problems: list[Problem] = []
    clips = (_panoptic_clips if form == "panoptic" else _instance_clips)(path, index, label_of, problems)
    if kind == "semantic":
        clips = [
            Clip(clip.name, tuple(as_semantic(f) for f in clip.frames if isinstance(f, PanopticSample)))
            for clip in clips
        ]
    frames = tuple(frame for clip in clips for frame in clip.frames)
    return ClipData(tuple(clips), Dataset(root.name, frames, label_set, (*problems, *unknown)))


def _indices(root: Path, split: str | None) -> dict[Path, dict[str, Any]]:
    """The JSON files that list videos."""
    found = {}
    for path in sorted([*root.glob("*.json"), *root.glob("annotations/*.json")]):
        if split is not None and split not in path.stem:
            continue
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # whatever it is, it lists no videos
        if isinstance(index, dict) and index.get("videos") and {"annotations", "categories"} <= index.keys():
            found[path] = index
    return found


def _form(index: dict[str, Any]) -> str:
    return "instances" if "file_names" in index["videos"][0] else "panoptic"


def _panoptic_clips(path: Path, index: dict[str, Any], label_of: dict[int, int], problems: list[Problem]) -> list[Clip]:
    pngs = first_folder(path.parent, (*_PNG_FOLDERS, path.stem)) or path.with_suffix("")
    images = first_folder(path.parent, _IMAGE_FOLDERS) or path.parent
    truth = {entry["video_id"]: entry["annotations"] for entry in index["annotations"]}
    clips = []
    for video in index["videos"]:
        frames: list[Sample] = []
        files = {image["id"]: image["file_name"] for image in video["images"]}
        for entry in truth.get(video["video_id"], []):
            file_name = files.get(entry["image_id"], entry["file_name"])
            name = f"{video['video_id']}/{file_name}"
            photo = _picture(images / str(video["video_id"]), file_name)
            png = (pngs / str(video["video_id"]) / entry["file_name"]).with_suffix(".png")
            problems += [Problem(name, f"{each} is missing") for each in (photo, png) if not each.is_file()]
            infos = entry["segments_info"]
            labels = {info["id"]: label_of.get(info["category_id"], 0) for info in infos}
            crowds = frozenset(info["id"] for info in infos if info.get("iscrowd", 0))
            frames.append(PanopticSample(name, ImageFile(photo), partial(read_segments, png, labels, crowds)))
        if frames:
            clips.append(Clip(str(video["video_id"]), tuple(frames)))
        else:
            problems.append(Problem(str(video["video_id"]), "the video has no annotated frame"))
    return clips


def _instance_clips(path: Path, index: dict[str, Any], label_of: dict[int, int], problems: list[Problem]) -> list[Clip]:
    images = (
        first_folder(path.parent, _IMAGE_FOLDERS) or first_folder(path.parent.parent, _IMAGE_FOLDERS) or path.parent
    )
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for entry in index["annotations"]:
        objects[entry["video_id"]].append(entry)
    clips = []
    for video in index["videos"]:
        own, size = objects[video["id"]], (video["height"], video["width"])
        frames: list[Sample] = []
        for number, file_name in enumerate(video["file_names"]):
            if not (images / file_name).is_file():
                problems.append(Problem(file_name, f"{images / file_name} is missing"))
            masks = [
                (label_of.get(each["category_id"], 0), each["segmentations"][number], bool(each.get("iscrowd", 0)))
                for each in own
            ]
            read_masks = partial(_read_masks, size, masks)
            frames.append(InstanceSample(file_name, ImageFile(images / file_name), read_masks))
        clips.append(Clip(str(Path(video["file_names"][0]).parent), tuple(frames)))
    return clips


def _picture(folder: Path, file_name: str) -> Path:
    """A frame; VIPSeg's JSON names its PNG, and the photo beside it is a JPEG."""
    path = folder / file_name
    return path if path.is_file() else path.with_suffix(".jpg")


def _read_masks(size: tuple[int, int], masks: list[tuple[int, dict[str, Any] | None, bool]]) -> list[InstanceMask]:
    return [InstanceMask(label_id, _rle(coded, size), is_crowd) for label_id, coded, is_crowd in masks]


def _rle(coded: dict[str, Any] | None, size: tuple[int, int]) -> Rle:
    """YouTube-VIS's run lengths, in numbers or compressed; None: out of view."""
    if coded is None:
        return encode(np.zeros(size, dtype=bool, order="F"))
    compressed = coco_mask.frPyObjects(coded, *size) if isinstance(coded["counts"], list) else coded
    counts = compressed["counts"]
    return Rle(size, counts if isinstance(counts, str) else counts.decode("ascii"))
