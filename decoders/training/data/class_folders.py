"""A folder of pictures for each class, below a folder for each split if there are splits."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from decoders.labels import LabelSet, new_label_set
from decoders.training.data.folders import DataError, choose_split, pictures_in
from decoders.training.data.samples import ClassSample, Dataset, ImageFile, Problem


def load_class_folders(
    root: Path, split: str | None = None, label_set: LabelSet | None = None, *, prefer: str = "train"
) -> Dataset[ClassSample]:
    """List ``[SPLIT/]CLASS/picture.jpg``; no picture is opened.

    Args:
        root: the data's folder.
        split: its name or how it begins; None: the only one, or the one that begins with `prefer`.
        label_set: its names are those of the folders; None: one is made of the folders' names, sorted.
        prefer: see `split`.

    Raises:
        DataError: there is no such split, or there are no folders.
    """
    where = root
    below = _folders(root)
    if below and all(_folders(folder) and not pictures_in(folder) for folder in below):
        where = root / choose_split([folder.name for folder in below], split, prefer, root)
    elif split is not None:
        raise DataError(f"{root}: its folders hold pictures, so it has no split '{split}'")
    classes = _folders(where)
    if not classes:
        raise DataError(f"{where} holds no folders; make one of pictures for each class")
    label_set = label_set or new_label_set(root.name, [folder.name for folder in classes])
    by_name = {label.name: label.label_id for label in label_set.labels}
    samples, problems = [], []
    for folder in classes:
        pictures = pictures_in(folder, deep=True)
        if folder.name not in by_name:
            problems.append(Problem(f"class '{folder.name}'", f"is not in label set {label_set.name}"))
            continue
        if not pictures:
            problems.append(Problem(f"class '{folder.name}'", "its folder holds no pictures"))
        samples += [
            ClassSample(path.relative_to(where).as_posix(), ImageFile(path), by_name[folder.name]) for path in pictures
        ]
    if not samples and not problems:
        problems.append(Problem(str(where), "no pictures"))
    return Dataset(root.name, tuple(samples), label_set, tuple(problems))


def few_of_each(dataset: Dataset[ClassSample], shots: int, seed: int) -> Dataset[ClassSample]:
    """The same classes with at most `shots` pictures each, drawn by `seed`; for trials of few-shot heads.

    Raises:
        DataError: `shots` is less than 1.
    """
    if shots < 1:
        raise DataError(f"{shots} pictures of each class were asked for; take at least 1")
    by_class: dict[int, list[ClassSample]] = {}
    for sample in dataset.samples:
        by_class.setdefault(sample.label_id, []).append(sample)
    picked = {
        sample.name
        for label_id, samples in by_class.items()
        for sample in random.Random(f"{seed} {label_id}").sample(samples, min(shots, len(samples)))  # noqa: S311
    }
    return dataclasses.replace(dataset, samples=tuple(s for s in dataset.samples if s.name in picked))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
