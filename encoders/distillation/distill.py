"""The distillation loop: the student's tokens after some blocks learn to tell the teacher's, for the same view."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.distillation.pictures import mixed, random_view
from encoders.distillation.student import TINY, Translation, new_student
from encoders.vit import VisionTransformer

CLIP_NORM = 3.0


@dataclass(frozen=True)
class DistillationSchedule:
    """How the student is trained.

    Attributes:
        steps: optimisation steps; the learning rate warms up, stays, and falls to 0 over the last `decay_part` of them.
        sides: inputs' sides in pixels, with how often each is drawn and its batch size.
        learning_rate, weight_decay, warm_up_steps, decay_part: of AdamW.
        out_indices: blocks whose tokens are compared, the same in teacher and student.
        seed: of weights, views and order.
    """

    steps: int = 20_000
    sides: tuple[tuple[int, float, int], ...] = ((160, 0.6, 48), (224, 0.3, 24), (320, 0.1, 12))
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warm_up_steps: int = 300
    decay_part: float = 0.25
    out_indices: tuple[int, ...] = (5, 8, 10, 11)
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        decay_steps = max(1, round(self.decay_part * self.steps))
        left = (self.steps - step + 1) / decay_steps
        return self.learning_rate * max(0.0, min(1.0, step / self.warm_up_steps, left))


class Distillation:
    """A student in training, with all that a later run needs to go on from.

    Args:
        teacher: frozen.
        images: unlabelled, small enough to stay in memory.
        schedule: of the training.
        device: where it runs; matrix products are in bfloat16.
    """

    def __init__(
        self,
        teacher: VisionTransformer,
        images: Sequence[Image.Image],
        schedule: DistillationSchedule,
        device: torch.device,
    ) -> None:
        torch.manual_seed(schedule.seed)
        self.teacher = teacher.to(device)
        self.images = images
        self.schedule = schedule
        self.device = device
        self.step = 0
        self.student = new_student(TINY).to(device)
        self.translation = Translation(TINY.embed_dim, teacher.spec.embed_dim, len(schedule.out_indices)).to(device)
        trained = [*self.student.parameters(), *self.translation.parameters()]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.weight_decay},
                {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=schedule.learning_rate,
            betas=(0.9, 0.95),
        )

    def run(self, report: Callable[[int, float], None], *, save_to: Path, save_every: int = 200) -> None:
        """Train from `step` to the end of the schedule.

        Args:
            report: told (step, loss) after each.
            save_to: file that `save` writes now and then, and at the end.
            save_every: steps between.
        """
        self.student.train()
        for views in self._batches():
            loss = self._train(views)
            report(self.step, loss)
            if self.step % save_every == 0 or self.step == self.schedule.steps:
                self.save(save_to)
        self.student.eval()

    def save(self, path: Path) -> None:
        """Write everything to go on from; a run that breaks off leaves the last file whole."""
        state = {
            "step": self.step,
            "student": self.student.state_dict(),
            "translation": self.translation.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": dataclasses.asdict(self.schedule),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a file of `save`; the schedule is this run's, so `steps` may have changed."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.student.load_state_dict(state["student"])
        self.translation.load_state_dict(state["translation"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _batches(self) -> Iterator[Tensor]:
        """Views for the steps that are left; those of the next step are made meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._views, self.step + 1)
            for step in range(self.step + 1, self.schedule.steps + 1):
                views = coming.result()
                if step < self.schedule.steps:
                    coming = pool.submit(self._views, step + 1)
                yield views

    def _views(self, step: int) -> Tensor:
        rng = random.Random(f"{self.schedule.seed} {step}")  # noqa: S311  # not for secrets
        [(side, _, batch_size)] = rng.choices(self.schedule.sides, [often for _, often, _ in self.schedule.sides])
        views = [random_view(rng.choice(self.images), side, rng) for _ in range(batch_size)]
        return mixed(torch.stack(views), rng)

    def _train(self, views: Tensor) -> float:
        self.step += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self.schedule.rate_at(self.step)
        pixels = views.to(self.device)
        indices = self.schedule.out_indices
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                wanted = self.teacher(pixels, (), indices)
            told = self.translation(self.student(pixels, indices), indices)
        loss = torch.stack(
            [token_loss(mine, wanted.hidden_state(index)) for mine, index in zip(told, indices, strict=True)]
        ).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), CLIP_NORM)
        self._optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of step {self.step} is {value}")
        return value


def token_loss(told: Tensor, wanted: Tensor) -> Tensor:
    """How far tokens are from the teacher's: smooth L1 on tokens brought to mean 0 and variance 1 each.

    Args:
        told, wanted: [B, T, C]; the latter as it left the teacher's block.
    """
    wanted = F.layer_norm(wanted.float(), wanted.shape[-1:])
    return F.smooth_l1_loss(told.float(), wanted, beta=1.0)
