"""Metric depth with one linear layer over depth bins, in the form that DINOv2 publishes.

The head is "lin. 1" and "lin. 4" of DINOv2 (arXiv 2304.07193, section 7.4), `BNHead` of
dinov2/hub/depth/decode_heads.py in facebookresearch/dinov2; in spite of that name it has no batch norm. Meta's
``dinov2_vit{s,b,l,g}14_{nyu,kitti}_linear{,4}_head.pth`` load unchanged (the tensors in their ``state_dict``).

Bins end at 10 m for NYU and at 80 m for KITTI, as `_get_depth_range` of dinov2/hub/depthers.py has it. What then builds
the head there drops that range and always takes 80 m, so that NYU depths out of PyTorch Hub are 8 times as large.

The reference pads a picture around its centre to a multiple of the patch size, at its own resolution, and stretches the
padded map to the picture; here the input geometry scales and pads, and takes the padding off again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decoders.base import DecoderModule, PostprocessOptions, RawOutput
from decoders.pooling import check_has_cls
from decoders.published import rename, shapes_under
from decoders.results import DepthResult
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry

_UPSAMPLE = 4
_LEAST_WEIGHT = 0.1
"""Added to the weight of every bin, before they are normalised."""
_NAMES = {f"decode_head.conv_depth.{kind}": f"bin_head.{kind}" for kind in ("weight", "bias")}


class LinearDepthDecoder(DecoderModule):
    """Depth as the expectation over evenly spaced bins, from hidden states with CLS beside every patch.

    Args:
        spec: of the encoder. Its register tokens, if any, play no part.
        hidden_indices: blocks to read: the last one ("lin. 1"), or ("lin. 4") 2, 5, 8, 11 of DINOv2's S and B,
            4, 11, 17, 23 of L, 9, 19, 29, 39 of g.
        max_depth_m: centre of the last bin, metres: 10 for NYU, 80 for KITTI.
        min_depth_m: centre of the first bin, metres.
        num_bins: depth bins.

    Raises:
        ValueError: no rising range of depths, a block that the encoder hasn't, or no CLS token.
    """

    kind: ClassVar[str] = "depth"

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        hidden_indices: Iterable[int],
        max_depth_m: float,
        min_depth_m: float = 0.001,
        num_bins: int = 256,
    ) -> None:
        super().__init__()
        if not 0 < min_depth_m < max_depth_m:
            raise ValueError(f"depth range {min_depth_m} .. {max_depth_m} m is not a rising range of positive metres")
        check_has_cls(spec)
        self.hidden_indices = spec.check_out_indices(hidden_indices)
        self.min_depth_m = min_depth_m
        self.max_depth_m = max_depth_m
        self.bin_head = nn.Conv2d(2 * spec.embed_dim * len(self.hidden_indices), num_bins, kernel_size=1)

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """``{"depth_m": [B, 1, 4 * grid_h, 4 * grid_w]}``, metres, float32."""
        num_prefix = features.spec.num_prefix_tokens
        parts = []
        for index in self.hidden_indices:
            tokens = features.hidden_state(index)
            patches = tokens[:, num_prefix:]
            parts += [patches, tokens[:, :1].expand_as(patches)]
        maps = torch.cat(parts, dim=-1).transpose(1, 2).unflatten(2, features.grid_size)
        # The reference upsamples before the layer; the two commute, and this way the maps have bins, not channels.
        logits = F.interpolate(
            self.bin_head(maps).float(), scale_factor=_UPSAMPLE, mode="bilinear", align_corners=False
        )
        weights = logits.relu_() + _LEAST_WEIGHT
        # Made here and not kept as a buffer, so that they stay float32 when the weights are cast.
        bins = torch.linspace(self.min_depth_m, self.max_depth_m, weights.shape[1], device=weights.device)
        depth = torch.einsum("bkhw,k->bhw", weights, bins) / weights.sum(dim=1)
        return {"depth_m": depth[:, None]}

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> DepthResult:
        """One picture's depth in its own pixels; there are no options that it heeds."""
        return DepthResult(geometry.to_output(raw["depth_m"])[0].cpu().numpy())

    @classmethod
    def translate(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As in `Decoder`: the names that Meta publishes."""
        if "bin_head.weight" in weights:
            return weights
        return rename(weights, _NAMES, "linear depth (DINOv2)")

    def published_shapes(self) -> dict[str, torch.Size]:
        """As in `Decoder`."""
        return shapes_under(_NAMES, self)
