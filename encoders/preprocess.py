"""From a picture to the network's input: scaling, windows and padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from encoders.geometry import ImageGeometry


def to_pixels(image: Image.Image, geometry: ImageGeometry) -> Tensor:
    """Scale a picture with Pillow's bilinear filter (antialiased when it shrinks), then pad it or cut it into windows.

    Args:
        image: RGB.
        geometry: from the `place` of an input geometry.

    Returns:
        [V, 3, H, W] uint8, RGB in [0, 255], not standardised; padding is 0 (`pad_with_mean` changes it on the device).
    """
    height, width = geometry.scaled_size
    scaled = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    views = np.zeros((geometry.num_views, 3, *geometry.input_size), dtype=np.uint8)
    for view, (top, left) in zip(views, geometry.window_starts or ((0, 0),), strict=True):
        part = scaled[:, top : top + geometry.input_size[0], left : left + geometry.input_size[1]]
        view[:, : part.shape[1], : part.shape[2]] = part
    return torch.from_numpy(views)


def pad_with_mean(pixels: Tensor, geometries: Sequence[ImageGeometry], mean: Sequence[float]) -> Tensor:
    """Give a batch the padding that its geometries ask for: uint8 stays if none asks for the mean colour.

    Args:
        pixels: [B, 3, H, W] uint8.
        geometries: of each.
        mean: RGB in [0, 1] that the encoder subtracts.

    Returns:
        `pixels` themselves, or [B, 3, H, W] float32 in [0, 1] whose padding standardises to exactly 0.
    """
    if not any(geometry.pads_with_mean for geometry in geometries):
        return pixels
    images = pixels.float() / 255
    color = torch.tensor(mean, device=pixels.device).view(3, 1, 1)
    for image, geometry in zip(images, geometries, strict=True):
        if geometry.pads_with_mean:
            height, width = geometry.scaled_size
            image[:, height:] = color
            image[:, :, width:] = color
    return images
