"""Shared pieces of the tests: where the goldens and data lie, and tiny seeded models that need neither."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from decoders.labels import Label, LabelSet
from encoders.vit import VisionTransformer, ViTConfig

REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"
PACKAGED_GOLDENS = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of reference outputs of the published code; a test that needs it skips where it is absent."""
    folder = SHARED / "golden" / "visible"
    if not folder.is_dir():
        pytest.skip("../shared/golden/visible is absent; the copies in tests/golden still run")
    return folder


@pytest.fixture(scope="session")
def read_golden() -> Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]:
    """Reads one reference case, `(facts of its .json, tensors of its .safetensors)`, e.g. ``"image_dinov2_tiny.io"``.

    From ../shared/golden/visible where that is present, or else from the copies in tests/golden.
    """

    def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        for folder in (SHARED / "golden" / "visible", PACKAGED_GOLDENS):
            facts, tensors = folder / f"{name}.json", folder / f"{name}.safetensors"
            if tensors.is_file():
                return (json.loads(facts.read_text()) if facts.is_file() else {}), load_file(tensors)
        pytest.skip(f"golden {name}: ../shared/golden/visible is absent, and tests/golden has no copy of it")

    return read


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Start every test from one state of torch's generator, whatever ran before it, and leave no trace in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., VisionTransformer]:
    """Builds a tiny frozen ViT with seeded random weights; keyword arguments override fields of its `ViTConfig`."""

    def make(*, seed: int = 0, revision: str = "random", **overrides: Any) -> VisionTransformer:
        sizes: dict[str, Any] = {
            "name": "tiny",
            "embed_dim": 16,
            "depth": 4,
            "num_heads": 2,
            "patch_size": 8,
            "mlp_dim": 32,
            "num_registers": 2,
        }
        encoder = VisionTransformer(ViTConfig(**(sizes | overrides)), revision)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            for name, parameter in encoder.named_parameters():
                if "scale" in name or name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
                    parameter.add_(1)
        return encoder.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def tiny_encoder(make_encoder: Callable[..., VisionTransformer]) -> VisionTransformer:
    """A frozen ViT: width 16, 4 blocks, patch 8, CLS and 2 registers, RoPE."""
    return make_encoder()


@pytest.fixture(scope="session")
def label_set() -> LabelSet:
    """Three things (0..2) and two kinds of stuff (3, 4)."""
    names = ("cat", "cup", "car", "sky", "road")
    return LabelSet("five", tuple(Label(i, name, i < 3, (i, 2 * i, 3 * i)) for i, name in enumerate(names)))


@pytest.fixture(scope="session")
def draw_picture() -> Callable[..., Image.Image]:
    """Draws an RGB picture of a (height, width) without any symmetry: two gradients and seeded noise."""

    def draw(height: int, width: int, seed: int = 0) -> Image.Image:
        rows, columns = np.mgrid[0:height, 0:width]
        noise = np.random.default_rng(seed).integers(0, 60, (height, width))
        channels = (180 * rows / max(1, height - 1), 180 * columns / max(1, width - 1), noise + 0 * rows)
        return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))

    return draw
