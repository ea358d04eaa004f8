"""Samples are read when asked for, and known by what they show."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from decoders.training.data.samples import ImageFile, Sample


def test_listing_opens_nothing_and_reading_does(tmp_path: Path) -> None:
    sample = Sample("a", ImageFile(tmp_path / "a.png"))
    with pytest.raises(FileNotFoundError):
        sample.read_image()
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    assert (sample.read_image().mode, sample.read_image().size) == ("RGB", (3, 2))


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (6, 2)), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "a.jpg", exif=exif)
    assert ImageFile(tmp_path / "a.jpg")().size == (2, 6)


def test_a_digest_changes_with_the_picture_and_not_with_its_name(tmp_path: Path) -> None:
    for name, color in (("a", "red"), ("b", "red"), ("c", "blue")):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{name}.png")
    a, b, c = (Sample(name, ImageFile(tmp_path / f"{name}.png")).digest() for name in "abc")
    assert a == b != c
    drawn = [
        Sample("x", lambda color=color: Image.new("RGB", (4, 4), color)).digest() for color in ("red", "red", "blue")
    ]
    assert drawn[0] == drawn[1] != drawn[2]
