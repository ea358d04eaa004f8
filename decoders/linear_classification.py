"""Classification of a whole picture with one linear layer, in the form that DINOv2 publishes.

The layer reads the CLS tokens of the last block or of the last four, in their order, and then the mean of the last
block's patch tokens, all after the final LayerNorm (arXiv 2304.07193, section 7.1; dinov2/hub/classifiers.py in
facebookresearch/dinov2). These load unchanged:

- Meta's ``dinov2_vit{s,b,l,g}14_{,reg4_}linear{,4}_head.pth``, and what a whole classifier of PyTorch Hub saves;
- Hugging Face's ``facebook/dinov2-{small,base,large,giant}-imagenet1k-1-layer`` and
  ``facebook/dinov2-with-registers-…-imagenet1k-1-layer``, which hold their encoder too.

The reference sees the middle square of a picture, without padding. Here the mean leaves out the patches that are all
padding; of a picture that fills the input it is the reference's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from decoders.base import DecoderModule, PostprocessOptions, RawOutput
from decoders.labels import LabelSet
from decoders.pooling import pool, pooled_dim, tokens_to_pool
from decoders.published import rename, shapes_under, split_off_encoder
from decoders.results import ClassificationResult, ClassScore
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry

_POOLING = "cls+mean"

Publisher = Literal["meta", "hugging_face"]


def check_top_k(top_k: int) -> int:
    """`top_k` itself.

    Raises:
        ValueError: it is less than 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; an answer has at least one class")
    return top_k


def top_classes(logits: Tensor, label_set: LabelSet, top_k: int) -> ClassificationResult:
    """The most probable classes.

    Args:
        logits: [K], before the softmax.
        label_set: the K classes.
        top_k: most classes in the answer.
    """
    scores, label_ids = logits.float().softmax(dim=0).sort(descending=True, stable=True)
    ranking = zip(label_ids[:top_k].tolist(), scores[:top_k].tolist(), strict=True)
    return ClassificationResult(tuple(ClassScore(i, label_set[i].name, score) for i, score in ranking))


class LinearClassificationDecoder(DecoderModule):
    """Classes of a picture from its CLS tokens and the mean of its patches.

    Args:
        spec: of the encoder.
        label_set: the classes.
        out_indices: blocks whose CLS tokens are read: the last one, or the last four. The patches are of the last.
        top_k: most classes in an answer.
    """

    kind: ClassVar[str] = "classification"

    def __init__(self, spec: EncoderSpec, *, label_set: LabelSet, out_indices: Iterable[int], top_k: int = 5) -> None:
        super().__init__()
        self.label_set = label_set
        self.out_indices = spec.check_out_indices(out_indices)
        self.top_k = check_top_k(top_k)
        self.linear = nn.Linear(pooled_dim(spec, _POOLING, len(self.out_indices)), len(label_set))

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """As `tokens_to_pool`: the layer waits for the mean, and that for the geometry."""
        return tokens_to_pool(features, _POOLING, self.out_indices)

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> ClassificationResult:
        """One picture's classes with their softmax probabilities; there are no options that it heeds."""
        logits = self.linear(pool(raw, geometry).to(self.linear.weight.dtype))
        return top_classes(logits, self.label_set, self.top_k)

    @classmethod
    def translate(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As in `Decoder`: the names that Meta and Hugging Face publish; an encoder inside is left out."""
        if "linear.weight" in weights:
            return weights
        _, head = split_off_encoder(weights)
        prefix = next((prefix for prefix in ("linear_head.", "classifier.") if f"{prefix}weight" in head), "")
        return rename(head, _names(prefix), "linear classifier (DINOv2)")

    @classmethod
    def carried_encoder(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """As in `Decoder`: Hugging Face's files have theirs inside."""
        return split_off_encoder(weights)[0] or None

    def published_shapes(self, publisher: Publisher = "meta") -> dict[str, torch.Size]:
        """As in `Decoder`; the encoder that Hugging Face's files hold is left out."""
        return shapes_under(_names("" if publisher == "meta" else "classifier."), self)


def _names(prefix: str) -> dict[str, str]:
    return {f"{prefix}{kind}": f"linear.{kind}" for kind in ("weight", "bias")}
