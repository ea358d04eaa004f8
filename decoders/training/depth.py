"""Training a depth head: scale-invariant log loss (Eigen et al., arXiv 1406.2283) and a gradient term."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from decoders.depth import DepthDecoder
from decoders.training.data.samples import DepthSample
from decoders.training.feature_cache import FeatureCache
from decoders.training.schedule import Schedule, train_steps
from decoders.training.views import View
from encoders.geometry import ImageGeometry


def depth_target(sample: DepthSample, view: View, geometry: ImageGeometry, size: tuple[int, int]) -> Tensor:
    """A view's depth at the head's resolution: [h, w] float32 metres, NaN where unknown or padding.

    A crop that is blown up to the network's size looks like a longer lens. The head can't tell it from a nearer scene,
    so the target is divided by the magnification: depth as the sample's own camera would have seen it.
    """
    whole_map = sample.read_depth_m()
    depth = torch.from_numpy(np.ascontiguousarray(view.cut(whole_map)))
    known = depth.isfinite()
    pair = torch.stack((torch.where(known, depth, 0.0), known.float()))[None]
    scaled = F.adaptive_avg_pool2d(pair, geometry.scaled_size)
    padded = torch.zeros(1, 2, *geometry.input_size)
    padded[..., : geometry.scaled_size[0], : geometry.scaled_size[1]] = scaled
    total, weight = F.adaptive_avg_pool2d(padded, size)[0]
    height, width = whole_map.shape
    whole = min(geometry.input_size[0] / height, geometry.input_size[1] / width)
    part = min(geometry.input_size[0] / geometry.image_size[0], geometry.input_size[1] / geometry.image_size[1])
    return torch.where(weight > 0.5, total / weight.clamp_min(1e-6) * whole / part, torch.nan)


def depth_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant log error plus the error of log-depth differences between neighbours.

    Args:
        predicted: [B, 1, h, w] metres. target: [B, h, w] metres, NaN = unknown.
    """
    known = target.isfinite()
    difference = torch.where(known, predicted[:, 0].log() - torch.where(known, target, 1.0).log(), 0.0)
    count = known.sum().clamp_min(1)
    mean = difference.sum() / count
    scale_invariant = ((difference**2).sum() / count - 0.85 * mean**2).clamp_min(1e-8).sqrt()
    gradient = predicted.new_zeros(())
    for dim in (1, 2):
        both = known.narrow(dim, 1, known.shape[dim] - 1) & known.narrow(dim, 0, known.shape[dim] - 1)
        gradient = gradient + (difference.diff(dim=dim).abs() * both).sum() / both.sum().clamp_min(1)
    return scale_invariant + 0.5 * gradient


def train_depth(
    decoder: DepthDecoder,
    cache: FeatureCache,
    features: NDArray[np.float16],
    targets: Tensor,
    schedule: Schedule,
    *,
    report: Callable[[int, float], None],
) -> None:
    """Train a head in place on cached features; the arguments are those of `train_panoptic`, targets [views, h, w]."""

    def loss_of(rows: list[int], progress: float) -> Tensor:
        batch = cache.features(features, rows)
        with torch.autocast(batch.device_type, torch.bfloat16):
            predicted = decoder(batch)["depth_m"]
        return depth_loss(predicted.float(), targets[rows])

    train_steps(decoder, len(targets), loss_of, schedule, report=report)
