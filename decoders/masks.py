"""Binary masks as COCO's compressed run lengths: a few hundred bytes each, whatever the picture's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


@dataclass(frozen=True)
class Rle:
    """A mask as run lengths, column by column, as pycocotools reads and writes them.

    Attributes:
        size: (height, width).
        counts: compressed.
    """

    size: tuple[int, int]
    counts: str

    def decode(self) -> NDArray[np.bool_]:
        """[H, W]."""
        decoded: NDArray[np.uint8] = coco_mask.decode(self._coco)
        return decoded.astype(bool)

    def area(self) -> int:
        """Pixels inside."""
        return int(coco_mask.area(self._coco))

    def bbox(self) -> tuple[int, int, int, int]:
        """(x, y, width, height), tight, in pixels; all 0 for an empty mask."""
        x, y, width, height = (int(side) for side in coco_mask.toBbox(self._coco))
        return x, y, width, height

    @property
    def _coco(self) -> dict[str, object]:
        return {"size": list(self.size), "counts": self.counts}


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Run lengths of a mask [H, W]; quickest if it lies in memory column by column."""
    encoded = coco_mask.encode(np.asfortranarray(mask).view(np.uint8))
    height, width = mask.shape
    return Rle((height, width), encoded["counts"].decode("ascii"))
