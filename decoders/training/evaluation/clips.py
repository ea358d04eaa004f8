"""Clips with truth: frames whose objects keep their identity, cut from a labelled photo or read from a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.masks import encode
from decoders.training.data.samples import (
    InstanceMask,
    InstanceSample,
    PanopticSample,
    Sample,
    Segments,
    SemanticSample,
)
from decoders.training.views import View


@dataclass(frozen=True)
class Clip:
    """A picture, or the frames of a clip in order.

    Attributes:
        name: for messages.
        frames: of one kind. In all of them a segment id means the same segment, and the n-th object is the same object,
            with an empty mask where it is out of view.
    """

    name: str
    frames: tuple[Sample, ...]


def pseudo_clip(sample: Sample, frames: int) -> Clip:
    """A clip cut from a photo: a window that glides from corner to corner and grows.

    Its sides are 70 % of the photo's in the first frame and 80 % in the last.

    Args:
        sample: panoptic, instance or semantic.
        frames: of the clip.

    Raises:
        TypeError: samples of other kinds make no clip.
    """
    parts = [number / max(1, frames - 1) for number in range(frames)]
    return Clip(sample.name, tuple(_frame(sample, part) for part in parts))


def _window(part: float, height: int, width: int) -> View:
    """The window after a part of the way, in [0, 1]."""
    side = 0.7 + 0.1 * part
    left, top = round(part * (1 - side) * width), round(part * (1 - side) * height)
    return View((left, top, left + round(side * width), top + round(side * height)))


def _frame(sample: Sample, part: float) -> Sample:
    def read_image() -> Image.Image:
        image = sample.read_image()
        return _window(part, image.height, image.width).apply(image)

    def cut(map_: NDArray[np.int32]) -> NDArray[np.int32]:
        return _window(part, *map_.shape).cut(map_)

    name = f"{sample.name} at {part:.2f}"
    match sample:
        case PanopticSample():
            return PanopticSample(name, read_image, partial(_cut_segments, sample, cut))
        case SemanticSample():
            return SemanticSample(name, read_image, lambda: cut(sample.read_label_map()))
        case InstanceSample():
            return InstanceSample(name, read_image, partial(_cut_masks, sample, part))
    raise TypeError(f"no clip is cut from a {type(sample).__name__}")


def _cut_segments(sample: PanopticSample, cut: Callable[[NDArray[np.int32]], NDArray[np.int32]]) -> Segments:
    segment_map, labels, crowd_ids = sample.read_segments()
    return Segments(cut(segment_map), labels, crowd_ids)


def _cut_masks(sample: InstanceSample, part: float) -> list[InstanceMask]:
    return [
        each._replace(mask=encode(_window(part, *each.mask.size).cut(each.mask.decode())))
        for each in sample.read_masks()
    ]
