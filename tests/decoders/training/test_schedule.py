"""The optimisation loop: which rows, which learning rate, and what is left behind."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from decoders.training.optimizer import HeadOptimizer
from decoders.training.schedule import WEIGHT_DECAY, Schedule, TrainingError, train_steps

SCHEDULE = Schedule(views_per_picture=1, least_side=1.0, steps=20, batch_size=3, learning_rate=0.1)


class Notes:
    """A journal in memory, which can hold a state to resume."""

    def __init__(self, resumed: int = 0) -> None:
        self.resumed = resumed
        self.rows: list[tuple[int, float, dict[str, float | None]]] = []
        self.saved: list[int] = []

    def resume(self, head: nn.Module, optimizer: HeadOptimizer) -> int:
        return self.resumed

    def step(self, step: int, learning_rate: float, losses: Mapping[str, float | None]) -> None:
        self.rows.append((step, learning_rate, dict(losses)))

    def save(self, head: nn.Module, optimizer: HeadOptimizer, step: int) -> None:
        self.saved.append(step)


def train(head: nn.Module, loss_of: Any = None, notes: Notes | None = None, **overrides: Any) -> list[list[int]]:
    """Run the loop; the rows that were drawn."""
    drawn: list[list[int]] = []

    def loss(rows: list[int], progress: float) -> Tensor:
        drawn.append(rows)
        return head(torch.ones(1, 2)).pow(2).mean()

    options = {name: overrides.pop(name) for name in ("validate", "every") if name in overrides}
    schedule = replace(SCHEDULE, **overrides)
    losses_of = lambda rows, progress: {"squared": (loss_of or loss)(rows, progress)}  # noqa: E731
    train_steps(head, 5, lambda rows: rows, losses_of, schedule, notes or Notes(), **options)
    return drawn


def test_a_schedule_can_not_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        SCHEDULE.steps = 1
    assert SCHEDULE.seed == 0


def test_every_row_is_drawn_once_in_each_epoch() -> None:
    drawn = train(nn.Linear(2, 1), steps=5)
    flat = [row for rows in drawn for row in rows]
    assert all(len(rows) == 3 for rows in drawn)
    for epoch in range(3):
        assert sorted(flat[5 * epoch : 5 * epoch + 5]) == [0, 1, 2, 3, 4]


def test_every_epoch_has_an_order_of_its_own() -> None:
    flat = [row for rows in train(nn.Linear(2, 1), steps=20) for row in rows]
    assert len({tuple(flat[5 * epoch : 5 * epoch + 5]) for epoch in range(12)}) > 6


def test_a_batch_may_be_larger_than_the_number_of_views() -> None:
    drawn = train(nn.Linear(2, 1), steps=2, batch_size=12)
    assert [len(rows) for rows in drawn] == [12, 12]
    assert set(drawn[0]) == set(range(5))


def test_loss_is_told_at_every_step_and_falls() -> None:
    notes = Notes()
    train(nn.Linear(2, 1), notes=notes)
    assert [step for step, _, _ in notes.rows] == list(range(1, 21))
    losses = [row["loss"] for _, _, row in notes.rows]
    assert losses[-1] < losses[0]
    assert all(row["squared"] == row["loss"] and row["gradient_norm"] > 0 for _, _, row in notes.rows)


def test_a_resumed_run_draws_what_the_whole_one_would_have() -> None:
    whole = train(nn.Linear(2, 1))
    rest = train(nn.Linear(2, 1), notes=Notes(resumed=13))
    assert rest == whole[13:]


def test_a_run_that_is_over_takes_no_step() -> None:
    assert train(nn.Linear(2, 1), notes=Notes(resumed=20)) == []


def test_the_state_is_kept_now_and_then_but_not_at_the_end() -> None:
    notes = Notes()
    train(nn.Linear(2, 1), notes=notes, every=5)
    assert notes.saved == [5, 10, 15]


def test_validation_sees_the_head_in_eval_mode_and_training_goes_on_in_train_mode() -> None:
    head, notes, modes = nn.Linear(2, 1), Notes(), []

    def validate() -> float:
        assert not torch.is_grad_enabled()
        modes.append(head.training)
        return 7.0

    def loss_of(rows: list[int], progress: float) -> Tensor:
        modes.append(head.training)
        return head(torch.ones(1, 2)).sum()

    train(head, loss_of, notes, validate=validate, every=2, steps=3)
    assert modes == [True, True, False, True, False]
    assert [row["validation_loss"] for _, _, row in notes.rows] == [None, 7.0, 7.0]


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step() -> None:
    def loss_of(rows: list[int], progress: float) -> Tensor:
        return torch.tensor(float("nan") if progress > 0.5 else 1.0, requires_grad=True)

    with pytest.raises(TrainingError, match="the loss is nan at step 12"):
        train(nn.Linear(2, 1), loss_of)


def test_progress_runs_from_zero_to_just_below_one() -> None:
    head, seen = nn.Linear(2, 1), []

    def loss_of(rows: list[int], progress: float) -> Tensor:
        seen.append(progress)
        return head(torch.ones(1, 2)).sum()

    train(head, loss_of, steps=4)
    assert seen == [0, 0.25, 0.5, 0.75]


def test_one_seed_gives_one_result() -> None:
    start = nn.Linear(2, 1)
    first, second = copy.deepcopy(start), copy.deepcopy(start)
    assert train(first) == train(second) != train(copy.deepcopy(start), seed=1)
    assert torch.equal(first.weight, second.weight)


def test_the_head_learns_in_train_mode_and_is_left_in_eval_mode() -> None:
    head, modes = nn.Linear(2, 1).eval(), []

    def loss_of(rows: list[int], progress: float) -> Tensor:
        modes.append(head.training)
        return head(torch.ones(1, 2)).sum()

    train(head, loss_of, steps=2)
    assert modes == [True, True]
    assert not head.training


def test_learning_rate_warms_up_to_its_peak_and_ends_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def record(self: torch.optim.AdamW, *args: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    train(nn.Linear(2, 1), steps=100, learning_rate=0.5)
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(0.5)
    assert rates[0] == pytest.approx(0.5 / 5)  # 5 % of 100 steps warm up
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_only_matrices_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[list[tuple[int, float]]] = []
    step = torch.optim.AdamW.step

    def record(self: torch.optim.AdamW, *args: object) -> object:
        groups.append([(p.ndim, group["weight_decay"]) for group in self.param_groups for p in group["params"]])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    train(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), steps=1)
    assert sorted(groups[0]) == [(1, 0.0), (1, 0.0), (1, 0.0), (2, WEIGHT_DECAY)]


def test_a_huge_gradient_is_clipped() -> None:
    head = nn.Linear(2, 1)
    gradients: list[float] = []

    def loss_of(rows: list[int], progress: float) -> Tensor:
        if head.weight.grad is not None:
            norms = [p.grad.norm() for p in head.parameters() if p.grad is not None]
            gradients.append(float(torch.stack(norms).norm()))
        return 1e6 * head(torch.ones(1, 2)).sum()

    train(head, loss_of, steps=3)
    assert gradients == pytest.approx([1, 1], rel=1e-3)
