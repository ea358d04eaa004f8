"""Pictures with measured depth: 7-Scenes' frames, or a folder of pictures beside a folder of depth maps.

- ``frame-NNNNNN.color.jpg`` beside ``frame-NNNNNN.depth.png`` (16-bit millimetres); a split is a range, ``0:695``;
- ``images/`` and ``depth/`` with equal stems, below a folder for each split if there are splits; depth is a 16-bit PNG,
  or a NumPy file ``.npy`` [H, W].
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.training.data.folders import DataError, choose_split, first_folder, pictures_in
from decoders.training.data.samples import Dataset, DepthSample, ImageFile, Problem

_IMAGE_FOLDERS = ("images", "image", "rgb", "color")
_DEPTH_FOLDERS = ("depth", "depths")
_MILLIMETRE = 0.001


def load_rgbd(
    root: Path, split: str | None = None, *, scale: float | None = None, prefer: str = "train"
) -> Dataset[DepthSample]:
    """List pictures with depth; none is opened.

    Args:
        root: the data's folder.
        split: a range of 7-Scenes' frame numbers, first and last (``"0:695"``), or a folder's name; None: all frames,
            or the only folder, or that which begins with `prefer`.
        scale: metres per unit of the depth maps [default: 0.001 for PNG, 1 for npy].
        prefer: see `split`.

    Raises:
        DataError: there is no such data or split.
    """
    frames = sorted(root.glob("frame-*.color.jpg"))
    if frames:
        return _frames(root, frames, split, scale)
    folders = {path.name: path for path in root.iterdir() if path.is_dir() and _pair(path) is not None}
    where = root if _pair(root) else folders[choose_split(folders, split, prefer, root)] if folders else root
    pair = _pair(where)
    if pair is None:
        raise DataError(f"{root} holds no depth: neither frame-*.color.jpg nor images/ and depth/")
    images, maps = pair
    samples, problems = [], []
    found = pictures_in(images, deep=True)
    if not found:
        problems.append(Problem(str(images), "no pictures"))
    for path in found:
        stem = path.relative_to(images).with_suffix("")
        depth = next(
            (maps / f"{stem}{suffix}" for suffix in (".npy", ".png") if (maps / f"{stem}{suffix}").is_file()), None
        )
        name = path.relative_to(images).as_posix()
        if depth is None:
            problems.append(Problem(name, f"its depth is missing: {maps / f'{stem}.png'} or .npy"))
        else:
            samples.append(DepthSample(name, ImageFile(path), partial(read_depth_m, depth, scale)))
    return Dataset(root.name, tuple(samples), None, tuple(problems))


def read_depth_m(path: Path, scale: float | None) -> NDArray[np.float32]:
    """A depth map in metres; what is not positive, or the largest number of a PNG, was not measured and becomes NaN."""
    if path.suffix == ".npy":
        raw = np.load(path, allow_pickle=False)
        unknown = ~(np.isfinite(raw) & (raw > 0))
        depth_m = raw.astype(np.float32) * np.float32(1 if scale is None else scale)
    else:
        with Image.open(path) as image:
            raw = np.asarray(image)
        unknown = (raw == 0) | (raw == 65535)
        depth_m = raw.astype(np.float32) * np.float32(_MILLIMETRE if scale is None else scale)
    depth_m[unknown] = np.nan
    return depth_m


def _pair(folder: Path) -> tuple[Path, Path] | None:
    images, depth = first_folder(folder, _IMAGE_FOLDERS), first_folder(folder, _DEPTH_FOLDERS)
    return None if images is None or depth is None else (images, depth)


def _frames(root: Path, frames: list[Path], split: str | None, scale: float | None) -> Dataset[DepthSample]:
    first, last = _range(split)
    samples, problems = [], []
    for color in frames:
        if not first <= int(color.name.split("-")[1].split(".")[0]) <= last:
            continue
        depth = color.with_name(color.name.replace(".color.jpg", ".depth.png"))
        if depth.is_file():
            samples.append(DepthSample(color.name, ImageFile(color), partial(read_depth_m, depth, scale)))
        else:
            problems.append(Problem(color.name, f"its depth is missing: {depth}"))
    if not samples and not problems:
        raise DataError(f"no RGB-D frames {first}..{last} in {root}")
    return Dataset(root.name, tuple(samples), None, tuple(problems))


def _range(split: str | None) -> tuple[int, int]:
    if split is None:
        return 0, 10**9
    first, colon, last = split.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        raise DataError(f"split '{split}' is no range of frames; write e.g. 0:695")
    return int(first), int(last)
