"""Unlabelled pictures: which are found, and what a view of one may be."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.distillation.pictures import find_pictures, mixed, random_view, read_small


def test_pictures_below_folders_are_found_but_for_those_left_out(tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/deep/2.PNG", "a/val/3.jpg", "b/notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = find_pictures([tmp_path / "a", tmp_path / "b"], leave_out=("/val/",))
    assert [path.name for path in found] == ["1.jpg", "2.PNG"]


def test_no_pictures_at_all_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        find_pictures([tmp_path])


@pytest.mark.parametrize(("size", "expected"), [((400, 300), (80, 60)), ((30, 50), (30, 50))])
def test_a_picture_is_made_small_and_never_large(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    Image.new("L", size).save(tmp_path / "grey.png")
    image = read_small(tmp_path / "grey.png", 60)
    assert (image.size, image.mode) == (expected, "RGB")


def test_views_repeat_by_their_seed_and_differ_by_it() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    first, again, other = (random_view(image, 32, random.Random(seed)) for seed in (1, 1, 2))
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_picture_of_one_pixel_has_views() -> None:
    assert random_view(Image.new("RGB", (1, 1), (9, 9, 9)), 16, random.Random(0)).shape == (3, 16, 16)


def test_mixing_blends_neighbours_about_half_the_time() -> None:
    views = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), 200.0)]).to(torch.uint8)
    blends = [mixed(views, random.Random(seed)) for seed in range(40)]
    untouched = sum(torch.equal(blend, views) for blend in blends)
    assert 8 < untouched < 32
    for blend in blends:
        assert (blend[0].int() + blend[1].int() - 200).abs().max() <= 1  # the two parts add up to one
