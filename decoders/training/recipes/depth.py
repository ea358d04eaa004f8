"""Depth heads, whatever they are made of: convolutions, a DPT, one linear layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decoders.training.data.samples import DepthSample, Sample
from decoders.training.losses.depth import depth_loss
from decoders.training.recipes.recipe import Recipe, mixed_precision, spread_blocks
from decoders.training.schedule import Schedule
from decoders.training.views import View
from encoders.features import EncoderFeatures
from encoders.geometry import ImageGeometry


class DepthObjective:
    """`depth_loss` at the head's own resolution."""

    def __init__(self, decoder: nn.Module) -> None:
        self._decoder = decoder

    def target(self, sample: Sample, views: Sequence[View], places: Sequence[ImageGeometry]) -> Tensor:
        """As in `Objective`: [2, H, W] float32, the known metres and the known part of each input pixel.

        A crop that is blown up to the network's size looks like a longer lens. The head can't tell it from a nearer
        scene, so the target is divided by the magnification: depth as the sample's own camera would have seen it.
        """
        assert isinstance(sample, DepthSample)
        (view,), (place,) = views, places
        whole_map = sample.read_depth_m()
        depth = torch.from_numpy(np.ascontiguousarray(view.cut(whole_map)))
        known = depth.isfinite()
        pair = torch.stack((torch.where(known, depth, 0.0), known.float()))[None]
        height, width = whole_map.shape
        whole = min(place.input_size[0] / height, place.input_size[1] / width)
        part = min(place.input_size[0] / place.image_size[0], place.input_size[1] / place.image_size[1])
        pair[:, 0] *= whole / part
        placed = torch.zeros(2, *place.input_size)
        placed[:, : place.scaled_size[0], : place.scaled_size[1]] = F.adaptive_avg_pool2d(pair, place.scaled_size)[0]
        return placed

    def losses(
        self, frames: Sequence[EncoderFeatures], targets: Sequence[Tensor], progress: float
    ) -> dict[str, Tensor]:
        """As in `Objective`."""
        (features,) = frames
        with mixed_precision(features):
            predicted = self._decoder(features)["depth_m"].float()
        pairs = torch.stack(list(targets)).to(predicted.device)
        return {"depth": depth_loss(predicted, mean_depth_m(pairs, (predicted.shape[-2], predicted.shape[-1])))}


def mean_depth_m(pairs: Tensor, size: tuple[int, int]) -> Tensor:
    """Targets at a head's resolution: the mean of what is known in each cell, NaN where that is less than half.

    Args:
        pairs: [B, 2, H, W] of `DepthObjective.target`.
        size: (height, width) wanted.
    """
    total, weight = F.adaptive_avg_pool2d(pairs, size).unbind(dim=1)
    return torch.where(weight > 0.5, total / weight.clamp_min(1e-6), torch.nan)


_SCHEDULE = Schedule(views_per_picture=12, least_side=0.35, steps=2000, batch_size=8, learning_rate=1e-3)

DEPTH = Recipe("depth", _SCHEDULE, lambda spec: {"out_indices": spread_blocks(spec)}, DepthObjective)
DPT_DEPTH = Recipe("depth", _SCHEDULE, lambda spec: {"hidden_indices": spread_blocks(spec)}, DepthObjective)
LINEAR_DEPTH = Recipe(
    "depth", _SCHEDULE, lambda spec: {"hidden_indices": [spec.depth - 1], "max_depth_m": 10.0}, DepthObjective
)
