"""Cross-entropy of classes, blind to what has none."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from decoders.training.data.samples import IGNORE
from decoders.training.losses.class_cross_entropy import class_cross_entropy


def test_it_is_the_mean_over_what_has_a_class() -> None:
    logits, labels = torch.randn(2, 4, 3, 5), torch.randint(0, 4, (2, 3, 5))
    labels[0, 1:] = IGNORE
    known = labels != IGNORE
    expected = F.cross_entropy(logits.permute(0, 2, 3, 1)[known], labels[known])
    torch.testing.assert_close(class_cross_entropy(logits, labels), expected)


def test_nothing_known_costs_nothing() -> None:
    logits = torch.randn(2, 4, requires_grad=True)
    loss = class_cross_entropy(logits, torch.full((2,), IGNORE))
    loss.backward()
    assert loss.item() == pytest.approx(0)
    assert logits.grad is not None and not logits.grad.any()
