"""The optimisation loop that every head is trained with: AdamW, warm-up, cosine decay, clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.05
CLIP_NORM = 1.0


@dataclass(frozen=True)
class Schedule:
    """How a head is trained.

    Attributes:
        views_per_picture: augmented views of each picture whose features are cached.
        least_side: a random crop's sides are at least this part of the picture's.
        steps, batch_size: optimisation steps, and views in each.
        learning_rate: the highest; 5 % of the steps warm up, a cosine takes it to 0.
        seed: of the views, of torch, and of the order of views.
    """

    views_per_picture: int
    least_side: float
    steps: int
    batch_size: int
    learning_rate: float
    seed: int = 0


def train_steps(
    head: nn.Module,
    num_views: int,
    loss_of: Callable[[list[int], float], Tensor],
    schedule: Schedule,
    *,
    report: Callable[[int, float], None],
) -> None:
    """Train `head` in place; it is left in eval mode.

    Args:
        head: the module.
        num_views: how many rows there are to draw from, epoch by epoch without replacement.
        loss_of: (rows, progress in [0, 1)) to a scalar loss.
        schedule: steps, batch size, learning rate and seed.
        report: told (step from 1, loss).
    """
    torch.manual_seed(schedule.seed)
    rng = np.random.default_rng(schedule.seed)
    decayed = [p for p in head.parameters() if p.ndim > 1]
    others = [p for p in head.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=schedule.learning_rate,
    )
    steps, batch_size = schedule.steps, schedule.batch_size
    warm_up = max(1, steps // 20)
    head.train()
    order: list[int] = []
    for step in range(1, steps + 1):
        while len(order) < batch_size:
            order += rng.permutation(num_views).tolist()
        rows, order = order[:batch_size], order[batch_size:]
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warm_up) / max(1, steps - warm_up)))
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * min(step / warm_up, cosine)
        loss = loss_of(rows, (step - 1) / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), CLIP_NORM)
        optimizer.step()
        report(step, loss.item())
    head.eval()
