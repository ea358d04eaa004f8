"""Where a picture lies in the network's input, and the way back to its own pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from encoders.preprocess import InputGeometry, resize_and_pad

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]


def as_picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("item", range(4))
def test_padded_bytes_equal_pmt(read_golden: ReadGolden, item: int) -> None:
    facts, tensors = read_golden("preproc")
    expected = facts["items"][item]
    geometry = InputGeometry(*expected["img_size"]).place(tuple(expected["image_size"]))
    padded = resize_and_pad(as_picture(tensors[f"image_u8.{item}"]), geometry)
    assert list(geometry.scaled_size) == expected["scaled"]
    assert padded.dtype == torch.uint8
    assert torch.equal(padded, tensors[f"padded_u8.{item}"])


@pytest.mark.parametrize("item", range(2))
def test_padded_bytes_of_whole_pictures_equal_pmt(read_golden: ReadGolden, item: int) -> None:
    facts, tensors = read_golden("image_dinov3_tiny.e2e")
    image = as_picture(tensors[f"image{item}_u8"])
    geometry = InputGeometry(*facts["config"]["img_size"]).place((image.height, image.width))
    assert torch.equal(resize_and_pad(image, geometry), tensors["padded_u8"][item])


@pytest.mark.parametrize(
    ("image_size", "scaled_size"),
    [((81, 192), (40, 96)), ((83, 192), (42, 96)), ((192, 81), (96, 40)), ((192, 83), (96, 42))],
)
def test_a_side_that_ends_in_one_half_goes_to_the_even_number(
    image_size: tuple[int, int], scaled_size: tuple[int, int]
) -> None:
    assert InputGeometry(96, 96).place(image_size).scaled_size == scaled_size


def test_a_picture_is_never_scaled_past_the_input() -> None:
    rng = np.random.default_rng(1)
    for height, width, input_h, input_w in rng.integers(1, 3000, (2000, 4)).tolist():
        scaled_h, scaled_w = InputGeometry(input_h, input_w).place((height, width)).scaled_size
        assert 1 <= scaled_h <= input_h
        assert 1 <= scaled_w <= input_w
        assert scaled_h == input_h or scaled_w == input_w
        exact = min(input_h / height, input_w / width)
        assert abs(scaled_h - height * exact) <= 0.5 or scaled_h == 1
        assert abs(scaled_w - width * exact) <= 0.5 or scaled_w == 1


@pytest.mark.parametrize("image_size", [(1, 1), (1, 20000), (20000, 1), (2, 3), (64, 64)])
def test_pictures_of_extreme_shape_pass_through_and_back(
    draw_picture: Callable[..., Image.Image], image_size: tuple[int, int]
) -> None:
    geometry = InputGeometry(64, 96).place(image_size)
    padded = resize_and_pad(draw_picture(*image_size), geometry)
    scaled_h, scaled_w = geometry.scaled_size
    assert padded.shape == (3, 64, 96)
    assert not padded[:, scaled_h:].any()
    assert not padded[:, :, scaled_w:].any()
    back = geometry.to_output(torch.full((2, 16, 24), 0.25))
    assert back.shape == (2, *image_size)
    torch.testing.assert_close(back, torch.full_like(back, 0.25))


def test_a_picture_of_the_input_size_is_not_resampled(draw_picture: Callable[..., Image.Image]) -> None:
    image = draw_picture(32, 48)
    padded = resize_and_pad(image, InputGeometry(32, 48).place((32, 48)))
    np.testing.assert_array_equal(padded.permute(1, 2, 0).numpy(), np.asarray(image))


@pytest.mark.parametrize(
    ("image_size", "max_side", "output_size"),
    [
        ((480, 640), None, (480, 640)),
        ((480, 640), 320, (240, 320)),
        ((640, 480), 320, (320, 240)),
        ((480, 640), 640, (480, 640)),
        ((480, 640), 1000, (480, 640)),
        ((5, 200), 100, (2, 100)),
        ((1, 20000), 10, (1, 10)),
    ],
)
def test_max_side_shrinks_results_and_never_enlarges_them(
    image_size: tuple[int, int], max_side: int | None, output_size: tuple[int, int]
) -> None:
    geometry = InputGeometry(64, 64).place(image_size, max_side)
    assert geometry.output_size == output_size
    assert geometry.image_size == image_size
    assert geometry.scaled_size == InputGeometry(64, 64).place(image_size).scaled_size
    assert geometry.to_output(torch.zeros(1, 16, 16)).shape == (1, *output_size)


def test_maps_are_resized_twice_with_the_padding_cut_between() -> None:
    geometry = InputGeometry(64, 64).place((50, 100))
    maps = torch.randn(3, 16, 16)
    on_input = F.interpolate(maps[None], size=(64, 64), mode="bilinear", align_corners=False)
    expected = F.interpolate(on_input[:, :, :32, :64], size=(50, 100), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(geometry.to_output(maps), expected, atol=0, rtol=0)


def test_nothing_of_the_padding_reaches_the_output() -> None:
    geometry = InputGeometry(64, 64).place((32, 64))
    maps = torch.zeros(1, 64, 64)
    maps[:, 32:] = 1e6
    assert not geometry.to_output(maps).any()


def test_half_precision_maps_come_back_in_float32() -> None:
    geometry = InputGeometry(16, 16).place((16, 16))
    assert geometry.to_output(torch.zeros(1, 16, 16, dtype=torch.float16)).dtype == torch.float32


def test_equal_geometries_are_one_key_for_the_planner() -> None:
    assert {InputGeometry(64, 96): "pass"}[InputGeometry(64, 96)] == "pass"
    assert InputGeometry(64, 96) != InputGeometry(96, 64)
