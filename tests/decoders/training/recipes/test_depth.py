"""Targets of depth heads: means of what is known, as the sample's own camera would have seen it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from decoders.training.data.samples import DepthSample
from decoders.training.recipes.depth import DepthObjective, mean_depth_m
from decoders.training.views import View
from encoders.geometry import FitGeometry, ImageGeometry


def depth_target(sample: DepthSample, view: View, place: ImageGeometry, size: tuple[int, int]) -> torch.Tensor:
    pair = DepthObjective(nn.Identity()).target(sample, [view], [place])
    return mean_depth_m(pair[None], size)[0]


def sample_of(depth: np.ndarray) -> DepthSample:
    height, width = depth.shape
    image = Image.new("RGB", (width, height))
    return DepthSample("drawn", lambda: image, lambda: depth.astype(np.float32))


def target_of(depth: np.ndarray, view: View, size: tuple[int, int] = (4, 4)) -> torch.Tensor:
    left, top, right, bottom = view.box
    return depth_target(sample_of(depth), view, FitGeometry(16, 16).place((bottom - top, right - left)), size)


def test_target_is_the_mean_depth_of_a_cell() -> None:
    depth = np.arange(64.0).reshape(8, 8) + 1
    expected = torch.from_numpy(depth.reshape(4, 2, 4, 2).mean((1, 3))).float()
    torch.testing.assert_close(target_of(depth, View((0, 0, 8, 8))), expected)


def test_unknown_pixels_do_not_pull_the_mean_and_empty_cells_are_unknown() -> None:
    depth = np.full((8, 8), 3.0)
    depth[0, 0] = np.nan
    depth[4:, 4:] = np.nan
    target = target_of(depth, View((0, 0, 8, 8)))
    assert target[2:, 2:].isnan().all()
    assert target.isnan().sum() == 4
    torch.testing.assert_close(target[~target.isnan()], torch.full((12,), 3.0))


def test_padding_is_unknown() -> None:
    target = target_of(np.full((8, 4), 3.0), View((0, 0, 4, 8)))
    torch.testing.assert_close(target[:, :2], torch.full((4, 2), 3.0))
    assert target[:, 2:].isnan().all()


def test_a_flipped_view_has_the_mirrored_target() -> None:
    depth = np.arange(64.0).reshape(8, 8) + 1
    plain, flipped = (target_of(depth, View((0, 0, 8, 8), flip=flip)) for flip in (False, True))
    torch.testing.assert_close(flipped, plain.flip(-1))


def test_a_magnified_crop_looks_nearer() -> None:
    depth = np.full((8, 8), 6.0)
    torch.testing.assert_close(target_of(depth, View((2, 2, 6, 6))), torch.full((4, 4), 3.0))


def test_magnification_is_that_of_the_network_input_when_it_is_not_square() -> None:
    # 8 x 8 fits 16 x 32 by 2; its upper half, 4 x 8, by 4: twice as large, so twice as near.
    geometry = FitGeometry(16, 32).place((4, 8))
    target = depth_target(sample_of(np.full((8, 8), 6.0)), View((0, 0, 8, 4)), geometry, (4, 8))
    torch.testing.assert_close(target, torch.full((4, 8), 3.0))
