"""Foreground and background from the main direction in which a picture's patches differ (no weights, no training).

Patches of a self-supervised ViT split into object and surroundings along their first principal component, as the
DINOv2 paper shows (arXiv 2304.07193, figure 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from polyhead import (
    DecoderModule,
    EncoderFeatures,
    EncoderSpec,
    ImageGeometry,
    LabelSet,
    PostprocessOptions,
    SemanticResult,
    best_class,
    class_confidence,
    semantic_result,
)


class ForegroundDecoder(DecoderModule):
    """Two classes: background, foreground.

    Args:
        spec: of the encoder.
        label_set: the two classes, in this order.
        out_index: block whose patch tokens are compared; None: the last.
    """

    kind: ClassVar[str] = "semantic"

    def __init__(self, spec: EncoderSpec, *, label_set: LabelSet, out_index: int | None = None) -> None:
        super().__init__()
        if len(label_set) != 2:
            raise ValueError(f"label set '{label_set.name}' has {len(label_set)} classes; foreground needs two")
        self.label_set = label_set
        self.patch_size = spec.patch_size
        self.out_indices = spec.check_out_indices([spec.depth - 1 if out_index is None else out_index])

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """``{"patch_map": [B, C, grid_h, grid_w]}``."""
        return {"patch_map": features.patch_map(self.out_indices[0])}

    def postprocess(
        self, raw: Mapping[str, Tensor], geometry: ImageGeometry, options: PostprocessOptions
    ) -> SemanticResult:
        """One picture's two classes. The side that most of the border lies on is the background."""
        patch_map = raw["patch_map"].float()
        height, width = (max(2, side // self.patch_size) for side in geometry.scaled_size)
        on_picture = patch_map[:, :height, :width].flatten(1).T
        _, _, directions = torch.pca_lowrank(on_picture, q=2, niter=4)
        component = torch.einsum("chw,c->hw", patch_map, directions[:, 0])
        component = component - component[:height, :width].mean()
        border = component[:height, :width].clone()
        border[1:-1, 1:-1] = 0
        if border.sum() > 0:
            component = -component
        foreground = torch.sigmoid(component / component[:height, :width].std().clamp(min=1e-6))[None]
        scores = geometry.to_scaled(torch.cat((1 - foreground, foreground)))
        return semantic_result(best_class(scores, geometry), class_confidence(scores), self.label_set)
