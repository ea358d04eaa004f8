"""From drawn pictures to a trained head: the loss falls, the encoder stays, and the file is half precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from decoders.depth import DepthDecoder
from decoders.labels import LabelSet
from decoders.panoptic import PanopticDecoder
from decoders.training import recipes
from decoders.training.data import DepthSample, PanopticSample
from decoders.training.depth import depth_target
from decoders.training.feature_cache import FeatureCache
from decoders.training.recipes import fit_depth, fit_panoptic, save_head
from decoders.training.schedule import Schedule
from decoders.training.views import View
from encoders.geometry import FitGeometry
from encoders.preprocess import to_pixels
from encoders.vit import VisionTransformer

SCHEDULE = Schedule(views_per_picture=2, least_side=0.6, steps=30, batch_size=3, learning_rate=1e-2, seed=1)
Reports = list[tuple[str, int, int, float | None]]
Fit = Callable[..., tuple[nn.Module, Reports]]


def drawn(seed: int) -> tuple[Image.Image, np.ndarray]:
    """A picture of 32 x 40 with one bright box on a dark ground, and the box as a bool map."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(4, 12, 2)
    box = np.zeros((32, 40), dtype=bool)
    box[top : top + 14, left : left + 18] = True
    pixels = np.where(box[..., None], (230, 200, 60), (20, 40, 90)) + rng.integers(0, 20, (32, 40, 3))
    return Image.fromarray(pixels.astype(np.uint8)), box


def panoptic_samples() -> list[PanopticSample]:
    samples = []
    for seed in range(3):
        image, box = drawn(seed)
        samples.append(PanopticSample(f"{seed}.png", image, box.astype(np.int32) + 1, {1: 3, 2: 0}, frozenset()))
    return samples


def depth_samples() -> list[DepthSample]:
    samples = []
    for seed in range(3):
        image, box = drawn(seed)
        depth_m = np.where(box, 1.0, 4.0).astype(np.float32)
        depth_m[:, 0] = np.nan
        samples.append(DepthSample(f"{seed}.png", image, depth_m))
    return samples


@pytest.fixture(params=["panoptic", "depth"])
def fit(request: pytest.FixtureRequest, label_set: LabelSet, tmp_path: Path) -> Fit:
    """Trains a fresh head of one kind on an encoder's features: (the head, what was reported)."""

    def run(encoder: VisionTransformer, schedule: Schedule = SCHEDULE) -> tuple[nn.Module, Reports]:
        reports: Reports = []
        torch.manual_seed(0)
        cache = FeatureCache(tmp_path / "cache", encoder, FitGeometry(32, 40), (1, 3))
        if request.param == "panoptic":
            head: nn.Module = PanopticDecoder(
                encoder.spec, label_set=label_set, out_indices=(1, 3), num_queries=5, num_blocks=1
            )
            fit_panoptic(head, panoptic_samples(), cache, schedule, lambda *told: reports.append(told))
        else:
            head = DepthDecoder(encoder.spec, out_indices=(1, 3), hidden_dim=8, num_bins=8)
            fit_depth(head, depth_samples(), cache, schedule, lambda *told: reports.append(told))
        return head, reports

    return run


def test_training_lowers_the_loss(fit: Fit, tiny_encoder: VisionTransformer) -> None:
    _, reports = fit(tiny_encoder)
    losses = [loss for stage, _, _, loss in reports if stage == "training"]
    assert len(losses) == SCHEDULE.steps
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:3])


def test_training_leaves_every_bit_of_the_encoder(fit: Fit, make_encoder: Callable[..., VisionTransformer]) -> None:
    encoder = make_encoder()
    before = copy.deepcopy(encoder.state_dict())
    head, _ = fit(encoder)
    assert before.keys() == encoder.state_dict().keys()
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert all(parameter.requires_grad for parameter in head.parameters())


def test_training_moves_every_part_of_the_head(fit: Fit, tiny_encoder: VisionTransformer) -> None:
    trained, _ = fit(tiny_encoder)
    torch.manual_seed(0)
    still = replace(SCHEDULE, learning_rate=0.0)
    untouched = dict(fit(tiny_encoder, still)[0].named_parameters())
    assert [name for name, p in trained.named_parameters() if torch.equal(p, untouched[name])] == []


def test_a_second_training_encodes_nothing_and_gives_the_same_head(fit: Fit, tiny_encoder: VisionTransformer) -> None:
    first, reports = fit(tiny_encoder)
    assert [(done, total) for stage, done, total, _ in reports if stage == "encoding"] == [(4, 6), (6, 6)]
    second, reports = fit(tiny_encoder)
    assert {stage for stage, *_ in reports} == {"training"}
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_trained_head_is_ready_to_serve(fit: Fit, tiny_encoder: VisionTransformer) -> None:
    head, _ = fit(tiny_encoder)
    assert not head.training


def test_features_and_targets_show_the_same_view(
    tmp_path: Path, tiny_encoder: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = View((0, 0, 40, 16), flip=True, brightness=0.5)
    trained: list[tuple[np.ndarray, torch.Tensor, Schedule]] = []
    monkeypatch.setattr(recipes, "random_view", lambda *_, **__: view)
    monkeypatch.setattr(recipes, "train_depth", lambda head, cache, *data, **_: trained.append(data))
    cache = FeatureCache(tmp_path, tiny_encoder, FitGeometry(32, 40), (1, 3))
    head = DepthDecoder(tiny_encoder.spec, out_indices=(1, 3), hidden_dim=8, num_bins=8)
    samples = depth_samples()
    recipes.fit_depth(head, samples, cache, SCHEDULE, lambda *_: None)
    ((array, targets, schedule),) = trained
    assert schedule is SCHEDULE
    geometry = cache.geometry.place((16, 40))
    assert len(array) == len(targets) == SCHEDULE.views_per_picture * len(samples)
    for row in range(len(targets)):
        sample = samples[row % len(samples)]
        seen = tiny_encoder(to_pixels(view.apply(sample.image), geometry), (1, 3))
        torch.testing.assert_close(cache.features(array, [row]).tokens(3), seen.tokens(3), atol=2e-2, rtol=2e-3)
        wanted = depth_target(sample, view, geometry, (8, 10))
        torch.testing.assert_close(targets[row], wanted, atol=0, rtol=0, equal_nan=True)


def test_other_pictures_under_the_same_names_are_encoded_anew(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder, FitGeometry(32, 40), (1, 3))
    stages: list[str] = []
    for samples in (
        depth_samples(),
        [DepthSample(s.name, Image.new("RGB", (40, 32)), s.depth_m) for s in depth_samples()],
    ):
        stages.clear()
        head = DepthDecoder(tiny_encoder.spec, out_indices=(1, 3), hidden_dim=8, num_bins=8)
        fit_depth(head, samples, cache, SCHEDULE, lambda stage, *_: stages.append(stage))
    assert "encoding" in stages


def test_a_saved_head_is_half_precision_with_its_metadata(
    tmp_path: Path, tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = PanopticDecoder(tiny_encoder.spec, label_set=label_set, out_indices=(1,), num_queries=3, num_blocks=1)
    file = tmp_path / "new" / "head.safetensors"
    save_head(head, file, {"encoder": "tiny"})
    weights = load_file(file)
    assert weights.keys() == head.state_dict().keys()
    for name, tensor in head.state_dict().items():
        expected = tensor.half() if tensor.is_floating_point() else tensor
        assert weights[name].dtype == expected.dtype
        assert torch.equal(weights[name], expected)
    assert weights["mask_decoder.laterals.0.norm.num_batches_tracked"].dtype == torch.int64
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"encoder": "tiny"}


def test_a_saved_head_answers_as_it_did(tmp_path: Path, fit: Fit, tiny_encoder: VisionTransformer) -> None:
    head, _ = fit(tiny_encoder)
    save_head(head, tmp_path / "head.safetensors", {})
    loaded = copy.deepcopy(head).requires_grad_(False)
    for parameter in loaded.parameters():
        parameter.zero_()
    loaded.load_state_dict(load_file(tmp_path / "head.safetensors"))
    features = tiny_encoder(torch.rand(1, 3, 32, 40), (1, 3))
    with torch.no_grad():
        expected, found = head(features), loaded(features)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=0.05, rtol=0.02)
