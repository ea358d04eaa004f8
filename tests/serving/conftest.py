"""Shared pieces of the serving tests: a tiny bundle in memory and on disk, a head that can be told to misbehave."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_bundle import make_heads, write_tiny_bundle
from torch import Tensor

from decoders.base import Decoder, DecoderModule, PostprocessOptions
from decoders.labels import load_label_set
from decoders.results import DepthResult
from encoders.features import EncoderFeatures
from encoders.geometry import FitGeometry, ImageGeometry
from encoders.vit import VisionTransformer
from serving.bundles.loading import Bundle
from serving.config import Settings
from serving.engine import Engine, PassInput, PassOutput
from serving.planner import Head
from serving.runner import RunPass
from serving.service import SegmentationService

COMMON = FitGeometry(56, 56)


class ProbeHead(DecoderModule):
    """A head without weights: answers the mean of its tokens as depth, and does what a test tells it to.

    Args:
        out_indices: blocks that it reads.
        on_call: called with the features and this head's output before it is returned.
        on_postprocess: called with a picture's raw output first.
    """

    kind: ClassVar[str] = "depth"

    def __init__(
        self,
        out_indices: tuple[int, ...] = (1,),
        on_call: Callable[[EncoderFeatures, dict[str, Tensor]], None] = lambda features, raw: None,
        on_postprocess: Callable[[Mapping[str, Tensor]], None] = lambda raw: None,
    ) -> None:
        super().__init__()
        self.out_indices = out_indices
        self.batch_sizes: list[int] = []
        self.tapped: list[tuple[int, ...]] = []
        self._on_call = on_call
        self._on_postprocess = on_postprocess

    def forward(self, features: EncoderFeatures) -> dict[str, Tensor]:
        """``{"value": [B, 1, 1]}``."""
        self.batch_sizes.append(features.batch_size)
        self.tapped.append(tuple(features.lateral_features))
        tokens = sum(features.tokens(index) for index in self.out_indices)
        assert isinstance(tokens, Tensor)
        raw = {"value": tokens.abs().mean(dim=(1, 2))[:, None, None]}
        self._on_call(features, raw)
        return raw

    def postprocess(
        self, raw: Mapping[str, Tensor], geometry: ImageGeometry, options: PostprocessOptions
    ) -> DepthResult:
        """The same value everywhere."""
        self._on_postprocess(raw)
        return DepthResult(np.full(geometry.output_size, raw["value"].item(), dtype=np.float32))


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """The models are so small that waking a second thread costs more than they do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Gate:
    """Stands before `run_pass` and holds the accelerator's thread there until it is opened.

    Attributes:
        entered: set once a batch stands at the gate.
        opened: set to let everything through.
        batches: the inputs of every batch that came.
    """

    def __init__(self, run_pass: RunPass) -> None:
        self._run_pass = run_pass
        self.entered = threading.Event()
        self.opened = threading.Event()
        self.batches: list[list[PassInput]] = []

    def __call__(self, inputs: Sequence[PassInput]) -> list[PassOutput]:
        """As `Engine.run_pass`."""
        self.batches.append(list(inputs))
        self.entered.set()
        assert self.opened.wait(60), "the test never opened the gate"
        return self._run_pass(inputs)


@pytest.fixture
def make_gate() -> Iterator[Callable[[RunPass], Gate]]:
    """Builds gates around a `run_pass`; all are opened when the test ends."""
    gates: list[Gate] = []

    def make(run_pass: RunPass) -> Gate:
        gates.append(Gate(run_pass))
        return gates[-1]

    yield make
    for gate in gates:
        gate.opened.set()


@pytest.fixture
def make_service(
    make_bundle: Callable[..., Bundle], settings: Settings, make_gate: Callable[[RunPass], Gate]
) -> Iterator[Callable[..., SegmentationService]]:
    """Builds a service on a bundle (the tiny one unless given); keyword arguments override its settings.

    With `gated`, `service.engine.run_pass` is a `Gate`. Every service is drained when the test ends.
    """
    services: list[tuple[SegmentationService, Gate | None]] = []

    def make(bundle: Bundle | None = None, *, gated: bool = False, **overrides: Any) -> SegmentationService:
        engine = Engine(bundle or make_bundle())
        gate = make_gate(engine.run_pass) if gated else None
        if gate is not None:
            engine.run_pass = gate
        service = SegmentationService(engine, Settings(**(settings.model_dump() | overrides)))
        services.append((service, gate))
        return service

    yield make
    for service, gate in services:
        if gate is not None:
            gate.opened.set()
        service.drain()


@pytest.fixture(scope="session")
def probe_head() -> type[ProbeHead]:
    """The class `ProbeHead`."""
    return ProbeHead


@pytest.fixture
def make_bundle(make_encoder: Callable[..., VisionTransformer]) -> Callable[..., Bundle]:
    """Builds a bundle ("panoptic" and "depth" at 56 x 56, and whatever heads are given by task) in memory.

    A head is a decoder, or a pair (decoder, (height, width)) for a geometry of its own. Given heads come after the two,
    unless `first` is set.
    """

    def make(*, first: bool = False, **given: Decoder | tuple[Decoder, tuple[int, int]]) -> Bundle:
        encoder = make_encoder(
            embed_dim=32, depth=3, num_heads=2, patch_size=14, mlp_dim=64, position_grid=(4, 4), revision="abc123"
        )
        labels = load_label_set("coco_supercategories")
        panoptic, depth = make_heads(encoder, labels)
        heads = {
            "panoptic": Head("panoptic", panoptic, COMMON, "Things and stuff."),
            "depth": Head("depth", depth, COMMON, "Metres."),
        }
        more = {}
        for task, value in given.items():
            decoder, size = value if isinstance(value, tuple) else (value, COMMON.typical_size)
            more[task] = Head(task, decoder, FitGeometry(*size))
        return Bundle(
            "tiny", encoder, more | heads if first else heads | more, ("panoptic", "depth"), {"panoptic": labels}
        )

    return make


@pytest.fixture(scope="session")
def bundle_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of a tiny bundle on disk; see `tiny_bundle`."""
    return write_tiny_bundle(tmp_path_factory.mktemp("tiny_bundle"))


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Settings of a small server, whatever the environment says."""
    return Settings(
        device="cpu", max_pictures_inside=4, decode_threads=2, max_upload_bytes=200_000, max_pixels=1_000_000
    )


@pytest.fixture(scope="session")
def encode_picture(draw_picture: Callable[..., Image.Image]) -> Callable[..., bytes]:
    """Draws a picture of (height, width) and returns it as a file; keyword arguments go to Pillow's `save`."""

    def encode(height: int = 60, width: int = 90, seed: int = 0, *, file_format: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        draw_picture(height, width, seed).save(buffer, file_format, **options)
        return buffer.getvalue()

    return encode
