"""From drawn pictures to a trained head of every kind: the loss falls, the encoder stays, a broken-off run goes on."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from decoders.labels import LabelSet
from decoders.prototypes import PrototypeDecoder
from decoders.registry import decoder_class
from decoders.training.data.samples import ClassSample, Sample
from decoders.training.feature_cache import FeatureCache
from decoders.training.fit import Training
from decoders.training.journal import RunFolder
from decoders.training.recipes.table import RECIPES, recipe_for
from decoders.training.schedule import Schedule, StoppedError
from encoders.features import EncoderSpec
from encoders.geometry import FitGeometry
from encoders.preprocess import to_pixels
from encoders.vit import VisionTransformer

SCHEDULE = Schedule(views_per_picture=2, least_side=0.6, steps=30, batch_size=3, learning_rate=1e-2, seed=1)
WITH_STEPS = [name for name, recipe in RECIPES.items() if recipe.objective is not None]
SMALL: dict[str, dict[str, Any]] = {
    "depth": {"hidden_dim": 8, "num_bins": 8},
    "linear_depth": {"num_bins": 16},
    "dpt_depth": {"fusion_dim": 16},
}
"""Settings that make a head smaller."""


class Notes:
    """A journal in memory, which can press Ctrl-C."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.rows: list[Mapping[str, float | None]] = []
        self.interrupt_at = interrupt_at

    def resume(self, head: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        return 0

    def step(self, step: int, learning_rate: float, losses: Mapping[str, float | None]) -> None:
        self.rows.append(losses)
        if step == self.interrupt_at:
            signal.raise_signal(signal.SIGINT)

    def save(self, head: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        return None

    @property
    def losses(self) -> list[float]:
        return [row["loss"] or 0.0 for row in self.rows]


def new_head(name: str, spec: EncoderSpec, label_set: LabelSet) -> Any:
    """A small untrained head, the same each time."""
    recipe = recipe_for(name)
    settings = recipe.settings(spec) | SMALL.get(name, {})
    if "num_queries" in settings:
        settings |= {"num_queries": 5, "num_blocks": 1, "out_indices": [1, 3]}
    if recipe.data != "depth":
        settings["label_set"] = label_set
    torch.manual_seed(0)
    return decoder_class(name)(spec, **settings)


Fit = Callable[..., tuple[Any, list[tuple[str, int, int]]]]


@pytest.fixture
def fit(draw_samples: Callable[..., list[Sample]], label_set: LabelSet, tmp_path: Path) -> Fit:
    """Trains a fresh head on an encoder's features: (the head, what was told of the encoding)."""

    def run(
        name: str, encoder: VisionTransformer, journal: Any, schedule: Schedule = SCHEDULE, **options: Any
    ) -> tuple[Any, list[tuple[str, int, int]]]:
        told: list[tuple[str, int, int]] = []
        recipe = recipe_for(name)
        head = new_head(name, encoder.spec, label_set).to(next(encoder.parameters()).device)
        cache = FeatureCache(
            tmp_path / "cache", encoder, FitGeometry(32, 40), head.out_indices, head.hidden_indices, 10**8
        )
        training = Training(recipe, schedule, cache, lambda *report: told.append(report))
        training.fit(head, draw_samples(recipe.data), journal, **options)
        return head, told

    return run


@pytest.mark.parametrize("name", WITH_STEPS)
def test_training_lowers_the_loss(name: str, fit: Fit, tiny_encoder: VisionTransformer) -> None:
    notes = Notes()
    head, _ = fit(name, tiny_encoder, notes)
    assert len(notes.losses) == SCHEDULE.steps
    assert np.isfinite(notes.losses).all()
    assert np.mean(notes.losses[-5:]) < 0.8 * np.mean(notes.losses[:3])
    assert not head.training


@pytest.mark.parametrize("name", RECIPES)
def test_training_leaves_every_bit_of_the_encoder(
    name: str, fit: Fit, make_encoder: Callable[..., VisionTransformer]
) -> None:
    encoder = make_encoder()
    before = copy.deepcopy(encoder.state_dict())
    head, _ = fit(name, encoder, Notes(), replace(SCHEDULE, steps=3))
    assert before.keys() == encoder.state_dict().keys()
    assert all(torch.equal(encoder.state_dict()[key], tensor) for key, tensor in before.items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(parameter.requires_grad for parameter in head.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECIPES)
def test_training_runs_on_a_gpu_and_its_losses_are_those_of_the_cpu(
    name: str, fit: Fit, make_encoder: Callable[..., VisionTransformer]
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    schedule, on_cpu, on_gpu = replace(SCHEDULE, steps=3), Notes(), Notes()
    fit(name, make_encoder(), on_cpu, schedule)
    head, _ = fit(name, make_encoder().to("cuda"), on_gpu, schedule)
    assert {tensor.device.type for tensor in head.state_dict().values()} == {"cuda"}
    assert on_gpu.losses[:1] == pytest.approx(on_cpu.losses[:1], rel=0.1)


@pytest.mark.parametrize("name", WITH_STEPS)
def test_training_moves_every_part_of_the_head(
    name: str, fit: Fit, tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    untouched = dict(new_head(name, tiny_encoder.spec, label_set).named_parameters())
    trained, _ = fit(name, tiny_encoder, Notes(), replace(SCHEDULE, steps=5))
    assert [key for key, p in trained.named_parameters() if torch.equal(p, untouched[key])] == []


@pytest.mark.parametrize("name", ["panoptic", "video_instance"])
def test_a_second_training_encodes_nothing_and_gives_the_same_head(
    name: str, fit: Fit, tiny_encoder: VisionTransformer
) -> None:
    schedule = replace(SCHEDULE, steps=4)
    first, told = fit(name, tiny_encoder, Notes(), schedule)
    total = 5 * 2 * recipe_for(name).frames
    assert told[-1] == ("encoding", total, total)
    second, told = fit(name, tiny_encoder, Notes(), schedule)
    assert told == []
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_features_that_do_not_fit_on_disk_give_the_same_head(
    fit: Fit,
    tiny_encoder: VisionTransformer,
    draw_samples: Callable[..., list[Sample]],
    label_set: LabelSet,
    tmp_path: Path,
) -> None:
    schedule = replace(SCHEDULE, steps=4)
    kept, _ = fit("depth", tiny_encoder, Notes(), schedule)
    head, told = new_head("depth", tiny_encoder.spec, label_set), []
    cache = FeatureCache(tmp_path / "none", tiny_encoder, FitGeometry(32, 40), head.out_indices, (), max_bytes=1000)
    Training(recipe_for("depth"), schedule, cache, tell=told.append).fit(head, draw_samples("depth"), Notes())
    assert "encoded again at every step" in told[0]
    assert list((tmp_path / "none").glob("*.f16")) == []
    for one, other in zip(kept.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("name", ["panoptic", "video_panoptic", "linear_classification"])
def test_a_run_that_ctrl_c_stopped_ends_as_an_unbroken_one(
    name: str, fit: Fit, tiny_encoder: VisionTransformer, tmp_path: Path
) -> None:
    schedule = replace(SCHEDULE, steps=7)

    def folder(place: str, *, resume: bool, interrupt_at: int | None = None) -> RunFolder:
        def report(step: int, loss: float) -> None:
            if step == interrupt_at:
                signal.raise_signal(signal.SIGINT)

        return RunFolder(tmp_path / place, {"name": name}, resume=resume, report=report)

    whole, _ = fit(name, tiny_encoder, folder("whole", resume=False), schedule)
    with pytest.raises(StoppedError, match="stopped after step 3"):
        fit(name, tiny_encoder, folder("broken", resume=False, interrupt_at=3), schedule)
    resumed, _ = fit(name, tiny_encoder, folder("broken", resume=True), schedule)
    for (key, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert (tmp_path / "broken" / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()


def test_ctrl_c_works_as_before_once_the_steps_are_over(fit: Fit, tiny_encoder: VisionTransformer) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(StoppedError):
        fit("depth", tiny_encoder, Notes(interrupt_at=1))
    assert signal.getsignal(signal.SIGINT) is before


def test_held_out_loss_is_told_now_and_then_and_leaves_the_training_as_it_is(
    fit: Fit, tiny_encoder: VisionTransformer, draw_samples: Callable[..., list[Sample]]
) -> None:
    schedule = replace(SCHEDULE, steps=5)
    without, _ = fit("panoptic", tiny_encoder, Notes(), schedule)
    notes = Notes()
    held_out = draw_samples("panoptic", 3)
    watched, told = fit("panoptic", tiny_encoder, notes, schedule, held_out=held_out, every=2)
    found = [row["validation_loss"] for row in notes.rows]
    assert [value is not None for value in found] == [False, True, False, True, True]
    assert ("encoding for validation", 3, 3) in told
    assert all(torch.equal(a, b) for a, b in zip(without.parameters(), watched.parameters(), strict=True))


def test_prototypes_are_the_mean_directions_of_their_pictures(
    fit: Fit, tiny_encoder: VisionTransformer, draw_samples: Callable[..., list[Sample]]
) -> None:
    schedule = replace(SCHEDULE, views_per_picture=1, least_side=1)
    head, _ = fit("prototypes", tiny_encoder, Notes(), schedule)
    assert isinstance(head, PrototypeDecoder)
    for sample in draw_samples("classification"):
        assert isinstance(sample, ClassSample)
        image: Image.Image = sample.read_image()
        pixels = to_pixels(image, FitGeometry(32, 40).place((32, 40)))
        with torch.no_grad():
            tokens = tiny_encoder(pixels, head.out_indices).prefix_tokens(3)[0, 0]
        expected = nn.functional.normalize(tokens, dim=0)
        torch.testing.assert_close(head.prototypes[sample.label_id], expected, atol=5e-3, rtol=5e-2)
