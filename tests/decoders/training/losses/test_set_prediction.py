"""Set prediction: the cheapest matching, one for a whole clip, and the losses on it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from decoders.training.losses.set_prediction import MaskTarget, match, match_target, set_loss

SIZE = (16, 24)
WHOLE = (1.0, 1.0)
NOTHING = pytest.approx(0, abs=0.2)
"""Points are read between pixels, so that a mask's edge always costs a little."""


def halves() -> Tensor:
    """[2, 16, 24]: the left half and the right half."""
    left = torch.zeros(SIZE, dtype=torch.bool)
    left[:, :12] = True
    return torch.stack((left, ~left))


def target(labels: list[int], *frames: Tensor, known: Tensor | None = None) -> MaskTarget:
    known = torch.ones(SIZE, dtype=torch.bool) if known is None else known
    return MaskTarget(
        torch.tensor(labels, dtype=torch.int64),
        torch.stack(frames),
        known.expand(len(frames), -1, -1),
        (WHOLE,) * len(frames),
    )


def perfect(labels: list[int], *frames: Tensor, queries: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Logits of one example that state the target without doubt in queries 1.., the others being "no object"."""
    mask_logits = torch.full((1, len(frames), queries, *SIZE), -50.0)
    class_logits = torch.zeros(1, len(frames), queries, classes + 1)
    class_logits[..., -1] = 50
    for t, masks in enumerate(frames):
        for query, (label, mask) in enumerate(zip(labels, masks, strict=True), 1):
            mask_logits[0, t, query] = 100 * mask.float() - 50
            class_logits[0, t, query] = 50 * torch.eye(classes + 1)[label]
    return mask_logits, class_logits


def total(mask_logits: Tensor, class_logits: Tensor, *targets: MaskTarget) -> float:
    return float(torch.stack(list(set_loss(mask_logits, class_logits, targets).values())).sum())


def pairs(found: tuple[Tensor, Tensor]) -> dict[int, int]:
    queries, objects = found
    return dict(zip(queries.tolist(), objects.tolist(), strict=True))


def test_each_object_is_matched_with_the_query_that_shows_it() -> None:
    masks, classes = perfect([2, 0], halves())
    assert pairs(match_target(masks[0], classes[0], target([2, 0], halves()))) == {1: 0, 2: 1}


def test_the_class_decides_between_equal_masks() -> None:
    same = halves()[:1].repeat(2, 1, 1)
    masks, classes = perfect([1, 2], same)
    for labels in ([1, 2], [2, 1]):
        found = pairs(match_target(masks[0], classes[0], target(labels, same)))
        assert {query: labels[number] for query, number in found.items()} == {1: 1, 2: 2}


def test_the_matching_is_the_cheapest_of_all() -> None:
    def cost(logits: Tensor, probabilities: Tensor, mask: Tensor, label: int) -> float:
        probability = logits.sigmoid()
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, mask)
        dice = 1 - (2 * (probability * mask).sum() + 1) / (probability.sum() + mask.sum() + 1)
        return float(5 * cross_entropy + 5 * dice - 2 * probabilities[label])

    logits, probabilities, masks = torch.randn(4, 20), torch.randn(4, 4).softmax(-1), torch.rand(3, 20).round()
    labels = torch.tensor([0, 2, 1])
    queries, objects = match(logits, probabilities, masks, torch.ones(20), labels)
    costs = torch.tensor(
        [[cost(logits[q], probabilities[q], masks[m], int(labels[m])) for m in range(3)] for q in range(4)]
    )
    cheapest = min(sum(costs[q, m] for m, q in enumerate(chosen)) for chosen in itertools.permutations(range(4), 3))
    assert costs[queries, objects].sum() == pytest.approx(float(cheapest), abs=1e-4)


def test_more_objects_than_queries_use_every_query() -> None:
    found = pairs(
        match(torch.randn(2, 8), torch.rand(2, 4), torch.rand(5, 8), torch.ones(8), torch.zeros(5, dtype=torch.int64))
    )
    assert sorted(found) == [0, 1]
    assert len(set(found.values())) == 2


def test_a_query_keeps_its_object_through_a_clip() -> None:
    first, second = halves(), halves().flip(0)  # the objects change places
    masks, classes = perfect([1, 1], first, second)
    clip = target([1, 1], first, second)
    assert pairs(match_target(masks[0], classes[0], clip)) == {1: 0, 2: 1}
    kept = total(masks, classes, clip)
    assert kept == NOTHING
    changing = masks.clone()
    changing[0, 1, 1:3] = masks[0, 1, 1:3].flip(0)  # the queries keep to their places, not to their objects
    assert total(changing, classes, clip) > 1


def test_an_object_that_left_has_an_empty_mask_and_keeps_its_class() -> None:
    gone = torch.stack((halves()[0], torch.zeros(SIZE, dtype=torch.bool)))
    clip = target([2, 0], halves(), gone)
    masks, classes = perfect([2, 0], halves(), gone)
    assert total(masks, classes, clip) == NOTHING
    classes[0, 1, 2] = 50 * torch.eye(4)[3]
    assert total(masks, classes, clip) > 1


@pytest.mark.parametrize("labels", [[2, 0], []])
def test_a_perfect_prediction_costs_nothing(labels: list[int]) -> None:
    masks = halves()[: len(labels)]
    assert total(*perfect(labels, masks), target(labels, masks)) == NOTHING


@pytest.mark.parametrize(
    ("wrong", "name"),
    [("class", "class"), ("mask", "mask"), ("mask", "dice"), ("extra", "class"), ("missing", "class")],
)
def test_every_kind_of_mistake_costs_in_its_own_loss(wrong: str, name: str) -> None:
    mask_logits, class_logits = perfect([2, 0], halves())
    if wrong == "class":
        class_logits[0, 0, 1] = 50 * torch.eye(4)[1]
    elif wrong == "mask":
        mask_logits[0, 0, 1] = -mask_logits[0, 0, 1]
    elif wrong == "extra":
        class_logits[0, 0, 4] = 50 * torch.eye(4)[1]
    else:
        class_logits[0, 0, 1] = 50 * torch.eye(4)[3]
    assert set_loss(mask_logits, class_logits, [target([2, 0], halves())])[name] > 1


def test_masks_beyond_the_picture_and_on_unknown_pixels_do_not_count() -> None:
    known = torch.ones(SIZE, dtype=torch.bool)
    known[:, 20:] = False
    mask_logits, class_logits = perfect([2, 0], halves())
    mask_logits[..., 22:] *= -1  # two columns from what is known, since points are read between pixels
    assert total(mask_logits, class_logits, target([2, 0], halves(), known=known)) == NOTHING
    padded = MaskTarget(torch.tensor([2, 0]), halves()[None], torch.ones(1, *SIZE, dtype=torch.bool), ((1.0, 20 / 24),))
    assert total(mask_logits, class_logits, padded) == NOTHING


def test_objects_are_counted_over_the_whole_batch() -> None:
    mask_logits, class_logits = perfect([2, 0], halves())
    mask_logits[0, 0, 1] *= -1
    one = set_loss(mask_logits, class_logits, [target([2, 0], halves())])
    two = set_loss(mask_logits.repeat(2, 1, 1, 1, 1), class_logits.repeat(2, 1, 1, 1), [target([2, 0], halves())] * 2)
    for name, loss in one.items():
        torch.testing.assert_close(loss, two[name], rtol=0.2, atol=1e-3)  # a sum instead of a mean: twice as much


@pytest.mark.parametrize(("undecided", "weight"), [(1, 1.0), (0, 0.1)], ids=["object", "no_object"])
def test_an_undecided_query_costs_a_tenth_where_there_is_no_object(undecided: int, weight: float) -> None:
    masks = halves()[:1]
    mask_logits, class_logits = perfect([0], masks, queries=2, classes=1)
    class_logits[0, 0, undecided] = 0
    expected = 2 * math.log(2) * weight / (1 + 0.1)  # class weight 2; a mean weighted 1 : 0.1
    found = set_loss(mask_logits, class_logits, [target([0], masks)])["class"]
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_gradients_are_finite_and_reach_masks_and_classes() -> None:
    mask_logits = torch.randn(2, 2, 5, 8, 12, requires_grad=True)
    class_logits = torch.randn(2, 2, 5, 4, requires_grad=True)
    nothing = torch.zeros(0, *SIZE, dtype=torch.bool)
    losses = set_loss(mask_logits, class_logits, [target([2, 0], halves(), halves()), target([], nothing, nothing)])
    torch.stack(list(losses.values())).sum().backward()
    for gradient in (mask_logits.grad, class_logits.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()
