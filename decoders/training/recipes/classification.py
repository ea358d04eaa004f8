"""Classes of whole pictures: one linear layer, trained, and prototypes, which need no training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from decoders.linear_classification import LinearClassificationDecoder
from decoders.pooling import pool
from decoders.training.data.samples import ClassSample, Sample
from decoders.training.losses.class_cross_entropy import class_cross_entropy
from decoders.training.recipes.recipe import Recipe
from decoders.training.schedule import Schedule
from decoders.training.views import View
from encoders.features import EncoderFeatures
from encoders.geometry import ImageGeometry


class ClassObjective:
    """Cross-entropy of the linear layer, pooled as in serving."""

    def __init__(self, decoder: nn.Module) -> None:
        assert isinstance(decoder, LinearClassificationDecoder)
        self._decoder = decoder

    def target(
        self, sample: Sample, views: Sequence[View], places: Sequence[ImageGeometry]
    ) -> tuple[int, ImageGeometry]:
        """As in `Objective`: the label id, and the geometry, which pooling wants."""
        assert isinstance(sample, ClassSample)
        (place,) = places
        return sample.label_id, place

    def losses(
        self, frames: Sequence[EncoderFeatures], targets: Sequence[tuple[int, ImageGeometry]], progress: float
    ) -> dict[str, Tensor]:
        """As in `Objective`."""
        (features,) = frames
        tokens = self._decoder(features)
        pooled = torch.stack(
            [pool({name: rows[b] for name, rows in tokens.items()}, place) for b, (_, place) in enumerate(targets)]
        )
        labels = torch.tensor([label_id for label_id, _ in targets], device=pooled.device)
        return {"class": class_cross_entropy(self._decoder.linear(pooled), labels)}


LINEAR_CLASSIFICATION = Recipe(
    "classification",
    Schedule(views_per_picture=4, least_side=0.5, steps=500, batch_size=32, learning_rate=1e-3),
    lambda spec: {"out_indices": [spec.depth - 1]},
    ClassObjective,
)
PROTOTYPES = Recipe(
    "classification",
    Schedule(views_per_picture=1, least_side=1, steps=0, batch_size=8, learning_rate=0),
    lambda spec: {},
    None,
)
