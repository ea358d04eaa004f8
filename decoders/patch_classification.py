"""What the linear heads that give every patch a class have in common: DINOv2's batch norm and one layer.

The network is "linear" and "+ms" of DINOv2 (arXiv 2304.07193, section 7.4), `BNHead` of
dinov2/eval/segmentation/models/decode_heads/linear_head.py in facebookresearch/dinov2. Meta's
``dinov2_vit{s,b,l,g}14_{ade20k,voc2012}_{linear,ms}_head.pth`` load unchanged (the tensors in their ``state_dict``).
Both read tokens after the final LayerNorm: ``linear`` of the last block, ``ms`` of the last four.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from decoders.base import DecoderModule
from decoders.labels import LabelSet
from decoders.published import rename, shapes_under
from encoders.features import EncoderFeatures, EncoderSpec

_NAMES = {f"decode_head.conv_seg.{kind}": f"class_head.{kind}" for kind in ("weight", "bias")} | {
    f"decode_head.bn.{kind}": f"norm.{kind}"
    for kind in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


class PatchClassificationDecoder(DecoderModule):
    """A class for every patch, from patch tokens alone; what becomes of the classes is the subclass's to say.

    Args:
        spec: of the encoder.
        label_set: the classes; Pascal VOC's begin with the background.
        out_indices: blocks to read: the last one, or the last four.
    """

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

    @classmethod
    def translate(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As in `Decoder`: the names that Meta publishes."""
        if "class_head.weight" in weights:
            return weights
        return rename(weights, _NAMES, "linear segmentation (DINOv2)")

    def published_shapes(self) -> dict[str, torch.Size]:
        """As in `Decoder`."""
        return shapes_under(_NAMES, self)
