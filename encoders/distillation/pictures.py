"""Unlabelled pictures for distillation: files and frames of clips, and random views of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
LEAST_SCALE, MOST_STRETCH = 0.15, 4 / 3


def find_pictures(roots: Iterable[Path], *, leave_out: Sequence[str] = ()) -> list[Path]:
    """Every picture file below some folders, sorted.

    Args:
        roots: folders.
        leave_out: parts of a path that keep a file out (held-out data, label maps).

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(
        path
        for root in roots
        for path in root.rglob("*")
        if path.suffix.lower() in SUFFIXES and not any(part in str(path) for part in leave_out)
    )
    if not found:
        raise FileNotFoundError(f"no pictures below {', '.join(map(str, roots))}")
    return found


def read_small(path: Path, short_side: int) -> Image.Image:
    """A picture in RGB whose shorter side is at most `short_side`, as it is kept in memory."""
    with Image.open(path) as file:
        file.draft("RGB", (2 * short_side, 2 * short_side))
        image = file.convert("RGB")
    scale = short_side / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC)


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
    """Half the time, blend every view with another: few pictures then show the teacher's answers in many places.

    Args:
        views: [B, 3, H, W] uint8.
        rng: the source of chance.
    """
    if rng.random() < 0.5:
        return views
    part = rng.betavariate(1, 1)
    return (part * views.float() + (1 - part) * views.roll(1, dims=0).float()).round().to(torch.uint8)
