"""Run lengths of masks: what goes in comes out, and areas and boxes are those of the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from decoders.masks import Rle, encode

SHAPES = [(1, 1), (1, 17), (23, 1), (40, 31)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_mask_comes_back_whatever_its_order_in_memory(shape: tuple[int, int], order: str) -> None:
    mask = np.asarray(np.random.default_rng(0).random(shape) > 0.6, order=order)
    rle = encode(mask)
    assert rle.size == shape
    assert rle.decode().dtype == bool
    assert np.array_equal(rle.decode(), mask)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_area_and_box_are_those_of_the_pixels(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(1).random(shape) > 0.5
    mask[0, 0] = True
    rows, columns = np.nonzero(mask)
    x, y, width, height = encode(mask).bbox()
    assert encode(mask).area() == mask.sum()
    assert (x, y) == (columns.min(), rows.min())
    assert (x + width - 1, y + height - 1) == (columns.max(), rows.max())


def test_an_empty_mask_has_no_area_and_no_box() -> None:
    rle = encode(np.zeros((6, 9), dtype=bool))
    assert rle.area() == 0
    assert rle.bbox() == (0, 0, 0, 0)
    assert not rle.decode().any()


def test_a_full_mask_has_the_whole_picture_as_its_box() -> None:
    rle = encode(np.ones((6, 9), dtype=bool))
    assert rle.area() == 54
    assert rle.bbox() == (0, 0, 9, 6)


def test_counts_are_what_pycocotools_reads() -> None:
    mask = np.tri(12, 20, dtype=bool)
    rle = encode(mask)
    assert np.array_equal(coco_mask.decode({"size": [12, 20], "counts": rle.counts}), mask)
    assert Rle((12, 20), rle.counts) == rle


def test_encoding_leaves_the_mask_as_it_was() -> None:
    mask = np.tri(5, 7, dtype=bool)
    before = mask.copy()
    encode(mask)
    assert mask.dtype == bool
    assert np.array_equal(mask, before)
