"""The distillation loop: every half of a student's block learns what the teacher's does, first apart, then together.

A deep student that starts from random weights and sees only the teacher's last tokens learns next to nothing from a
few thousand pictures. So at first every half block is given the *teacher's* tokens and learns the step to the teacher's
next ones: 2 * depth small regressions, none waiting for another (block-wise distillation, as in DNA, arXiv 1911.13053).
Then longer and longer chains of half blocks run on the student's own tokens, and at the end all of them.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from encoders.distillation.levels import Targets, half
from encoders.distillation.pictures import mixed, random_view, seeded
from encoders.distillation.student import TINY, new_student
from encoders.run_state import save_state
from encoders.vit import VisionTransformer

CLIP_NORM = 3.0
_MEASURED_BATCHES = 16
_MOMENTUM, _BETAS = 0.95, (0.9, 0.95)


@dataclass(frozen=True)
class DistillationSchedule:
    """How the student is trained.

    Attributes:
        steps: optimisation steps; the learning rate warms up, stays, and falls to 0 over the last `decay_part` of them.
        sides: inputs' sides in pixels, with how often each is drawn and its batch size.
        chains: (part of the run, half blocks): up to that part of the steps, so many half blocks in a row run on the
            student's own tokens before they are given the teacher's again; 0: all of them.
        learning_rate, weight_decay, warm_up_steps, decay_part: of Muon (matrices) and AdamW (the rest).
        seed: of weights, views and order.
    """

    steps: int = 6_000
    sides: tuple[tuple[int, float, int], ...] = ((160, 0.6, 32), (224, 0.22, 16), (320, 0.13, 8), (448, 0.05, 4))
    chains: tuple[tuple[float, int], ...] = ((0.45, 1), (0.55, 4), (0.65, 8), (1.0, 0))
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    warm_up_steps: int = 30
    decay_part: float = 0.45
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        decay_steps = max(1, round(self.decay_part * self.steps))
        left = (self.steps - step + 1) / decay_steps
        return self.learning_rate * max(0.0, min(1.0, step / self.warm_up_steps, left))

    def chain_at(self, step: int) -> int:
        """How many half blocks run in a row at a step, counted from 1; 0: all."""
        return next(length for until, length in self.chains if step <= until * self.steps or until >= 1)


class Distillation:
    """A student in training, with all that a later run needs to go on from.

    Args:
        teacher: frozen, as deep and wide as the student, without registers.
        images: unlabelled, small enough to stay in memory.
        schedule: of the training.
        device: where it runs; matrix products are in bfloat16.

    Raises:
        ValueError: as `check_teacher`.
    """

    def __init__(
        self,
        teacher: VisionTransformer,
        images: Sequence[Image.Image],
        schedule: DistillationSchedule,
        device: torch.device,
    ) -> None:
        check_teacher(teacher)
        torch.manual_seed(schedule.seed)
        self.images = images
        self.schedule = schedule
        self.device = device
        self.step = 0
        self.student = new_student(TINY).to(device)
        self.targets = self._measure(teacher.to(device))
        sizes = hashlib.sha256(repr([image.size for image in images]).encode()).hexdigest()[:12]
        self._facts = {"teacher": teacher.spec.revision, "seed": schedule.seed, "pictures": f"{len(images)} ({sizes})"}
        matrices = [p for p in self.student.blocks.parameters() if p.ndim == 2]
        others = [p for p in self.student.parameters() if not any(p is matrix for matrix in matrices)]
        self._optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                matrices,
                lr=schedule.learning_rate,
                weight_decay=schedule.weight_decay,
                momentum=_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(others, lr=schedule.learning_rate, betas=_BETAS, weight_decay=0),
        )

    def run(
        self,
        report: Callable[[int, float], None],
        *,
        save_to: Path,
        save_every: int = 200,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train from `step` to the end of the schedule, or until asked to stop.

        Args:
            report: told (step, loss) after each.
            save_to: file that `save` writes now and then, and at the end.
            save_every: steps between.
            stop: asked after each step; once it says yes, the run is saved and left.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        self.student.train()
        for views in self._batches():
            loss = self._train(views)
            report(self.step, loss)
            stopping = stop()
            if stopping or self.step % save_every == 0 or self.step == self.schedule.steps:
                self.save(save_to)
            if stopping:
                break
        self.student.eval()

    def save(self, path: Path) -> None:
        """Write everything to go on from; a run that breaks off leaves the last file whole."""
        state = {
            "step": self.step,
            "student": self.student.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "facts": self._facts,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_state(state, path)

    def resume(self, path: Path) -> None:
        """Go on from a file of `save`, with as many steps as this run's schedule says.

        Raises:
            ValueError: it is of another run: of other pictures, say.
        """
        state = torch.load(path, map_location=self.device, weights_only=True)
        other = [
            f"{name} {was} (now {self._facts[name]})"
            for name, was in state["facts"].items()
            if was != self._facts[name]
        ]
        if other:
            raise ValueError(f"it is of another run: {', '.join(other)}")
        self.student.load_state_dict(state["student"])
        for optimizer, its_state in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its_state)
        self.step = state["step"]

    def unexplained(self, pixels: Tensor, blocks: Sequence[int]) -> list[float]:
        """The part of the teacher's variance after some blocks that the student, on its own, does not tell: 0 is best.

        Args:
            pixels: [B, 3, H, W] uint8 of one of the schedule's sizes.
            blocks: 0-based.
        """
        with self._precision(), torch.no_grad():
            wanted = self.targets(pixels.to(self.device))
            told = self._student_levels(pixels.to(self.device), wanted, chain=0, offset=0)
        parts = []
        for level in (2 * block + 2 for block in blocks):
            error = ((told[level] - wanted[level]) / self.targets.scale[level]).square().mean()
            spread = (wanted[level] - wanted[level].mean((0, 1))) / self.targets.scale[level]
            parts.append(float(error / spread.square().mean()))
        return parts

    def _measure(self, teacher: VisionTransformer) -> Targets:
        rng = seeded(f"{self.schedule.seed} measure")
        samples = [
            [self._views_of(side, batch_size, rng).to(self.device) for _ in range(_MEASURED_BATCHES)]
            for side, _, batch_size in self.schedule.sides
        ]
        with self._precision():
            return Targets.measure(teacher, samples)

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
        rng = seeded(f"{self.schedule.seed} {step}")
        [(side, _, batch_size)] = rng.choices(self.schedule.sides, [often for _, often, _ in self.schedule.sides])
        return mixed(self._views_of(side, batch_size, rng), rng)

    def _views_of(self, side: int, count: int, rng: random.Random) -> Tensor:
        return torch.stack([random_view(rng.choice(self.images), side, rng) for _ in range(count)])

    def _train(self, views: Tensor) -> float:
        self.step += 1
        rate = self.schedule.rate_at(self.step)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        pixels = views.to(self.device)
        chain = self.schedule.chain_at(self.step)
        offset = seeded(self.step).randrange(chain) if chain else 0
        with self._precision():
            wanted = self.targets(pixels)
            told = self._student_levels(pixels, wanted, chain, offset)
            loss = self._loss(told, wanted, chain)
            loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), CLIP_NORM)
        for optimizer in self._optimizers:
            optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss of step {self.step} is {value}")
        return value

    def _student_levels(self, pixels: Tensor, wanted: Tensor, chain: int, offset: int) -> list[Tensor]:
        """CLS and patch tokens after every level [B, 1 + N, C]; each chain begins with the teacher's."""
        prefix = self.student.spec.num_prefix_tokens
        tokens, _, rope = self.student.embed(pixels)
        tokens = tokens.float()
        told = [_without_registers(tokens, prefix)]
        for number in range(2 * len(self.student.blocks)):
            if chain and (number - offset) % chain == 0:
                registers = tokens[:, 1:prefix].detach()  # the student's own business
                tokens = torch.cat((wanted[number][:, :1], registers, wanted[number][:, 1:]), dim=1)
            tokens = half(self.student, number, tokens, rope)
            told.append(_without_registers(tokens, prefix))
        return told

    def _loss(self, told: Sequence[Tensor], wanted: Tensor, chain: int) -> Tensor:
        """Half the mean square error of every level, in units of what is to be told there, and of the final norm's.

        A half block that is given the teacher's tokens answers for its step; one that isn't, for where it ends up.
        """
        scales = self.targets.scale
        if chain == 1:
            scales = torch.cat((scales[:1], self.targets.step_scale))
        squares = [
            ((mine - theirs) / scale).square().mean() for mine, theirs, scale in zip(told, wanted, scales, strict=True)
        ]
        teacher_norm = self.targets.teacher.norm(wanted[-1])
        squares.append(F.mse_loss(self.student.norm(told[-1]), teacher_norm) / teacher_norm.var())
        return 0.5 * torch.stack(squares).mean()

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Matrix products in bfloat16; attention on a CPU as plain products, whose backward pass is twice as fast."""
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        with attention, torch.autocast(self.device.type, dtype=torch.bfloat16):
            yield


def check_teacher(teacher: VisionTransformer) -> None:
    """Raise unless the student can learn from this encoder.

    Raises:
        ValueError: it is not as deep or wide as the student, has other patches, or has registers.
    """
    for name in ("embed_dim", "depth", "patch_size"):
        own, wanted = getattr(teacher.config, name), getattr(TINY, name)
        if own != wanted:
            raise ValueError(f"{name} is {own}; of a teacher it must be {wanted}")
    if teacher.config.num_registers:
        raise ValueError("it has register tokens; a teacher must have none")


def _without_registers(tokens: Tensor, num_prefix_tokens: int) -> Tensor:
    return torch.cat((tokens[:, :1], tokens[:, num_prefix_tokens:]), dim=1)
