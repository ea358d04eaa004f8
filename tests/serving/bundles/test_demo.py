"""The bundle that everybody sees first: complete, without a download, and of heads made for its encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from decoders.results import ClassificationResult, DepthResult, PanopticResult
from encoders.checkpoints import load_encoder
from serving.bundles.schema import read_bundle
from serving.engine import Engine
from serving.types import PredictOptions

TEACHER = Path(__file__).parents[3].parent / "shared" / "data" / "teacher" / "vit_tiny_patch16_224_timm.safetensors"
FILE, FOLDER = read_bundle("demo")
ENCODER = FOLDER / FILE.encoder.weights
HEADS = {name: FOLDER / task.weights for name, task in FILE.tasks.items() if task.weights}


def test_nothing_of_it_is_downloaded() -> None:
    assert ENCODER.is_file()
    assert all(path.is_file() for path in HEADS.values())


def test_the_encoder_is_small_enough_for_the_repository() -> None:
    assert ENCODER.stat().st_size < 12e6


@pytest.mark.parametrize("task", HEADS)
def test_a_head_was_trained_on_the_encoder_that_stands_beside_it(task: str) -> None:
    with safe_open(HEADS[task], "pt") as file:
        assert file.metadata()["encoder"] == load_encoder(ENCODER).spec.revision


def test_the_encoder_is_no_copy_of_its_teacher() -> None:
    if not TEACHER.is_file():
        pytest.skip("../shared/data is absent")
    student, teacher = load_encoder(ENCODER).state_dict(), load_encoder(TEACHER).state_dict()
    alike = [name for name, value in student.items() if value.ndim == 2 and teacher[name].shape == value.shape]
    assert len(alike) == 48
    for name in alike:
        cosine = torch.nn.functional.cosine_similarity(student[name].flatten(), teacher[name].flatten(), dim=0)
        assert abs(cosine) < 0.05, name


def test_every_head_answers_on_one_pass() -> None:
    engine = Engine.from_bundle("demo", device="cpu")
    astronaut = skimage.data.astronaut()
    [answer] = engine.predict([astronaut], [*FILE.tasks], PredictOptions())
    assert answer.errors == {}
    assert answer.timing.encoder_passes == 1
    assert answer.results.keys() == FILE.tasks.keys()
    panoptic, depth = answer.results["panoptic"], answer.results["depth"]
    assert isinstance(panoptic, PanopticResult) and isinstance(depth, DepthResult)
    person = max((s for s in panoptic.segments if s.label == "person"), key=lambda s: s.area)
    assert (panoptic.segment_map[150:400, 180:300] == person.segment_id).mean() > 0.5  # her face and suit
    assert np.isfinite(depth.depth_m).all()
    assert isinstance(answer.results["classification"], ClassificationResult)


def test_weights_are_those_that_the_bundle_names_and_no_others() -> None:
    there = set((FOLDER / "demo").glob("*.safetensors"))
    assert there == {ENCODER, *HEADS.values()}
    assert all(tensor.dtype in {torch.float16, torch.int64} for path in there for tensor in load_file(path).values())
