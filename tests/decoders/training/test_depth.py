"""The depth loss and its targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from decoders.training.data import DepthSample
from decoders.training.depth import depth_loss, depth_target
from decoders.training.views import View
from encoders.geometry import FitGeometry

# The square root under the loss is held 1e-4 above zero, for the sake of its gradient.
ZERO = pytest.approx(0, abs=2e-4)


def test_loss_vanishes_for_a_perfect_prediction() -> None:
    depth = torch.rand(2, 4, 6) * 5 + 0.5
    assert depth_loss(depth[:, None], depth).item() == ZERO


def test_unknown_pixels_are_ignored_whatever_is_predicted_there() -> None:
    depth = torch.rand(2, 4, 6) * 5 + 0.5
    target = depth.clone()
    target[0, 1, 2:4] = torch.nan
    predicted = torch.where(target.isnan(), 1e6, depth)
    assert depth_loss(predicted[:, None], target).item() == ZERO


def test_a_picture_without_any_known_pixel_costs_nothing_and_moves_nothing() -> None:
    predicted = (torch.rand(1, 1, 4, 6) + 0.5).requires_grad_()
    loss = depth_loss(predicted, torch.full((1, 4, 6), torch.nan))
    loss.backward()
    assert loss.item() == ZERO
    assert predicted.grad is not None
    assert not predicted.grad.any()


def test_gradient_is_finite_and_only_at_known_pixels() -> None:
    target = torch.rand(1, 4, 6) + 0.5
    target[0, :2] = torch.nan
    predicted = (torch.rand(1, 1, 4, 6) + 0.5).requires_grad_()
    depth_loss(predicted, target).backward()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    assert not predicted.grad[0, 0, :2].any()
    assert predicted.grad[0, 0, 2:].all()


def test_a_wrong_scale_costs_but_less_than_a_wrong_shape() -> None:
    target = torch.rand(1, 4, 6) + 0.5
    error = torch.randn(1, 4, 6).sign() * 0.5
    scale = depth_loss((target * np.exp(0.5))[:, None], target)
    shape = depth_loss((target * error.exp())[:, None], target)
    assert scale.item() == pytest.approx(0.5 * 0.15**0.5, rel=1e-3)
    assert shape > scale


def test_the_edge_of_an_unknown_region_is_no_depth_edge() -> None:
    target = torch.rand(1, 4, 6) + 0.5
    wrong_scale = 2 * target[:, None]
    whole = depth_loss(wrong_scale, target)
    target[0, 1:3, 2:4] = torch.nan
    torch.testing.assert_close(depth_loss(wrong_scale, target), whole)


def sample_of(depth: np.ndarray) -> DepthSample:
    height, width = depth.shape
    return DepthSample("drawn", Image.new("RGB", (width, height)), depth.astype(np.float32))


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
