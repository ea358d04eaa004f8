"""What the rest of the code base may ask of an encoder, whoever wrote its forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from encoders.features import EncoderFeatures, EncoderSpec


class Encoder(Protocol):
    """A frozen encoder in eval mode; an `nn.Module` whose parameters need no gradient.

    Attributes:
        spec: the shape of its output.
    """

    spec: EncoderSpec

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Subtracted from RGB in [0, 1]; padding of this colour standardises to 0."""
        ...

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """What RGB in [0, 1] is divided by after that."""
        ...

    def __call__(
        self, images: Tensor, out_indices: Iterable[int], hidden_indices: Iterable[int] = ()
    ) -> EncoderFeatures:
        """Encode pictures once, keeping the tokens after each asked block; blocks past the last one asked don't run.

        Args:
            images: [B, 3, H, W] RGB, uint8 in [0, 255] or float in [0, 1], not standardised; H and W are multiples
                of `spec.patch_size`.
            out_indices: 0-based blocks whose tokens are kept, after the final LayerNorm.
            hidden_indices: blocks whose tokens are kept without it.

        Raises:
            ValueError: wrong shape, an index outside the encoder, or none at all.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """As in `nn.Module`."""
        ...

    def to(self, device: torch.device | str | None = ..., dtype: torch.dtype | None = ...) -> Self:
        """As in `nn.Module`."""
        ...
