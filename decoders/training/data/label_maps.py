"""A folder of pictures and a folder of label maps with the same stems: ADE20K, CamVid, Cityscapes and one's own.

Where things lie, for each split or without splits:

- ``images/`` and ``labels/`` (or ``masks/``, ``label_maps/``, ``annotations/``), or the two below ``SPLIT/``;
- ADE20K: ``images/SPLIT/`` and ``annotations/SPLIT/``; 0 is no class and classes count from 1;
- Cityscapes: ``leftImg8bit/SPLIT/`` and ``gtFine/SPLIT/``, ``*_labelTrainIds.png`` or else ``*_labelIds.png``;
- CamVid: ``SPLIT/`` and ``SPLIT_labels/`` or ``SPLITannot/``, colours by ``label_colors.txt``.

A map's pixels are class ids, or colours if it is an RGB picture. Names of the classes come from ``labels.txt`` or
``classes.txt`` (a line each), or from ``label_colors.txt`` (a line each: red, green, blue, name).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.labels import Label, LabelSet, new_label_set
from decoders.training.data.folders import DataError, choose_split, pictures_in
from decoders.training.data.lookup import translate_map
from decoders.training.data.samples import IGNORE, Dataset, ImageFile, Problem, SemanticSample

_MAP_FOLDERS = ("labels", "masks", "label_maps", "annotations")
_PICTURE_ENDINGS = ("_leftImg8bit",)
_MAP_ENDINGS = ("_gtFine_labelTrainIds", "_gtFine_labelIds", "_labels", "_label", "_mask", "_L", "")
"""Of a map's stem, beside the picture's; an earlier one wins."""
_CITYSCAPES = (
    *(
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
    ),
    *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Of the 19 classes in ``*_labelIds.png`` (cityscapesScripts, helpers/labels.py); the other ids are ignored."""

Color = tuple[int, int, int]
_WRONG = IGNORE - 1


@dataclass(frozen=True)
class MapFormat:
    """What the pixels of a label map mean.

    Attributes:
        first_id: the id of label 0; None: 1 in ADE20K's layout, or else 0.
        ignored_ids: ids of no class.
        ignored_colors: colours of no class, RGB in [0, 255].
    """

    first_id: int | None = None
    ignored_ids: frozenset[int] = frozenset({255})
    ignored_colors: frozenset[Color] = frozenset({(0, 0, 0)})


@dataclass(frozen=True)
class _Meaning:
    """``{pixel: label_id}`` by id and by colour; what is ignored is `IGNORE`, what is in neither is a mistake."""

    by_id: Mapping[int, int] = field(default_factory=dict)
    by_color: Mapping[Color, int] = field(default_factory=dict)
    others_ignored: bool = False


def load_label_maps(
    root: Path,
    split: str | None = None,
    label_set: LabelSet | None = None,
    *,
    map_format: MapFormat | None = None,
    prefer: str = "train",
) -> Dataset[SemanticSample]:
    """List pictures with label maps; none is opened, unless the classes must be found in the maps.

    Args:
        root: the data's folder.
        split: its name or how it begins; None: the only one, or the one that begins with `prefer`.
        label_set: the classes; None: those that a file in `root` names, or else one for each id in the maps.
        map_format: what pixels mean.
        prefer: see `split`.

    Raises:
        DataError: there is no such data or split, or its classes can't be told.
    """
    map_format = map_format or MapFormat()
    pairs = _pairs(root)
    if not pairs:
        raise DataError(f"{root} holds no label maps: no images/ beside one of {'/, '.join(_MAP_FOLDERS)}/")
    if list(pairs) == [""] and split is not None:
        raise DataError(f"{root}: images/ is not divided, so there is no split '{split}'")
    images, maps = pairs[""] if list(pairs) == [""] else pairs[choose_split(pairs, split, prefer, root)]
    problems: list[Problem] = []
    by_stem = _maps_by_stem(maps)
    pictures = []
    for path in pictures_in(images, deep=True):
        name = path.relative_to(images).as_posix()
        found = by_stem.get(_without_ending(path.relative_to(images).with_suffix("").as_posix(), _PICTURE_ENDINGS))
        if found is None:
            problems.append(Problem(name, f"has no label map in {maps}"))
        else:
            pictures.append((name, path, found))
    if not pictures and not problems:
        problems.append(Problem(str(images), "no pictures"))
    is_ade = maps.parent.name == "annotations" and images.parent.name == "images"
    first_id = (1 if is_ade else 0) if map_format.first_id is None else map_format.first_id
    ignored = map_format.ignored_ids | ({0} if first_id == 1 else set())
    city_ids = any(path.stem.endswith("_gtFine_labelIds") for _, _, path in pictures)
    colors = _read_colors(root / "label_colors.txt")
    names = _names(root, is_city=maps.parent.name == "gtFine") or list(colors)
    if label_set is None and names:
        label_set = _colored(new_label_set(root.name, names), colors)
    if label_set is None:
        ids = sorted(_ids_in([path for _, _, path in pictures]) - ignored)
        label_set = new_label_set(root.name, [f"class_{number}" for number in ids])
        by_id = {number: label_id for label_id, number in enumerate(ids)}
    elif city_ids:
        by_id = dict(zip(_CITYSCAPES_IDS, range(len(label_set)), strict=False))
    else:
        by_id = {first_id + label_id: label_id for label_id in range(len(label_set))}
    by_id |= dict.fromkeys(ignored, IGNORE)
    palette = {label.color: label.label_id for label in _colored(label_set, colors).labels}
    by_color = dict.fromkeys(map_format.ignored_colors, IGNORE) | palette
    meaning = _Meaning(by_id, by_color, others_ignored=city_ids)
    samples = (
        SemanticSample(name, ImageFile(path), partial(_read_map, found, meaning)) for name, path, found in pictures
    )
    return Dataset(root.name, tuple(samples), label_set, tuple(problems))


def _pairs(root: Path) -> dict[str, tuple[Path, Path]]:
    """``{split: (pictures, maps)}``; the split is "" where there are none."""
    images = root / "images"
    for name in _MAP_FOLDERS:
        if images.is_dir() and (root / name).is_dir():
            splits = [path.name for path in images.iterdir() if path.is_dir() and (root / name / path.name).is_dir()]
            return {each: (images / each, root / name / each) for each in splits} or {"": (images, root / name)}
    found: dict[str, tuple[Path, Path]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name == "leftImg8bit":
            found |= {
                p.name: (p, root / "gtFine" / p.name) for p in folder.iterdir() if (root / "gtFine" / p.name).is_dir()
            }
        for maps in (
            *(folder / name for name in _MAP_FOLDERS),
            root / f"{folder.name}_labels",
            root / f"{folder.name}annot",
        ):
            if maps.is_dir():
                found.setdefault(folder.name, (folder if maps.parent == root else folder / "images", maps))
    return found


def _maps_by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, tuple[int, Path]] = {}
    for path in pictures_in(folder, deep=True):
        if path.stem.endswith(("_gtFine_color", "_gtFine_instanceIds")):
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        rank, ending = next((rank, end) for rank, end in enumerate(_MAP_ENDINGS) if stem.endswith(end))
        key = stem.removesuffix(ending)
        if key not in found or rank < found[key][0]:
            found[key] = (rank, path)
    return {key: path for key, (_, path) in found.items()}


def _without_ending(stem: str, endings: Sequence[str]) -> str:
    return next((stem.removesuffix(ending) for ending in endings if stem.endswith(ending)), stem)


def _names(root: Path, *, is_city: bool) -> list[str]:
    for name in ("labels.txt", "classes.txt"):
        if (root / name).is_file():
            return [line.strip() for line in (root / name).read_text(encoding="utf-8").splitlines() if line.strip()]
    return list(_CITYSCAPES) if is_city else []


def _read_colors(path: Path) -> dict[str, Color]:
    """``{name: colour}`` of a file with a line ``red green blue name`` for each class; {} without the file."""
    colors: dict[str, Color] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        parts = line.split(maxsplit=3)
        if not parts:
            continue
        if len(parts) < 4 or not all(part.isdigit() and int(part) < 256 for part in parts[:3]):
            raise DataError(f"{path}: '{line}' is not: red green blue name")
        colors[parts[3].strip()] = (int(parts[0]), int(parts[1]), int(parts[2]))
    return colors


def _colored(label_set: LabelSet, colors: Mapping[str, Color]) -> LabelSet:
    """The label set in the colours given for its names."""
    labels = (
        Label(each.label_id, each.name, each.is_thing, colors.get(each.name, each.color)) for each in label_set.labels
    )
    return LabelSet(label_set.name, tuple(labels))


def _ids_in(maps: Sequence[Path]) -> set[int]:
    found: set[int] = set()
    for path in maps:
        pixels = _pixels(path)
        if pixels.ndim == 3:
            raise DataError(f"{path} is a picture of colours: name them in label_colors.txt, or give a label set")
        found |= set(np.unique(pixels).tolist())
    return found


def _pixels(path: Path) -> NDArray[np.int32]:
    """[H, W] ids, or [H, W, 3] colours."""
    with Image.open(path) as image:
        if image.mode in ("RGB", "RGBA"):
            return np.asarray(image.convert("RGB")).astype(np.int32)
        return np.asarray(image).astype(np.int32)


def _read_map(path: Path, meaning: _Meaning) -> NDArray[np.int32]:
    """A label map.

    Raises:
        ValueError: a pixel is no class and not ignored; names the values.
    """
    pixels = _pixels(path)
    is_colored = pixels.ndim == 3
    if is_colored:
        table = {(red << 16) | (green << 8) | blue: label for (red, green, blue), label in meaning.by_color.items()}
        pixels = pixels @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    else:
        table = dict(meaning.by_id)
    labels = translate_map(pixels, table, IGNORE if meaning.others_ignored else _WRONG)
    wrong = np.unique(pixels[labels == _WRONG]).tolist()
    if wrong:
        told = [f"#{value:06x}" if is_colored else str(value) for value in wrong[:8]]
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{path.name} holds values that are no class: {', '.join(told)}{more}")
    return labels
