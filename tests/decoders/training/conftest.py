"""Shared pieces of the training tests: drawn pictures with truth of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from decoders.masks import encode
from decoders.training.data.samples import (
    IGNORE,
    ClassSample,
    DepthSample,
    InstanceMask,
    InstanceSample,
    PanopticSample,
    Sample,
    Segments,
    SemanticSample,
)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """The models are so small that waking a second thread costs more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(seed: int) -> tuple[Image.Image, NDArray[np.bool_]]:
    """A picture of 32 x 40 with one bright box on a dark ground, and the box as a bool map."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(4, 12, 2)
    box = np.zeros((32, 40), dtype=bool)
    box[top : top + 14, left : left + 18] = True
    pixels = np.where(box[..., None], (230, 200, 60), (20, 40, 90)) + rng.integers(0, 20, (32, 40, 3))
    return Image.fromarray(pixels.astype(np.uint8)), box


def draw(kind: str, seed: int) -> Sample:
    """A sample whose box is class 0 ("cat", a thing) on class 3 ("sky") of the label set "five"."""
    image, box = drawn(seed)
    name = f"{seed}.png"
    match kind:
        case "panoptic":
            segments = Segments(box.astype(np.int32) + 1, {1: 3, 2: 0}, frozenset())
            return PanopticSample(name, lambda: image, lambda: segments)
        case "instance":
            return InstanceSample(name, lambda: image, lambda: [InstanceMask(0, encode(box), False)])
        case "semantic":
            label_map = np.where(box, 0, 3).astype(np.int32)
            label_map[:, 0] = IGNORE
            return SemanticSample(name, lambda: image, lambda: label_map)
        case "depth":
            depth_m = np.where(box, 1.0, 4.0).astype(np.float32)
            depth_m[:, 0] = np.nan
            return DepthSample(name, lambda: image, lambda: depth_m)
        case "classification":
            label_id = seed % 5
            dyed = Image.fromarray(np.roll(np.asarray(image), label_id % 3, axis=-1) // (1 + label_id // 3))
            return ClassSample(name, lambda: dyed, label_id)
    raise ValueError(kind)


@pytest.fixture(scope="session")
def draw_samples() -> Callable[..., list[Sample]]:
    """Draws samples of a kind of truth: (kind, how many = 5)."""
    return lambda kind, count=5: [draw(kind, seed) for seed in range(count)]
