"""The optimisation loop that every head is trained with: warm-up, cosine decay, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from decoders.training.interrupt import noted_interrupt
from decoders.training.optimizer import HeadOptimizer

WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Schedule:
    """How a head is trained.

    Attributes:
        views_per_picture: augmented views of each picture whose features are cached.
        least_side: a random crop's sides are at least this part of the picture's.
        steps, batch_size: optimisation steps, and examples in each.
        learning_rate: AdamW's highest (`HeadOptimizer`); 5 % of the steps warm up, a cosine takes it to 0.
        seed: of the views, of torch, and of the order of examples.
    """

    views_per_picture: int
    least_side: float
    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0


class TrainingError(RuntimeError):
    """Training can't go on; the message says why."""


class Journal(Protocol):
    """What is told of a run while it goes on, and what it can be taken up from."""

    def resume(self, head: nn.Module, optimizer: HeadOptimizer) -> int:
        """Bring both to where an earlier run stopped; the steps that are done (0: this is the beginning)."""
        ...

    def step(self, step: int, learning_rate: float, losses: Mapping[str, float | None]) -> None:
        """Told each step (from 1) when it is done."""
        ...

    def save(self, head: nn.Module, optimizer: HeadOptimizer, step: int) -> None:
        """Asked to keep the run's state."""
        ...


class StoppedError(Exception):
    """Ctrl-C stopped the run, and its state is kept. `step`: the steps that are done."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def train_steps(
    head: nn.Module,
    num_examples: int,
    load: Callable[[list[int]], Batch],
    losses_of: Callable[[Batch, float], Mapping[str, Tensor]],
    schedule: Schedule,
    journal: Journal,
    *,
    validate: Callable[[], float] | None = None,
    every: int = 100,
) -> None:
    """Train `head` in place; it is left in eval mode.

    A run that is stopped and taken up again does what an unbroken one does: which examples a step sees depends on its
    number and the seed alone, and the state of torch's generator is kept.

    Args:
        head: the module.
        num_examples: how many there are to draw from, epoch by epoch without replacement.
        load: indices to a batch; called in another thread, one step ahead.
        losses_of: (batch, progress in [0, 1)) to the losses, by name; their sum is made smaller.
        schedule: steps, batch size, learning rate and seed.
        journal: told every step.
        validate: the loss on other examples, of the head in eval mode; also told, as ``validation_loss``.
        every: steps between two validations, and between two states that the journal is asked to keep.

    Raises:
        StoppedError: Ctrl-C was pressed.
        TrainingError: a loss is not finite.
    """
    torch.manual_seed(schedule.seed)
    optimizer = HeadOptimizer(head, WEIGHT_DECAY)
    done = journal.resume(head, optimizer)
    head.train()
    with ThreadPoolExecutor(1) as ahead, noted_interrupt() as asked_to_stop:
        coming = ahead.submit(load, rows_of(done + 1, num_examples, schedule)) if done < schedule.steps else None
        for step in range(done + 1, schedule.steps + 1):
            assert coming is not None
            batch = coming.result()
            if step < schedule.steps:
                coming = ahead.submit(load, rows_of(step + 1, num_examples, schedule))
            rate = learning_rate(step, schedule)
            losses = losses_of(batch, (step - 1) / schedule.steps)
            loss = torch.stack(list(losses.values())).sum()
            told: dict[str, float | None] = {"loss": loss.item()}
            told |= {name: value.item() for name, value in losses.items()}
            if not loss.isfinite():
                raise TrainingError(f"the loss is {loss.item()} at step {step}; a lower --learning-rate may help")
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(head.parameters(), CLIP_NORM)
            optimizer.step(rate)
            told["gradient_norm"] = float(norm)
            if validate is not None:
                told["validation_loss"] = None
                if step % every == 0 or step == schedule.steps:
                    head.eval()
                    with torch.no_grad():
                        told["validation_loss"] = validate()
                    head.train()
            journal.step(step, rate, told)
            if step < schedule.steps and (asked_to_stop.is_set() or step % every == 0):
                journal.save(head, optimizer, step)
                if asked_to_stop.is_set():
                    raise StoppedError(step)
    head.eval()


def rows_of(step: int, num_examples: int, schedule: Schedule) -> list[int]:
    """The examples of a step (from 1): those of each epoch in an order of its own."""
    rows: list[int] = []
    place = (step - 1) * schedule.batch_size
    while len(rows) < schedule.batch_size:
        epoch, start = divmod(place + len(rows), num_examples)
        order = np.random.default_rng([schedule.seed, epoch]).permutation(num_examples)
        rows += order[start : start + schedule.batch_size - len(rows)].tolist()
    return rows


def learning_rate(step: int, schedule: Schedule) -> float:
    """The rate at a step (from 1)."""
    warm_up = max(1, schedule.steps // 20)
    cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warm_up) / max(1, schedule.steps - warm_up)))
    return schedule.learning_rate * min(step / warm_up, cosine)
