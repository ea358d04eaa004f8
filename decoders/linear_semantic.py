"""Semantic segmentation with batch norm and one linear layer, in the form that DINOv2 publishes.

The reference scales a picture's short side to 512 (``linear``) or 640 pixels (``ms``, which averages up to five scales
and their mirror images) and slides a window of that size over it, by two thirds or half of it. Every window is padded
around its centre to a multiple of the patch size, and its padded map is stretched to the window. Here the picture goes
in whole or in windows, as the input geometry says, at one scale; where windows overlap, logits are averaged too.
"""

from __future__ import annotations

from typing import ClassVar

from decoders.base import PostprocessOptions, RawOutput
from decoders.class_map import best_class, class_confidence, semantic_result
from decoders.patch_classification import PatchClassificationDecoder
from decoders.results import SemanticResult
from encoders.geometry import ImageGeometry


class LinearSemanticDecoder(PatchClassificationDecoder):
    """The classes of patches as a map of the picture. Works on windows, and on a whole picture at once."""

    kind: ClassVar[str] = "semantic"

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> SemanticResult:
        """One picture's classes, from upsampled logits; a class's score is its mean probability where it wins.

        There are no options that it heeds.
        """
        logits = geometry.to_scaled(raw["class_logits"])
        return semantic_result(best_class(logits, geometry), class_confidence(logits.softmax(dim=0)), self.label_set)
