"""Augmentation before the encoder: crops, flips, light and pseudo-clips of a picture, and the same cut of its truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class View:
    """One way to look at a picture.

    Attributes:
        box: (left, top, right, bottom) in pixels.
        flip: mirrored left to right.
        brightness, contrast, saturation: factors, 1 = as it is.
    """

    box: tuple[int, int, int, int]
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0

    def apply(self, image: Image.Image) -> Image.Image:
        """The view of a picture."""
        image = image.crop(self.box)
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for enhance, factor in (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        ):
            if factor != 1:
                image = enhance(image).enhance(factor)
        return image

    def cut(self, map_: NDArray[Scalar]) -> NDArray[Scalar]:
        """The same cut of a [H, W] map; light does not touch it."""
        left, top, right, bottom = self.box
        map_ = map_[top:bottom, left:right]
        return map_[:, ::-1] if self.flip else map_


def whole(image: Image.Image) -> View:
    """The picture as it is."""
    return View((0, 0, image.width, image.height))


def random_view(
    image: Image.Image, rng: np.random.Generator, *, least_side: float, whole_probability: float = 0.3
) -> View:
    """A random view: the whole picture or a crop of it, in other light, mirrored half the time.

    Args:
        image: the picture.
        rng: the source of chance.
        least_side: a crop's sides are at least this part of the picture's.
        whole_probability: how often nothing is cropped.
    """
    width, height = image.size
    box = (0, 0, width, height)
    if rng.random() >= whole_probability:
        crop_w = max(1, round(width * rng.uniform(least_side, 1)))
        crop_h = max(1, round(height * rng.uniform(least_side, 1)))
        left, top = int(rng.integers(0, width - crop_w + 1)), int(rng.integers(0, height - crop_h + 1))
        box = (left, top, left + crop_w, top + crop_h)
    light = rng.uniform(0.75, 1.3, size=3)
    return View(box, bool(rng.random() < 0.5), *(float(factor) for factor in light))


def clip_views(image: Image.Image, rng: np.random.Generator, *, frames: int, least_side: float) -> list[View]:
    """The frames of a pseudo-clip of a picture: a window that glides and zooms over it, all in one light.

    Args:
        image: the picture.
        rng: the source of chance.
        frames: how many.
        least_side: a window's sides are at least this part of the picture's; both sides are the same part.
    """
    width, height = image.size
    parts = rng.uniform(least_side, 1, size=2)
    places = rng.uniform(0, 1, size=(2, 2))  # of the window's free room, at the first and the last frame
    flip = bool(rng.random() < 0.5)
    light = [float(factor) for factor in rng.uniform(0.75, 1.3, size=3)]
    views = []
    for number in range(frames):
        progress = number / max(1, frames - 1)
        part = parts[0] + progress * (parts[1] - parts[0])
        across, down = places[0] + progress * (places[1] - places[0])
        crop_w, crop_h = max(1, round(width * part)), max(1, round(height * part))
        left, top = round(across * (width - crop_w)), round(down * (height - crop_h))
        views.append(View((left, top, left + crop_w, top + crop_h), flip, *light))
    return views
