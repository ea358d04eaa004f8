"""Bringing truth to where the network sees its picture: cut to the view, scaled, padded like the input."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from decoders.training.views import View
from encoders.geometry import ImageGeometry


def place_labels(map_: NDArray[np.int32], view: View, geometry: ImageGeometry, padding: int) -> NDArray[np.int32]:
    """A map of ids in the network's input: the nearest pixel's id, `padding` beyond the picture; [H, W] int32."""
    height, width = geometry.scaled_size
    image = Image.fromarray(np.ascontiguousarray(view.cut(map_)).astype(np.int32))
    placed = np.full(geometry.input_size, padding, dtype=np.int32)
    placed[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.NEAREST))
    return placed


def place_mask(mask: NDArray[np.bool_], view: View, geometry: ImageGeometry) -> NDArray[np.bool_]:
    """A mask in the network's input: the pixels of which it covers half or more; [H, W] bool."""
    height, width = geometry.scaled_size
    image = Image.fromarray(np.ascontiguousarray(view.cut(mask)).astype(np.uint8) * 255)
    placed = np.zeros(geometry.input_size, dtype=bool)
    placed[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BOX)) >= 128
    return placed
