"""From pictures to network inputs: scaling, padding and windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from encoders.geometry import FitGeometry, ShortestEdgeGeometry, WindowGeometry
from encoders.preprocess import pad_with_mean, to_pixels

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]


def as_picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("item", range(4))
def test_padded_bytes_equal_pmt(read_golden: ReadGolden, item: int) -> None:
    facts, tensors = read_golden("preproc")
    expected = facts["items"][item]
    geometry = FitGeometry(*expected["img_size"]).place(tuple(expected["image_size"]))
    padded = to_pixels(as_picture(tensors[f"image_u8.{item}"]), geometry)[0]
    assert list(geometry.scaled_size) == expected["scaled"]
    assert padded.dtype == torch.uint8
    assert torch.equal(padded, tensors[f"padded_u8.{item}"])


@pytest.mark.parametrize("item", range(2))
def test_padded_bytes_of_whole_pictures_equal_pmt(read_golden: ReadGolden, item: int) -> None:
    facts, tensors = read_golden("image_dinov3_tiny.e2e")
    image = as_picture(tensors[f"image{item}_u8"])
    geometry = FitGeometry(*facts["config"]["img_size"]).place((image.height, image.width))
    assert torch.equal(to_pixels(image, geometry)[0], tensors["padded_u8"][item])


@pytest.mark.parametrize("image_size", [(1, 1), (1, 20000), (20000, 1), (2, 3), (64, 64)])
def test_pictures_of_extreme_shape_pass_through_and_back(
    draw_picture: Callable[..., Image.Image], image_size: tuple[int, int]
) -> None:
    geometry = FitGeometry(64, 96).place(image_size)
    padded = to_pixels(draw_picture(*image_size), geometry)[0]
    scaled_h, scaled_w = geometry.scaled_size
    assert padded.shape == (3, 64, 96)
    assert not padded[:, scaled_h:].any()
    assert not padded[:, :, scaled_w:].any()
    back = geometry.to_output(torch.full((2, 16, 24), 0.25))
    assert back.shape == (2, *image_size)
    torch.testing.assert_close(back, torch.full_like(back, 0.25))


def test_a_picture_of_the_input_size_is_not_resampled(draw_picture: Callable[..., Image.Image]) -> None:
    image = draw_picture(32, 48)
    padded = to_pixels(image, FitGeometry(32, 48).place((32, 48)))[0]
    np.testing.assert_array_equal(padded.permute(1, 2, 0).numpy(), np.asarray(image))


def test_windows_equal_those_of_pmt(read_golden: ReadGolden) -> None:
    facts, tensors = read_golden("post_semantic")
    picture = as_picture(tensors["image_u8.0"])
    geometry = WindowGeometry(facts["img_size"][0]).place((picture.height, picture.width))
    assert torch.equal(to_pixels(picture, geometry), tensors["crops_u8"])


def test_every_window_is_filled_and_nothing_is_padded() -> None:
    image = Image.new("RGB", (300, 100), (1, 2, 3))
    geometry = WindowGeometry(64).place((100, 300))
    pixels = to_pixels(image, geometry)
    assert pixels.shape == (3, 3, 64, 64)
    assert pixels.amin() == 1


def test_padding_with_the_mean_standardises_to_exactly_zero() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    geometry = ShortestEdgeGeometry(40).place((30, 60))
    assert (geometry.scaled_size, geometry.input_size) == ((40, 80), (64, 96))
    pixels = to_pixels(Image.new("RGB", (60, 30), (255, 255, 255)), geometry)
    padded = pad_with_mean(pixels, [geometry], mean)
    standardised = (padded - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert not standardised[:, :, 40:].any()
    assert not standardised[:, :, :, 80:].any()
    assert (padded[:, :, :40, :80] == 1).all()


def test_black_padding_leaves_the_bytes_as_they_are(draw_picture: Callable[..., Image.Image]) -> None:
    geometry = FitGeometry(64, 64).place((30, 60))
    pixels = to_pixels(draw_picture(30, 60), geometry)
    assert pad_with_mean(pixels, [geometry], (0.5, 0.5, 0.5)) is pixels


def test_each_picture_of_a_batch_gets_the_padding_of_its_own_rule(draw_picture: Callable[..., Image.Image]) -> None:
    fit, shortest = FitGeometry(64, 96).place((30, 60)), ShortestEdgeGeometry(40).place((30, 60))
    pixels = torch.cat([to_pixels(draw_picture(30, 60), geometry) for geometry in (fit, shortest)])
    black, mean = pad_with_mean(pixels, [fit, shortest], (0.5, 0.5, 0.5))
    assert not black[:, 48:].any()
    assert (mean[:, 40:] == 0.5).all()
    torch.testing.assert_close(black[:, :48], pixels[0, :, :48] / 255, atol=0, rtol=0)
