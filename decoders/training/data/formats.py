"""Opening a data folder for one kind of truth, whichever of the layouts it has."""

from __future__ import annotations

from pathlib import Path

from decoders.labels import LabelSet
from decoders.training.data.class_folders import load_class_folders
from decoders.training.data.coco import find_plain, load_coco_instances, load_coco_panoptic
from decoders.training.data.folders import DataError
from decoders.training.data.label_maps import MapFormat, load_label_maps
from decoders.training.data.rgbd import load_rgbd
from decoders.training.data.samples import Dataset, Sample, as_instances, as_semantic

KINDS = ("panoptic", "instance", "semantic", "depth", "classification")
"""Kinds of truth, named as the results they are compared with."""


def open_data(
    kind: str,
    root: Path,
    split: str | None = None,
    label_set: LabelSet | None = None,
    *,
    prefer: str = "train",
    map_format: MapFormat | None = None,
    depth_scale: float | None = None,
) -> Dataset[Sample]:
    """List the samples of a data folder; no picture is opened.

    Panoptic data serves semantic and instance heads as well, where the folder has no truth of their own.

    Args:
        kind: one of `KINDS`; the samples are `PanopticSample`, `InstanceSample`, `SemanticSample`, `DepthSample` or
            `ClassSample`.
        root: the folder.
        split: part of it; what a split is, and what None means, is the layout's to say.
        label_set: the classes; None: one is made from the data.
        prefer: how the split begins that is taken when none is asked for: ``"train"`` or ``"val"``.
        map_format: of label maps.
        depth_scale: metres per unit of depth maps.

    Raises:
        DataError: the folder holds no such data.
        ValueError: there is no such kind.
    """
    if not root.is_dir():
        raise DataError(f"no folder {root}")
    match kind:
        case "panoptic":
            return load_coco_panoptic(root, split, label_set, prefer=prefer)
        case "instance" if _has(root, "instances") or not _has(root, "panoptic"):
            return load_coco_instances(root, split, label_set, prefer=prefer)
        case "instance":
            panoptic = load_coco_panoptic(root, split, label_set, prefer=prefer)
            assert panoptic.label_set is not None
            instances = tuple(as_instances(sample, panoptic.label_set) for sample in panoptic.samples)
            return Dataset(panoptic.name, instances, panoptic.label_set, panoptic.problems)
        case "semantic" if _has(root, "panoptic"):
            panoptic = load_coco_panoptic(root, split, label_set, prefer=prefer)
            semantic = tuple(as_semantic(sample) for sample in panoptic.samples)
            return Dataset(panoptic.name, semantic, panoptic.label_set, panoptic.problems)
        case "semantic":
            return load_label_maps(root, split, label_set, map_format=map_format, prefer=prefer)
        case "depth":
            return load_rgbd(root, split, scale=depth_scale, prefer=prefer)
        case "classification":
            return load_class_folders(root, split, label_set, prefer=prefer)
    raise ValueError(f"no kind of data '{kind}'; there are: {', '.join(KINDS)}")


def _has(root: Path, form: str) -> bool:
    """Whether COCO files of a form are there: by their names, or by a plain folder's PNGs."""
    if any(True for folder in ("annotations", "panoptic", "instances") for _ in (root / folder).glob(f"{form}_*.json")):
        return True
    plain = [root] if find_plain(root) else [path for path in root.iterdir() if path.is_dir() and find_plain(path)]
    return any((path / "panoptic").is_dir() == (form == "panoptic") for path in plain)
