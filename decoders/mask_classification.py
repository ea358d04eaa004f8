"""What the heads on the Plain Mask Decoder have in common: queries, each with a mask and a class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from decoders.base import DecoderModule
from decoders.labels import LabelSet
from decoders.plain_mask_decoder import PlainMaskDecoder
from decoders.pmt_checkpoints import published_shapes, translate
from encoders.embedded import embedded_encoder
from encoders.features import EncoderFeatures, EncoderSpec


class MaskClassificationDecoder(DecoderModule):
    """A Plain Mask Decoder and its classes; what becomes of the queries is the subclass's to say.

    Args:
        spec: of the encoder.
        label_set: the classes.
        out_indices, num_queries, num_blocks, mlp_dim: as in `PlainMaskDecoder`.
        options: further ones of `mask_decoder_class`.
    """

    mask_decoder_class: type[PlainMaskDecoder] = PlainMaskDecoder

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        label_set: LabelSet,
        out_indices: Iterable[int],
        num_queries: int,
        num_blocks: int,
        mlp_dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.label_set = label_set
        self.mask_decoder = self.mask_decoder_class(
            spec,
            out_indices=out_indices,
            num_queries=num_queries,
            num_classes=len(label_set),
            num_blocks=num_blocks,
            mlp_dim=mlp_dim,
            **options,
        )
        self.out_indices = self.mask_decoder.out_indices

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """``{"mask_logits": [B, Q, h, w], "class_logits": [B, Q, K + 1]}``."""
        mask_logits, class_logits = self.mask_decoder(features)
        return {"mask_logits": mask_logits, "class_logits": class_logits}

    @classmethod
    def translate(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As in `Decoder`: the names that PMT publishes."""
        if any(name.startswith("mask_decoder.") for name in weights):
            return weights
        return {f"mask_decoder.{name}": tensor for name, tensor in translate(weights).items()}

    @classmethod
    def carried_encoder(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """As in `Decoder`: PMT's video files have theirs inside."""
        return embedded_encoder(weights)

    def published_shapes(self) -> Mapping[str, torch.Size]:
        """As in `Decoder`: what PMT publishes."""
        return published_shapes(self.mask_decoder)

    def finalize(self) -> None:
        """As in `Decoder`: the laterals' batch norm is folded."""
        self.mask_decoder.fold_laterals()
