"""A trained head as a bundle: its weights, its label set, and a file that extends the bundle whose encoder it reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from decoders.labels import LabelSet, load_label_set, packaged_label_sets
from encoders.checkpoints import sha256_of
from serving.bundles.schema import TaskEntry, packaged_bundles, read_bundle
from serving.errors import StartError

FILE_NAME = "bundle.yaml"


def check_new(folder: Path) -> None:
    """Raise if a folder has a bundle already, for hours of work may be in it, or the encoder that is to be read.

    Raises:
        StartError: it has.
    """
    path = folder / FILE_NAME
    if path.exists():
        raise StartError(f"{path} is there already: give another --out, or delete it")


def write_label_set(folder: Path, task: str, label_set: LabelSet) -> str:
    """What a bundle in `folder` calls a label set: a packaged one's name, or a file that is written there."""
    if label_set.name in packaged_label_sets() and load_label_set(label_set.name) == label_set:
        return label_set.name
    entries = [{"name": each.name, "thing": each.is_thing, "color": list(each.color)} for each in label_set.labels]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task}_labels.yaml"
    path.write_text(yaml.safe_dump({"labels": entries}, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path.name


def write_bundle(folder: Path, base: str, task: str, entry: TaskEntry) -> Path:
    """Write ``bundle.yaml`` beside a head's weights.

    Args:
        folder: that holds the weights, ``TASK.safetensors``.
        base: the bundle with the encoder: a packaged one's name, or a path.
        task: of the head: one of the base's, which it replaces, or a new one, which is then the default task.
        entry: the head; which weights it has is filled in here.

    Returns:
        The file.

    Raises:
        BundleError: it would be no valid bundle.
    """
    weights = folder / f"{task}.safetensors"
    parent, _ = read_bundle(base)
    trained = entry.model_dump(mode="json", exclude_defaults=True)
    trained |= {"weights": weights.name, "sha256": sha256_of(weights)}
    if task in parent.tasks:  # a key that is left out would be the parent's
        trained = dict.fromkeys(parent.tasks[task].model_fields_set - trained.keys() - {"settings"}) | trained
        trained["description"] = entry.description
    content: dict[str, Any] = {"name": folder.resolve().name, "extends": _reference(base, folder)}
    if task not in parent.tasks:
        content["default_tasks"] = [task]
    content["tasks"] = {task: trained}
    path = folder / FILE_NAME
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    read_bundle(str(path))
    return path


def _reference(base: str, folder: Path) -> str:
    return base if base in packaged_bundles() else os.path.relpath(Path(base).resolve(), folder.resolve())
