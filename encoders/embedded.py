"""The encoder inside a PMT checkpoint: video models are published with theirs, image models as trained have it too."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_PREFIXES = ("backbone.encoder.backbone.", "network.encoder.backbone.")
"""Of PMT's video and image models."""
_DINOV3_NAMES = ((re.compile(r"^patch_embed\."), "embeddings."), (re.compile(r"^blocks\."), "layer."))


def embedded_encoder(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Take the encoder out of a PMT checkpoint.

    The ``pixel_mean`` and ``pixel_std`` beside it are ImageNet's and stay behind.

    Args:
        weights: the whole checkpoint, names as saved.

    Returns:
        The encoder's tensors under names that `build_encoder` takes, timm's of DINOv2 or Hugging Face's of DINOv3
        (which PMT calls by timm's words); None if there is no encoder inside.
    """
    for prefix in _PREFIXES:
        inner = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        if "pos_embed" in inner:
            return inner
        if inner:
            return {_dinov3_name(name): tensor for name, tensor in inner.items()}
    return None


def _dinov3_name(name: str) -> str:
    for pattern, replacement in _DINOV3_NAMES:
        name = pattern.sub(replacement, name)
    return name
