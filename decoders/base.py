"""The contract between an encoder pass and a head. A head is one class that satisfies `Decoder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from decoders.results import Result
from encoders.features import EncoderFeatures
from encoders.geometry import ImageGeometry

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
    """A head. Built by its class from an `EncoderSpec` and keyword arguments; most extend `DecoderModule`.

    Attributes:
        kind: of its results, one of those in `decoders.results`, e.g. ``"panoptic"``.
        takes_windows: whether it can answer a picture that was cut into windows.
        out_indices: encoder blocks that it reads (0-based, the value after the block and the final LayerNorm).
        hidden_indices: encoder blocks that it reads without the LayerNorm.
    """

    kind: ClassVar[str]
    takes_windows: ClassVar[bool]
    out_indices: tuple[int, ...]
    hidden_indices: tuple[int, ...]

    def __call__(self, features: EncoderFeatures) -> RawOutput:
        """Run the head's network on B pictures.

        Args:
            features: of the blocks in `out_indices` and `hidden_indices`; what a head does to them no other head sees.

        Returns:
            Tensors whose first dimension is B, on the device of the features.
        """
        ...

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> Result:
        """Turn one picture's output into its result, in the picture's own pixels.

        Args:
            raw: this picture's row of what `__call__` returned, without the batch dimension; if the geometry cuts
                windows, their rows, [V, …].
            geometry: where the picture lies in the network's input.
            options: the caller's.
        """
        ...

    @classmethod
    def translate(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Published names to the head's own; weights in its own names come back as they are.

        Raises:
            CheckpointError: they are neither.
        """
        ...

    @classmethod
    def carried_encoder(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """The encoder that a published file carries beside the head, in names that `build_encoder` takes, or None."""
        ...

    def published_shapes(self) -> Mapping[str, torch.Size]:
        """Names and shapes in a published file that fits this head; where none is published, in one of ours."""
        ...

    def finalize(self) -> None:
        """Called once, when the weights are in: fold what inference can have folded."""
        ...


class DecoderModule(nn.Module):
    """An `nn.Module` with the parts of `Decoder` that most heads have no use for.

    A head on it sets `kind` and `out_indices` and writes `forward` and `postprocess`.
    """

    takes_windows: ClassVar[bool] = False
    out_indices: tuple[int, ...] = ()
    hidden_indices: tuple[int, ...] = ()

    @classmethod
    def translate(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As in `Decoder`; here there are no names but the head's own."""
        return weights

    @classmethod
    def carried_encoder(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """As in `Decoder`; here there is none."""
        return None

    def published_shapes(self) -> Mapping[str, torch.Size]:
        """As in `Decoder`; here there is no publisher but us."""
        return {name: tensor.shape for name, tensor in self.state_dict().items()}

    def finalize(self) -> None:
        """As in `Decoder`; here there is nothing to fold."""
