"""The depth loss: what it forgives and what not, and what it does not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decoders.training.losses.depth import depth_loss

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
