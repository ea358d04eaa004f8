"""The encoder's own features as an answer: a picture as one vector, or as a grid of vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from decoders.base import DecoderModule, PostprocessOptions, RawOutput
from decoders.pooling import patches_on_picture, pool, pooled_dim, tokens_to_pool
from decoders.results import DenseEmbeddingResult, EmbeddingResult
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry


class EmbeddingDecoder(DecoderModule):
    """A picture as one vector, for search and comparison. There are no weights.

    Args:
        spec: of the encoder.
        pooling: of the tokens, one of `POOLINGS`; a padded patch counts in none.
        out_index: block whose tokens are read, after the final LayerNorm; None: the last.
        normalize: scale the vector to length 1, so that an inner product is a cosine.

    Raises:
        ValueError: there is no such pooling or block.
    """

    kind: ClassVar[str] = "embedding"

    def __init__(
        self, spec: EncoderSpec, *, pooling: str = "cls", out_index: int | None = None, normalize: bool = True
    ) -> None:
        super().__init__()
        self.out_indices = spec.check_out_indices([spec.depth - 1 if out_index is None else out_index])
        self.pooling = pooling
        self.dim = pooled_dim(spec, pooling)
        self.normalize = normalize

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """As `tokens_to_pool`."""
        return tokens_to_pool(features, self.pooling, self.out_indices)

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> EmbeddingResult:
        """One picture's vector, CLS before mean; there are no options that it heeds."""
        vector = pool(raw, geometry)
        return EmbeddingResult((F.normalize(vector, dim=0) if self.normalize else vector).cpu().numpy())


class DenseEmbeddingDecoder(DecoderModule):
    """A picture as the vectors of its patches. There are no weights.

    Args:
        spec: of the encoder.
        out_index: block whose tokens are read, after the final LayerNorm; None: the last.
        normalize: scale every vector to length 1.

    Raises:
        ValueError: there is no such block.
    """

    kind: ClassVar[str] = "dense_embedding"

    def __init__(self, spec: EncoderSpec, *, out_index: int | None = None, normalize: bool = False) -> None:
        super().__init__()
        self.out_indices = spec.check_out_indices([spec.depth - 1 if out_index is None else out_index])
        self.normalize = normalize

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """``{"patch_map": [B, grid_h, grid_w, C]}``, a view."""
        return tokens_to_pool(features, "mean", self.out_indices)

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> DenseEmbeddingResult:
        """One picture's vectors, a patch apart; those of the last row and column may be partly padding.

        There are no options that it heeds.
        """
        vectors = patches_on_picture(raw["patch_map"], geometry).float()
        return DenseEmbeddingResult((F.normalize(vectors, dim=-1) if self.normalize else vectors).cpu().numpy())
