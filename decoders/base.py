"""The contract between an encoder pass and a head. A head is one class that satisfies `Decoder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from decoders.results import Result
from encoders.features import EncoderFeatures
from encoders.preprocess import ImageGeometry

RawOutput = Mapping[str, Tensor]
"""A head's network output: named tensors whose first dimension is the batch."""


@dataclass(frozen=True)
class PostprocessOptions:
    """What a caller may set for one request; None means the head's own default. A head ignores what it has no use for.

    Attributes:
        score_threshold: least class probability, in [0, 1].
        mask_threshold: probability from which a pixel belongs to a mask, in [0, 1].
        overlap_threshold: least part of a mask that must be left to it by better ones, in [0, 1].
    """

    score_threshold: float | None = None
    mask_threshold: float | None = None
    overlap_threshold: float | None = None


def first_set(asked: float | None, default: float) -> float:
    """What the caller asked for, or else the head's own default."""
    return default if asked is None else asked


@runtime_checkable
class Decoder(Protocol):
    """A head. Built by its class from an `EncoderSpec` and keyword arguments; usually also an `nn.Module`.

    Attributes:
        kind: of its results, one of those in `decoders.results`, e.g. ``"panoptic"``.
        out_indices: encoder blocks that it reads (0-based, the value after the block).
    """

    kind: ClassVar[str]
    out_indices: tuple[int, ...]

    def __call__(self, features: EncoderFeatures) -> RawOutput:
        """Run the head's network on B pictures.

        Args:
            features: of the blocks in `out_indices`; what a head does to them no other head sees.

        Returns:
            Tensors whose first dimension is B, on the device of the features.
        """
        ...

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> Result:
        """Turn one picture's output into its result, in the picture's own pixels.

        Args:
            raw: this picture's row of what `__call__` returned, without the batch dimension.
            geometry: where the picture lies in the network's input.
            options: the caller's.
        """
        ...
