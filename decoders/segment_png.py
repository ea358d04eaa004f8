"""COCO's panoptic PNGs: a segment's id as a colour, R + 256 G + 65536 B (https://cocodataset.org/#format-data)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def segment_image(ids: NDArray[np.int32]) -> Image.Image:
    """Ids from 0 to 2**24 - 1, [H, W], as an RGB picture."""
    return Image.fromarray(np.stack((ids & 255, ids >> 8 & 255, ids >> 16), axis=-1).astype(np.uint8))


def read_segment_ids(png: Path) -> NDArray[np.int32]:
    """The ids of a picture file: [H, W]; raises OSError if it can't be read."""
    with Image.open(png) as image:
        rgb: NDArray[np.int32] = np.asarray(image.convert("RGB")).astype(np.int32)
    return rgb @ np.array([1, 256, 65536], dtype=np.int32)
