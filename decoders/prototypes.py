"""Classification by the nearest prototype: classes that are learned from a few pictures each, without training.

A class is the mean direction of its examples' vectors, and a picture belongs to the class whose direction is nearest
(after prototypical networks, arXiv 1703.05175, section 2.3, with cosine similarity in place of Euclidean distance).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from decoders.base import DecoderModule, PostprocessOptions, RawOutput
from decoders.labels import LabelSet
from decoders.linear_classification import check_top_k, top_classes
from decoders.pooling import pool, pooled_dim, tokens_to_pool
from decoders.results import ClassificationResult
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry


class PrototypeDecoder(DecoderModule):
    """Classes of a picture by cosine similarity to one vector for each class.

    Its only weights are the ``prototypes``, [K, D], of length 1. They come from a file, or from `learn` and `finalize`.

    Args:
        spec: of the encoder.
        label_set: the classes.
        pooling: of the tokens, one of `POOLINGS`; a padded patch counts in none.
        out_index: block whose tokens are read; None: the last.
        temperature: similarities, in [-1, 1], are divided by it before the softmax.
        top_k: most classes in an answer.

    Raises:
        ValueError: a setting is out of range.
    """

    kind: ClassVar[str] = "classification"
    prototypes: Tensor

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        label_set: LabelSet,
        pooling: str = "cls",
        out_index: int | None = None,
        temperature: float = 0.07,
        top_k: int = 5,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it must be positive")
        self.label_set = label_set
        self.pooling = pooling
        self.out_indices = spec.check_out_indices([spec.depth - 1 if out_index is None else out_index])
        self.temperature = temperature
        self.top_k = check_top_k(top_k)
        self.register_buffer("prototypes", torch.zeros(len(label_set), pooled_dim(spec, pooling)))
        self._sums: dict[int, Tensor] = {}

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """As `tokens_to_pool`."""
        return tokens_to_pool(features, self.pooling, self.out_indices)

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> ClassificationResult:
        """One picture's classes; the scores add up to 1 over all of them. There are no options that it heeds."""
        similarities = self.prototypes.float() @ _direction(raw, geometry)
        return top_classes(similarities / self.temperature, self.label_set, self.top_k)

    @torch.no_grad()
    def learn(self, features: EncoderFeatures, geometries: Sequence[ImageGeometry], label_id: int) -> None:
        """Take B pictures as examples of a class; `finalize` makes them count.

        Args:
            features: of the block that the head reads.
            geometries: where each picture lies in the input.
            label_id: their class.

        Raises:
            ValueError: there is no such class, or not one geometry for each picture.
        """
        if not 0 <= label_id < len(self.label_set):
            raise ValueError(f"class {label_id} is none of the {len(self.label_set)} of '{self.label_set.name}'")
        tokens = self(features)
        for row, geometry in zip(range(features.batch_size), geometries, strict=True):
            direction = _direction({name: tensor[row] for name, tensor in tokens.items()}, geometry)
            self._sums[label_id] = self._sums.get(label_id, 0) + direction

    def finalize(self) -> None:
        """As in `Decoder`: examples become prototypes, in place of what a file may have held for their classes.

        Raises:
            ValueError: a class has neither an example nor a prototype; names them.
        """
        for label_id, total in self._sums.items():
            self.prototypes[label_id] = F.normalize(total, dim=0)
        absent = [label.name for label in self.label_set.labels if not self.prototypes[label.label_id].any()]
        if absent:
            raise ValueError(f"no example of {', '.join(absent)}; every class needs at least one picture")


def _direction(tokens: RawOutput, geometry: ImageGeometry) -> Tensor:
    """One picture's pooled vector, of length 1: [D] float32."""
    return F.normalize(pool(tokens, geometry), dim=0)
