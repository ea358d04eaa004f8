"""Linear layers that give every patch a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decoders.patch_classification import PatchClassificationDecoder
from decoders.training.data.samples import IGNORE, PanopticSample, Sample, SemanticSample, as_semantic
from decoders.training.losses.class_cross_entropy import class_cross_entropy
from decoders.training.placing import place_labels
from decoders.training.recipes.recipe import Recipe
from decoders.training.schedule import Schedule
from decoders.training.views import View
from encoders.features import EncoderFeatures
from encoders.geometry import ImageGeometry

_UPSAMPLE = 4
"""Logits are compared at this many cells for a patch's side; at every pixel, 150 classes would take gigabytes."""


class ClassMapObjective:
    """Cross-entropy of upsampled logits; what has no class, and padding, is ignored."""

    def __init__(self, decoder: nn.Module) -> None:
        assert isinstance(decoder, PatchClassificationDecoder)
        self._decoder = decoder

    def target(self, sample: Sample, views: Sequence[View], places: Sequence[ImageGeometry]) -> Tensor:
        """As in `Objective`: [H, W] int64."""
        if isinstance(sample, PanopticSample):
            sample = as_semantic(sample)
        assert isinstance(sample, SemanticSample)
        (view,), (place,) = views, places
        return torch.from_numpy(place_labels(sample.read_label_map(), view, place, IGNORE)).long()

    def losses(
        self, frames: Sequence[EncoderFeatures], targets: Sequence[Tensor], progress: float
    ) -> dict[str, Tensor]:
        """As in `Objective`."""
        (features,) = frames
        size = [_UPSAMPLE * side for side in features.grid_size]
        logits = F.interpolate(self._decoder(features)["class_logits"], size, mode="bilinear", align_corners=False)
        labels = torch.stack(list(targets)).to(logits.device)
        nearest = F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0].long()
        return {"class": class_cross_entropy(logits, nearest)}


LINEAR_SEMANTIC = Recipe(
    "semantic",
    Schedule(views_per_picture=4, least_side=0.5, steps=500, batch_size=8, learning_rate=1e-3),
    lambda spec: {"out_indices": [spec.depth - 1]},
    ClassMapObjective,
)
LINEAR_PANOPTIC = replace(LINEAR_SEMANTIC, data="panoptic")
