"""Unlabelled pictures for distillation: files and frames of clips, and random views of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi"})
LEAST_SCALE, MOST_STRETCH = 0.15, 4 / 3


def find_pictures(roots: Iterable[Path], *, leave_out: Sequence[str] = ()) -> list[Path]:
    """Every picture and video file below some folders, each once, sorted.

    Args:
        roots: folders.
        leave_out: parts of a path that keep a file out (held-out data, label maps).

    Raises:
        FileNotFoundError: there is none.
    """
    found = {
        path
        for root in roots
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES
        and not any(part in str(path) for part in leave_out)
        and path.is_file()
    }
    if not found:
        raise FileNotFoundError(f"no pictures below {', '.join(map(str, roots))}")
    return sorted(found)


def load_pictures(paths: Sequence[Path], short_side: int, frames_apart: int) -> Iterator[list[Image.Image]]:
    """What each file holds: one picture, or frames of a clip, RGB, upright, small enough to stay in memory.

    Args:
        paths: of `find_pictures`.
        short_side: pixels; larger pictures are made smaller.
        frames_apart: of a clip, one frame in so many is taken.

    Raises:
        OSError: a file can't be read; says which.
    """
    for path in paths:
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                found = _read_clip(path, short_side, frames_apart)
            else:
                found = [_read_picture(path, short_side)]
        except Exception as error:  # Pillow and FFmpeg have many kinds, some without the file's name
            raise OSError(f"{path} can't be read: {error}") from error
        yield found


def _read_clip(path: Path, short_side: int, frames_apart: int) -> list[Image.Image]:
    with av.open(str(path)) as clip:
        if not clip.streams.video:
            raise ValueError("it holds no video")
        frames = islice(clip.decode(video=0), 0, None, frames_apart)
        return [_at_most(frame.to_image(), short_side) for frame in frames]


def _read_picture(path: Path, short_side: int) -> Image.Image:
    with Image.open(path) as file:
        file.draft("RGB", (2 * short_side, 2 * short_side))
        return _at_most(ImageOps.exif_transpose(file).convert("RGB"), short_side)


def _at_most(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC)


def seeded(seed: int | str) -> random.Random:
    """A source of chance for views and order, the same for one seed."""
    return random.Random(seed)  # noqa: S311  # a run must be repeatable, and nothing here is secret


def random_view(image: Image.Image, side: int, rng: random.Random) -> Tensor:
    """[3, side, side] uint8: a random part of the picture, in other light, mirrored half the time."""
    area = image.width * image.height * rng.uniform(LEAST_SCALE, 1)
    stretch = MOST_STRETCH ** rng.uniform(-1, 1)
    width = max(1, min(image.width, round((area * stretch) ** 0.5)))
    height = max(1, min(image.height, round((area / stretch) ** 0.5)))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    view = image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    enhancers: list[Callable[[Image.Image], ImageEnhance._Enhance]] = [
        ImageEnhance.Brightness,
        ImageEnhance.Contrast,
        ImageEnhance.Color,
    ]
    for enhance in enhancers:
        view = enhance(view).enhance(rng.uniform(0.7, 1.4))
    return torch.from_numpy(np.array(view)).permute(2, 0, 1)


def mixed(views: Tensor, rng: random.Random) -> Tensor:
    """A quarter of the time, blend every view with another: few pictures then show the teacher in many places.

    Args:
        views: [B, 3, H, W] uint8.
        rng: the source of chance.
    """
    if rng.random() < 0.75:
        return views
    part = rng.betavariate(1, 1)
    return (part * views.float() + (1 - part) * views.roll(1, dims=0).float()).round().to(torch.uint8)
