"""The distillation loop at small scale: it learns, it can be broken off, and it leaves the teacher alone."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from encoders.checkpoints import build_encoder
from encoders.distillation import distill
from encoders.distillation.distill import Distillation, DistillationSchedule
from encoders.distillation.levels import half
from encoders.distillation.pictures import random_view
from encoders.distillation.student import TINY, new_student, to_hugging_face
from encoders.rope import Rope
from encoders.vit import VisionTransformer, ViTConfig

SMALL = dataclasses.replace(TINY, embed_dim=32, depth=2, num_heads=1, mlp_dim=32)
SCHEDULE = DistillationSchedule(steps=30, sides=((32, 0.5, 4), (48, 0.5, 2)), learning_rate=1e-2, warm_up_steps=5)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill, "TINY", SMALL)
    monkeypatch.setattr(distill, "new_student", lambda config: new_student(SMALL))


@pytest.fixture
def teacher() -> VisionTransformer:
    config = ViTConfig("teacher", 32, 2, 1, 16, 32, position_grid=(2, 2))
    torch.manual_seed(1)
    teacher = VisionTransformer(config)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher.eval().requires_grad_(False)


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)) for _ in range(3)]


def losses_of(run: Distillation, file: Path) -> list[float]:
    losses: list[float] = []
    run.run(lambda step, loss: losses.append(loss), save_to=file, save_every=10)
    return losses


def test_the_student_on_its_own_comes_nearer_to_the_teacher(
    teacher: VisionTransformer, images: list[Image.Image], tmp_path: Path
) -> None:
    run = Distillation(teacher, images, dataclasses.replace(SCHEDULE, steps=60), CPU)
    pixels = torch.stack([random_view(image, 32, random.Random(9)) for image in images])
    before = run.unexplained(pixels, (0, 1))
    losses_of(run, tmp_path / "run.pt")
    assert run.step == 60
    assert all(now < 0.7 * then for now, then in zip(run.unexplained(pixels, (0, 1)), before, strict=True))


def test_half_blocks_learn_apart_until_they_are_chained(
    teacher: VisionTransformer, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[bool]] = []

    def told_of(encoder: VisionTransformer, number: int, tokens: Tensor, rope: Rope | None) -> Tensor:
        if number == 0:
            given.append([])
        given[-1].append(tokens.grad_fn is not None and tokens[:, 5:].requires_grad)
        return half(encoder, number, tokens, rope)

    schedule = dataclasses.replace(SCHEDULE, steps=4, chains=((0.5, 1), (0.75, 2), (1.0, 0)))
    monkeypatch.setattr(distill, "half", told_of)
    losses_of(Distillation(teacher, images, schedule, CPU), tmp_path / "run.pt")
    assert [sum(steps) for steps in given[:2]] == [0, 0]  # nothing flows back into an earlier half
    assert sum(given[2]) == 2
    assert sum(given[3]) == 4


def test_chains_grow_over_the_run() -> None:
    schedule = DistillationSchedule(steps=100, chains=((0.5, 1), (0.6, 4), (1.0, 0)))
    assert [schedule.chain_at(step) for step in (1, 50, 51, 60, 61, 100, 120)] == [1, 1, 4, 4, 0, 0, 0]


def test_the_teacher_stays_as_it_was(teacher: VisionTransformer, images: list[Image.Image], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    losses_of(Distillation(teacher, images, SCHEDULE, CPU), tmp_path / "run.pt")
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_a_run_that_was_broken_off_ends_as_one_that_was_not(
    teacher: VisionTransformer, images: list[Image.Image], tmp_path: Path
) -> None:
    whole = Distillation(teacher, images, SCHEDULE, CPU)
    losses_of(whole, tmp_path / "whole.pt")

    class EnoughError(Exception):
        pass

    def stop_at_25(step: int, loss: float) -> None:
        if step == 25:
            raise EnoughError

    broken = Distillation(teacher, images, SCHEDULE, CPU)
    with pytest.raises(EnoughError):
        broken.run(stop_at_25, save_to=tmp_path / "broken.pt", save_every=10)
    resumed = Distillation(teacher, images, SCHEDULE, CPU)
    resumed.resume(tmp_path / "broken.pt")
    assert resumed.step == 20
    losses_of(resumed, tmp_path / "broken.pt")
    for name, value in whole.student.state_dict().items():
        torch.testing.assert_close(resumed.student.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_a_run_of_other_pictures_is_not_taken_up(
    teacher: VisionTransformer, images: list[Image.Image], tmp_path: Path
) -> None:
    Distillation(teacher, images, SCHEDULE, CPU).save(tmp_path / "run.pt")
    Distillation(teacher, images, dataclasses.replace(SCHEDULE, steps=99), CPU).resume(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"another run: pictures 3 .* \(now 2 "):
        Distillation(teacher, images[:2], SCHEDULE, CPU).resume(tmp_path / "run.pt")


def test_the_rate_warms_up_stays_and_falls_to_nothing() -> None:
    schedule = DistillationSchedule(steps=100, learning_rate=1.0, warm_up_steps=10, decay_part=0.2)
    rates = [schedule.rate_at(step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:80] == [1.0] * 71
    assert rates[-1] == pytest.approx(0.05)
    assert rates[80:] == sorted(rates[80:], reverse=True)


def test_the_student_survives_the_way_through_published_names(
    teacher: VisionTransformer, images: list[Image.Image], tmp_path: Path
) -> None:
    run = Distillation(teacher, images, SCHEDULE, CPU)
    losses_of(run, tmp_path / "run.pt")
    read = build_encoder(to_hugging_face(run.student), revision="test", num_heads=SMALL.num_heads)
    pixels = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = (encoder(pixels, [1]).tokens(1) for encoder in (run.student, read))
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)  # float16 weights
    keys = [value.chunk(3)[1] for name, value in run.student.state_dict().items() if name.endswith("qkv.bias")]
    assert len(keys) == SMALL.depth
    assert all(not key.any() for key in keys)


def test_the_student_is_of_dinov3s_shape_and_small_enough_for_the_repository() -> None:
    student = new_student()
    assert student.spec.num_prefix_tokens == 5
    assert student.positions is None
    assert 2 * sum(p.numel() for p in student.parameters()) < 12 * 2**20  # float16
