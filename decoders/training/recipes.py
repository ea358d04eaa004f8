"""From labelled pictures to a head's weights file: views, cached features, optimisation, one safetensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from decoders.depth import DepthDecoder
from decoders.panoptic import PanopticDecoder
from decoders.training.data.samples import DepthSample, PanopticSample
from decoders.training.depth import depth_target, train_depth
from decoders.training.feature_cache import FeatureCache
from decoders.training.panoptic import mask_target, train_panoptic
from decoders.training.schedule import Schedule
from decoders.training.views import View, random_view
from encoders.geometry import FitGeometry, ImageGeometry
from encoders.preprocess import to_pixels

Sample = TypeVar("Sample", PanopticSample, DepthSample)
Progress = Callable[[str, int, int, float | None], None]
"""Told (stage, done, total, loss or None)."""


PANOPTIC = Schedule(views_per_picture=10, least_side=0.4, steps=700, batch_size=8, learning_rate=4e-4)
DEPTH = Schedule(views_per_picture=4, least_side=0.35, steps=500, batch_size=8, learning_rate=1e-3)


def fit_panoptic(
    decoder: PanopticDecoder,
    samples: Sequence[PanopticSample],
    cache: FeatureCache,
    schedule: Schedule,
    progress: Progress,
) -> None:
    """Train a panoptic head in place on `samples`, encoding each view at most once."""
    views = _views(samples, schedule)
    size = _logits_size(decoder, cache)
    targets = [mask_target(sample, view, _place(cache.geometry, view), size) for sample, view in views]
    features = _encode(cache, samples, views, schedule, progress)
    train_panoptic(
        decoder,
        cache,
        features,
        targets,
        schedule,
        report=_steps(progress, schedule),
    )


def fit_depth(
    decoder: DepthDecoder,
    samples: Sequence[DepthSample],
    cache: FeatureCache,
    schedule: Schedule,
    progress: Progress,
) -> None:
    """Train a depth head in place on `samples`, encoding each view at most once."""
    views = _views(samples, schedule)
    size = (2 * cache.grid_size[0], 2 * cache.grid_size[1])
    targets = torch.stack([depth_target(sample, view, _place(cache.geometry, view), size) for sample, view in views])
    features = _encode(cache, samples, views, schedule, progress)
    train_depth(
        decoder,
        cache,
        features,
        targets,
        schedule,
        report=_steps(progress, schedule),
    )


def save_head(head: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a head's weights as float16 safetensors (counters of batch norm as they are), with `metadata`."""
    weights: dict[str, Tensor] = {
        name: tensor.detach().half().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in head.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata=metadata)


def _steps(progress: Progress, schedule: Schedule) -> Callable[[int, float], None]:
    return lambda step, loss: progress("training", step, schedule.steps, loss)


def _views(samples: Sequence[Sample], schedule: Schedule) -> list[tuple[Sample, View]]:
    rng = np.random.default_rng(schedule.seed)
    return [
        (sample, random_view(sample.read_image(), rng, least_side=schedule.least_side))
        for _ in range(schedule.views_per_picture)
        for sample in samples
    ]


def _place(geometry: FitGeometry, view: View) -> ImageGeometry:
    left, top, right, bottom = view.box
    return geometry.place((bottom - top, right - left))


def _logits_size(decoder: PanopticDecoder, cache: FeatureCache) -> tuple[int, int]:
    factor = 2 ** len(decoder.mask_decoder.upscale)
    return (factor * cache.grid_size[0], factor * cache.grid_size[1])


def _encode(
    cache: FeatureCache,
    samples: Sequence[Sample],
    views: Sequence[tuple[Sample, View]],
    schedule: Schedule,
    progress: Progress,
) -> NDArray[np.float16]:
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.digest())
    key = f"{digest.hexdigest()}|{schedule.views_per_picture}|{schedule.least_side}|{schedule.seed}"

    def load(index: int) -> Tensor:
        sample, view = views[index]
        return to_pixels(view.apply(sample.read_image()), _place(cache.geometry, view))[0]

    return cache.encode(key, len(views), load, progress=lambda done: progress("encoding", done, len(views), None))
