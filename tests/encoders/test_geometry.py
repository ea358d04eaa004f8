"""Where a picture lies in the network's input by each rule, and the way back to its own pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.geometry import FitGeometry, InputGeometry, ShortestEdgeGeometry, WindowGeometry

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]


@pytest.mark.parametrize(
    ("image_size", "scaled_size"),
    [((81, 192), (40, 96)), ((83, 192), (42, 96)), ((192, 81), (96, 40)), ((192, 83), (96, 42))],
)
def test_a_side_that_ends_in_one_half_goes_to_the_even_number(
    image_size: tuple[int, int], scaled_size: tuple[int, int]
) -> None:
    assert FitGeometry(96, 96).place(image_size).scaled_size == scaled_size


def test_a_picture_is_never_scaled_past_the_input() -> None:
    rng = np.random.default_rng(1)
    for height, width, input_h, input_w in rng.integers(1, 3000, (2000, 4)).tolist():
        scaled_h, scaled_w = FitGeometry(input_h, input_w).place((height, width)).scaled_size
        assert 1 <= scaled_h <= input_h
        assert 1 <= scaled_w <= input_w
        assert scaled_h == input_h or scaled_w == input_w
        exact = min(input_h / height, input_w / width)
        assert abs(scaled_h - height * exact) <= 0.5 or scaled_h == 1
        assert abs(scaled_w - width * exact) <= 0.5 or scaled_w == 1


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
    geometry = FitGeometry(64, 64).place(image_size, max_side)
    assert geometry.output_size == output_size
    assert geometry.image_size == image_size
    assert geometry.scaled_size == FitGeometry(64, 64).place(image_size).scaled_size
    assert geometry.to_output(torch.zeros(1, 16, 16)).shape == (1, *output_size)


def test_maps_are_resized_twice_with_the_padding_cut_between() -> None:
    geometry = FitGeometry(64, 64).place((50, 100))
    maps = torch.randn(3, 16, 16)
    on_input = F.interpolate(maps[None], size=(64, 64), mode="bilinear", align_corners=False)
    expected = F.interpolate(on_input[:, :, :32, :64], size=(50, 100), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(geometry.to_output(maps), expected, atol=0, rtol=0)


def test_nothing_of_the_padding_reaches_the_output() -> None:
    geometry = FitGeometry(64, 64).place((32, 64))
    maps = torch.zeros(1, 64, 64)
    maps[:, 32:] = 1e6
    assert not geometry.to_output(maps).any()


def test_half_precision_maps_come_back_in_float32() -> None:
    geometry = FitGeometry(16, 16).place((16, 16))
    assert geometry.to_output(torch.zeros(1, 16, 16, dtype=torch.float16)).dtype == torch.float32


def test_equal_geometries_are_one_key_for_the_planner() -> None:
    assert {FitGeometry(64, 96): "pass"}[FitGeometry(64, 96)] == "pass"
    assert FitGeometry(64, 96) != FitGeometry(96, 64)


# Windows


def test_windows_start_where_those_of_pmt_do(read_golden: ReadGolden) -> None:
    facts, _ = read_golden("post_semantic")
    for image, (size, scaled) in enumerate(zip(facts["image_sizes"], facts["scaled_sizes"], strict=True)):
        geometry = WindowGeometry(facts["img_size"][0]).place(tuple(size))
        along = 0 if size[0] > size[1] else 1
        assert list(geometry.scaled_size) == scaled
        assert geometry.window_starts is not None
        assert [start[along] for start in geometry.window_starts] == [o[1] for o in facts["origins"] if o[0] == image]


def test_windows_cover_a_picture_of_any_shape() -> None:
    rng = np.random.default_rng(2)
    for size, height, width in zip(rng.integers(8, 600, 500), *rng.integers(200, 3000, (2, 500)), strict=True):
        geometry = WindowGeometry(int(size)).place((int(height), int(width)))
        longer = max(geometry.scaled_size)
        assert min(geometry.scaled_size) == size
        assert geometry.num_views == math.ceil(longer / size)
        assert geometry.window_starts is not None
        starts = [max(start) for start in geometry.window_starts]
        assert starts[0] == 0
        assert starts[-1] == longer - size
        assert all(later - earlier <= size for earlier, later in itertools.pairwise(starts))


def test_where_windows_overlap_their_mean_counts() -> None:
    geometry = WindowGeometry(4).place((4, 6))
    assert geometry.window_starts == ((0, 0), (0, 2))
    scaled = geometry.to_scaled(torch.stack((torch.full((1, 4, 4), 1.0), torch.full((1, 4, 4), 3.0))))
    assert scaled[0, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_windows_made_one_after_the_other_give_the_same_as_all_at_once() -> None:
    geometry = WindowGeometry(16).place((16, 40))
    maps = torch.randn(geometry.num_views, 3, 8, 8)
    assert torch.equal(geometry.to_output(map_ for map_ in maps), geometry.to_output(maps))


def test_one_window_still_counts_as_windows() -> None:
    geometry = WindowGeometry(16).place((20, 20))
    assert geometry.num_views == 1
    assert geometry.to_output(torch.zeros(1, 5, 4, 4)).shape == (5, 20, 20)


# Shortest edge


def test_shortest_edge_sizes_equal_those_of_detectron2(read_golden: ReadGolden) -> None:
    facts, _ = read_golden("preproc")
    for case in facts["detectron2_shortest_edge"]:
        geometry = ShortestEdgeGeometry(case["min_size"], case["max_size"]).place(tuple(case["hw"]))
        assert list(geometry.scaled_size) == case["out"], case


@pytest.mark.parametrize(
    ("image_size", "input_size"), [((60, 90), (64, 96)), ((64, 96), (64, 96)), ((65, 97), (64, 96))]
)
def test_the_input_is_rounded_up_to_the_multiple(image_size: tuple[int, int], input_size: tuple[int, int]) -> None:
    geometry = ShortestEdgeGeometry(60, 1333, 32).place(image_size)
    assert geometry.input_size == input_size
    assert geometry.pads_with_mean


@pytest.mark.parametrize(
    "build", [lambda: FitGeometry(0, 5), lambda: WindowGeometry(-1), lambda: ShortestEdgeGeometry(0)]
)
def test_sizes_that_are_not_positive_are_refused(build: Callable[[], InputGeometry]) -> None:
    with pytest.raises(ValueError, match="must be positive pixels"):
        build()
