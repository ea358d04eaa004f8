"""What a student is told: the teacher's tokens without what a place alone tells."""

from __future__ import annotations

import pytest
import torch

from encoders.distillation.levels import Targets, all_levels
from encoders.vit import VisionTransformer, ViTConfig


@pytest.fixture
def teacher() -> VisionTransformer:
    torch.manual_seed(1)
    teacher = VisionTransformer(ViTConfig("teacher", 32, 2, 1, 16, 32, position_grid=(2, 2)))
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher.eval().requires_grad_(False)


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (64, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_levels_are_the_forward_cut_into_halves(teacher: VisionTransformer, pictures: torch.Tensor) -> None:
    levels = all_levels(teacher, pictures[:2])
    assert levels.shape == (5, 2, 7, 32)
    features = teacher(pictures[:2], (), (0, 1))
    torch.testing.assert_close(levels[2], features.hidden_state(0))
    torch.testing.assert_close(levels[4], features.hidden_state(1))


def test_what_a_place_alone_tells_is_taken_off(teacher: VisionTransformer, pictures: torch.Tensor) -> None:
    raw = all_levels(teacher, pictures).mean(1)
    told = Targets.measure(teacher, [pictures.split(16)])(pictures).mean(1)
    assert raw[:, 1:].std(dim=1).mean() > 0.1
    assert told[:, 1:].std(dim=1).max() < 1e-4
    torch.testing.assert_close(told[:, 0], raw[:, 0])  # CLS has one place
    torch.testing.assert_close(told[:, 1:].mean(1), raw[:, 1:].mean(1), atol=1e-4, rtol=1e-4)


def test_scales_are_deviations_over_pictures_at_one_place(teacher: VisionTransformer, pictures: torch.Tensor) -> None:
    targets = Targets.measure(teacher, [pictures.split(16)])
    levels = all_levels(teacher, pictures)
    expected = levels.var(dim=1, correction=0).mean(1).sqrt()
    torch.testing.assert_close(targets.scale[:, 0, 0], expected, atol=1e-3, rtol=1e-2)
    steps = levels.diff(dim=0).var(dim=1, correction=0).mean(1).sqrt()
    torch.testing.assert_close(targets.step_scale[:, 0, 0], steps, atol=1e-3, rtol=1e-2)


def test_sizes_that_were_not_measured_are_refused(teacher: VisionTransformer, pictures: torch.Tensor) -> None:
    targets = Targets.measure(teacher, [pictures.split(16)])
    with pytest.raises(KeyError):
        targets(pictures[:, :, :, :32])
