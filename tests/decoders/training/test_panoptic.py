"""Set prediction: the cheapest matching, the losses on it, and the targets they compare with."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from decoders.training.data import PanopticSample
from decoders.training.panoptic import MaskTarget, mask_target, match, set_loss
from decoders.training.views import View
from encoders.geometry import FitGeometry, InputGeometry

SIZE = (4, 6)


def halves() -> Tensor:
    """[2, 4, 6]: the left half and the right half."""
    left = torch.zeros(SIZE)
    left[:, :3] = 1
    return torch.stack((left, 1 - left))


def target(labels: list[int], masks: Tensor, valid: Tensor | None = None) -> MaskTarget:
    everywhere = torch.ones(SIZE, dtype=torch.bool)
    return MaskTarget(torch.tensor(labels, dtype=torch.int64), masks.half(), everywhere if valid is None else valid)


def perfect(labels: list[int], masks: Tensor, queries: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits that state the target without doubt in queries 1.., the others being "no object"."""
    mask_logits = torch.full((1, queries, *SIZE), -50.0)
    class_logits = torch.zeros(1, queries, classes + 1)
    class_logits[..., -1] = 50
    for query, (label, mask) in enumerate(zip(labels, masks, strict=True), 1):
        mask_logits[0, query] = 100 * mask - 50
        class_logits[0, query] = 50 * torch.eye(classes + 1)[label]
    return mask_logits, class_logits


def test_match_pairs_each_segment_with_the_query_that_shows_it() -> None:
    masks = halves()
    mask_logits, class_logits = perfect([2, 0], masks)
    queries, segments = match(mask_logits[0].flatten(1), class_logits[0], masks.flatten(1), torch.tensor([2, 0]))
    assert dict(zip(queries.tolist(), segments.tolist(), strict=True)) == {1: 0, 2: 1}


def test_match_lets_the_class_decide_between_equal_masks() -> None:
    masks = halves()[:1].repeat(2, 1, 1)
    mask_logits, class_logits = perfect([1, 2], masks)
    for labels in ([1, 2], [2, 1]):
        queries, segments = match(mask_logits[0].flatten(1), class_logits[0], masks.flatten(1), torch.tensor(labels))
        assert {q: labels[s] for q, s in zip(queries.tolist(), segments.tolist(), strict=True)} == {1: 1, 2: 2}


def test_match_gives_up_the_best_single_pair_for_the_cheapest_whole() -> None:
    # Query 0 shows both segments a little better than query 1 does, but query 1 is hopeless at the second one.
    truth = torch.tensor([[1.0, 1, 0, 0], [0.0, 0, 1, 1]])
    mask_logits = torch.tensor([[1.0, 1, 1, 1], [0.9, 0.9, -9, -9]])
    queries, segments = match(mask_logits, torch.zeros(2, 3), truth, torch.tensor([0, 1]))
    assert dict(zip(queries.tolist(), segments.tolist(), strict=True)) == {0: 1, 1: 0}


def test_match_is_the_cheapest_of_all_assignments() -> None:
    def cost(mask_logits: Tensor, class_logits: Tensor, mask: Tensor, label: int) -> float:
        probability = mask_logits.sigmoid()
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(mask_logits, mask)
        dice = 1 - (2 * (probability * mask).sum() + 1) / (probability.sum() + mask.sum() + 1)
        return float(5 * cross_entropy + 5 * dice - 2 * class_logits.softmax(-1)[label])

    mask_logits, class_logits, masks = torch.randn(4, 20), torch.randn(4, 4), torch.rand(3, 20).round()
    labels = torch.tensor([0, 2, 1])
    queries, segments = match(mask_logits, class_logits, masks, labels)
    costs = torch.tensor(
        [[cost(mask_logits[q], class_logits[q], masks[s], int(labels[s])) for s in range(3)] for q in range(4)]
    )
    cheapest = min(sum(costs[q, s] for s, q in enumerate(chosen)) for chosen in itertools.permutations(range(4), 3))
    assert costs[queries, segments].sum() == pytest.approx(float(cheapest), abs=1e-4)


def test_match_of_more_segments_than_queries_uses_every_query() -> None:
    queries, segments = match(torch.randn(2, 8), torch.randn(2, 4), torch.rand(5, 8), torch.zeros(5, dtype=torch.int64))
    assert sorted(queries.tolist()) == [0, 1]
    assert len(set(segments.tolist())) == 2


def test_set_loss_vanishes_for_perfect_predictions() -> None:
    masks = halves()
    assert set_loss(*perfect([2, 0], masks), [target([2, 0], masks)]).item() == pytest.approx(0, abs=1e-4)


def test_set_loss_vanishes_for_a_picture_without_segments() -> None:
    loss = set_loss(*perfect([], torch.zeros(0, *SIZE)), [target([], torch.zeros(0, *SIZE))])
    assert loss.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("wrong", ["class", "mask", "extra", "missing"])
def test_set_loss_rises_with_each_kind_of_mistake(wrong: str) -> None:
    masks = halves()
    mask_logits, class_logits = perfect([2, 0], masks)
    if wrong == "class":
        class_logits[0, 1] = 50 * torch.eye(4)[1]
    elif wrong == "mask":
        mask_logits[0, 1] = -mask_logits[0, 1]
    elif wrong == "extra":
        class_logits[0, 4] = 50 * torch.eye(4)[1]
    else:
        class_logits[0, 1] = 50 * torch.eye(4)[3]
    assert set_loss(mask_logits, class_logits, [target([2, 0], masks)]) > 1


def test_set_loss_does_not_depend_on_the_order_of_queries_or_segments() -> None:
    mask_logits, class_logits, masks = torch.randn(1, 5, *SIZE), torch.randn(1, 5, 4), halves()
    expected = set_loss(mask_logits, class_logits, [target([2, 0], masks)])
    order = torch.randperm(5)
    torch.testing.assert_close(
        set_loss(mask_logits[:, order], class_logits[:, order], [target([0, 2], masks.flip(0))]), expected
    )


def test_set_loss_ignores_masks_in_the_padding() -> None:
    masks = halves()
    valid = torch.ones(SIZE, dtype=torch.bool)
    valid[:, 5:] = False
    mask_logits, class_logits = perfect([2, 0], masks)
    mask_logits[..., 5:] *= -1
    assert set_loss(mask_logits, class_logits, [target([2, 0], masks, valid)]).item() == pytest.approx(0, abs=1e-4)


def test_set_loss_counts_segments_over_the_whole_batch() -> None:
    masks = halves()
    mask_logits, class_logits = torch.randn(1, 5, *SIZE), torch.randn(1, 5, 4)
    one = set_loss(mask_logits, class_logits, [target([2, 0], masks)])
    two = set_loss(mask_logits.repeat(2, 1, 1, 1), class_logits.repeat(2, 1, 1), [target([2, 0], masks)] * 2)
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("undecided", "weight"), [(1, 1.0), (0, 0.1)], ids=["object", "no_object"])
def test_an_undecided_query_costs_a_tenth_where_there_is_no_object(undecided: int, weight: float) -> None:
    masks = halves()[:1]
    mask_logits, class_logits = perfect([0], masks, queries=2, classes=1)
    class_logits[0, undecided] = 0
    expected = 2 * math.log(2) * weight / (1 + 0.1)  # class weight 2; a mean weighted 1 : 0.1
    assert set_loss(mask_logits, class_logits, [target([0], masks)]).item() == pytest.approx(expected, rel=1e-4)


def test_set_loss_has_finite_gradients_for_masks_and_classes() -> None:
    mask_logits = torch.randn(2, 5, *SIZE, requires_grad=True)
    class_logits = torch.randn(2, 5, 4, requires_grad=True)
    set_loss(mask_logits, class_logits, [target([2, 0], halves()), target([], torch.zeros(0, *SIZE))]).backward()
    for gradient in (mask_logits.grad, class_logits.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.fixture
def sample() -> PanopticSample:
    """A picture of 8 x 12: a left and a right half, a crowd in the top row's right end, and one pixel of segment 5."""
    segment_map = np.ones((8, 12), np.int32)
    segment_map[:, 6:] = 2
    segment_map[:4, 9:] = 3
    segment_map[0, 0] = 5
    return PanopticSample(
        "drawn", Image.new("RGB", (12, 8)), segment_map, {1: 2, 2: 0, 3: 1, 5: 1, 99: 1}, frozenset({3})
    )


def place(view: View) -> tuple[InputGeometry, tuple[int, int]]:
    left, top, right, bottom = view.box
    return FitGeometry(16, 24), (bottom - top, right - left)


def test_targets_leave_out_crowds_specks_and_segments_out_of_view(sample: PanopticSample) -> None:
    view = View((0, 0, 12, 8))
    geometry, size = place(view)
    found = mask_target(sample, view, geometry.place(size), (4, 6))
    assert found.labels.tolist() == [2, 0]
    assert found.masks.dtype == torch.float16
    assert found.valid.all()
    torch.testing.assert_close(found.masks[0, 1:].float(), halves()[0][1:])
    assert found.masks[0, 0, 0] == 0.75  # a cell holds 2 x 2 pixels, one of which is the speck


@pytest.mark.parametrize("box", [(0, 0, 12, 8), (2, 0, 10, 8), (5, 4, 12, 8)], ids=str)
def test_a_flipped_view_has_the_mirrored_targets(sample: PanopticSample, box: tuple[int, int, int, int]) -> None:
    plain, flipped = View(box), View(box, flip=True)
    geometry, size = place(plain)
    placed = geometry.place(size)
    first, second = (mask_target(sample, view, placed, (8, 12)) for view in (plain, flipped))
    columns = round(12 * placed.scaled_size[1] / 24)
    assert first.labels.tolist() == second.labels.tolist()
    assert len(first.labels) > 0
    torch.testing.assert_close(first.masks[..., :columns].flip(-1).float(), second.masks[..., :columns].float())


def test_padding_is_not_valid_and_holds_no_mask(sample: PanopticSample) -> None:
    view = View((0, 0, 6, 8))
    geometry, size = place(view)
    found = mask_target(sample, view, geometry.place(size), (4, 6))  # scaled to 16 x 12 of 16 x 24
    assert found.valid[:, :3].all()
    assert not found.valid[:, 3:].any()
    assert not found.masks[..., 3:].any()


def test_a_view_without_segments_gives_empty_targets(sample: PanopticSample) -> None:
    view = View((9, 0, 12, 4))
    geometry, size = place(view)
    found = mask_target(sample, view, geometry.place(size), (4, 6))
    assert found.labels.shape == (0,)
    assert found.masks.shape == (0, 4, 6)
