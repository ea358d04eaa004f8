"""Semantic segmentation with batch norm and one linear layer, in the form that DINOv2 publishes.

The head is "linear" and "+ms" of DINOv2 (arXiv 2304.07193, section 7.4), `BNHead` of
dinov2/eval/segmentation/models/decode_heads/linear_head.py in facebookresearch/dinov2. Meta's
``dinov2_vit{s,b,l,g}14_{ade20k,voc2012}_{linear,ms}_head.pth`` load unchanged (the tensors in their ``state_dict``).
Both read tokens after the final LayerNorm: ``linear`` of the last block, ``ms`` of the last four.

The reference scales a picture's short side to 512 (``linear``) or 640 pixels (``ms``, which averages up to five scales
and their mirror images) and slides a window of that size over it, by two thirds or half of it. Every window is padded
around its centre to a multiple of the patch size, and its padded map is stretched to the window. Here the picture goes
in whole or in windows, as the input geometry says, at one scale; where windows overlap, logits are averaged too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from decoders.base import DecoderModule, PostprocessOptions, RawOutput
from decoders.class_map import best_class, class_confidence, semantic_result
from decoders.labels import LabelSet
from decoders.published import rename, shapes_under
from decoders.results import SemanticResult
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry

_NAMES = {f"decode_head.conv_seg.{kind}": f"class_head.{kind}" for kind in ("weight", "bias")} | {
    f"decode_head.bn.{kind}": f"norm.{kind}"
    for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


class LinearSemanticDecoder(DecoderModule):
    """A class for every patch, from patch tokens alone.

    Args:
        spec: of the encoder.
        label_set: the classes; Pascal VOC's begin with the background.
        out_indices: blocks to read: the last one, or the last four.
    """

    kind: ClassVar[str] = "semantic"
    takes_windows: ClassVar[bool] = True

    def __init__(self, spec: EncoderSpec, *, label_set: LabelSet, out_indices: Iterable[int]) -> None:
        super().__init__()
        self.label_set = label_set
        self.out_indices = spec.check_out_indices(out_indices)
        dim = spec.embed_dim * len(self.out_indices)
        self.norm = nn.BatchNorm2d(dim)
        self.class_head = nn.Conv2d(dim, len(label_set), kernel_size=1)

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """``{"class_logits": [B, K, grid_h, grid_w]}``."""
        maps = torch.cat([features.patch_map(index) for index in self.out_indices], dim=1)
        return {"class_logits": self.class_head(self.norm(maps))}

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> SemanticResult:
        """One picture's classes, from upsampled logits; a class's score is its mean probability where it wins.

        There are no options that it heeds.
        """
        logits = geometry.to_scaled(raw["class_logits"])
        return semantic_result(best_class(logits, geometry), class_confidence(logits.softmax(dim=0)), self.label_set)

    @classmethod
    def translate(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As in `Decoder`: the names that Meta publishes."""
        if "class_head.weight" in weights:
            return weights
        return rename(weights, _NAMES, "linear segmentation (DINOv2)")

    def published_shapes(self) -> dict[str, torch.Size]:
        """As in `Decoder`."""
        return shapes_under(_NAMES, self)
