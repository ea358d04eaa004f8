"""Fitting a picture into the network's input, and the way back to its own pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ImageGeometry:
    """Where a picture lies in the network's input. All sizes are (height, width) in pixels.

    Attributes:
        image_size: the picture as given.
        scaled_size: the picture as the network sees it, at the top left of the input.
        input_size: the network's input; right and bottom of the picture is padding.
        output_size: the size wanted of results, `image_size` unless the caller asked for less.
    """

    image_size: tuple[int, int]
    scaled_size: tuple[int, int]
    input_size: tuple[int, int]
    output_size: tuple[int, int]

    def to_output(self, maps: Tensor) -> Tensor:
        """Bring network maps to the output's pixels: resize to the input, crop the padding, resize to the output.

        Two separate bilinear resizes, as the published evaluation does them.

        Args:
            maps: [K, h, w], any resolution, covering the whole input.

        Returns:
            [K, *output_size] float32.
        """
        maps = _bilinear(maps, self.input_size)
        return _bilinear(maps[:, : self.scaled_size[0], : self.scaled_size[1]], self.output_size)


@dataclass(frozen=True)
class InputGeometry:
    """The input size that a head works at, and the rule "fit": scale the picture to fit, pad right and bottom.

    Heads of equal geometry can share an encoder pass: the planner groups tasks by this value.

    Attributes:
        height, width: of the network's input, in pixels.
    """

    height: int
    width: int

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.height, self.width)

    def place(self, image_size: tuple[int, int], max_side: int | None = None) -> ImageGeometry:
        """Where a picture of `image_size` lies; sizes round half to even, as the published code's do.

        Args:
            image_size: (height, width).
            max_side: results are made no larger than this along the longer side.
        """
        height, width = image_size
        factor = min(self.height / height, self.width / width)
        scaled_size = (max(1, round(height * factor)), max(1, round(width * factor)))
        output_size = image_size
        if max_side is not None and max_side < max(image_size):
            shrink = max_side / max(image_size)
            output_size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
        return ImageGeometry(image_size, scaled_size, self.input_size, output_size)


def resize_and_pad(image: Image.Image, geometry: ImageGeometry) -> Tensor:
    """Scale a picture with Pillow's bilinear filter (antialiased when it shrinks) and pad it with zeros.

    Args:
        image: RGB.
        geometry: from `InputGeometry.place`.

    Returns:
        [3, H, W] uint8, RGB in [0, 255], not standardised.
    """
    height, width = geometry.scaled_size
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    padded = np.zeros((3, *geometry.input_size), dtype=np.uint8)
    padded[:, :height, :width] = scaled.transpose(2, 0, 1)
    return torch.from_numpy(padded)


def _bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps.float()
    return F.interpolate(maps[None].float(), size=size, mode="bilinear", align_corners=False)[0]
