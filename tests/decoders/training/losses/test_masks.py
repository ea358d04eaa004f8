"""Cross-entropy and dice of masks at points: singly as for each pair, and blind where nothing is known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decoders.training.losses.dice import dice_loss, pairwise_dice_loss
from decoders.training.losses.mask_cross_entropy import mask_cross_entropy, pairwise_mask_cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES = pytest.mark.parametrize(
    ("single", "pairwise"),
    [(mask_cross_entropy, pairwise_mask_cross_entropy), (dice_loss, pairwise_dice_loss)],
    ids=["cross_entropy", "dice"],
)


@LOSSES
def test_a_perfect_mask_costs_nothing_and_its_opposite_much(single: Loss, pairwise: Loss) -> None:
    truth = (torch.rand(3, 50) > 0.5).float()
    logits, weight = 100 * truth - 50, torch.ones(3, 50)
    assert single(logits, truth, weight).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert (single(-logits, truth, weight) > 0.9).all()


@LOSSES
def test_pairs_cost_what_each_costs_alone(single: Loss, pairwise: Loss) -> None:
    logits, truth, weight = torch.randn(4, 30), torch.rand(3, 30).round(), torch.rand(30).round()
    found = pairwise(logits, truth, weight)
    assert found.shape == (4, 3)
    for q in range(4):
        for m in range(3):
            expected = single(logits[q : q + 1], truth[m : m + 1], weight[None])
            torch.testing.assert_close(found[q, m], expected[0])


@LOSSES
def test_unknown_points_count_for_nothing(single: Loss, pairwise: Loss) -> None:
    logits, truth, weight = torch.randn(2, 20), torch.rand(2, 20).round(), torch.ones(2, 20)
    weight[:, 12:] = 0
    other = logits.clone()
    other[:, 12:] = 40
    torch.testing.assert_close(single(logits, truth, weight), single(other, truth, weight))
    torch.testing.assert_close(single(logits, truth, weight), single(logits[:, :12], truth[:, :12], weight[:, :12]))


def test_cross_entropy_is_the_mean_over_the_points() -> None:
    logits, truth = torch.randn(1, 20), torch.rand(1, 20)
    expected = F.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(mask_cross_entropy(logits, truth, torch.ones(1, 20))[0], expected)
