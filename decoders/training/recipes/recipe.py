"""What a recipe is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from decoders.training.data.samples import Sample
from decoders.training.schedule import Schedule
from decoders.training.views import View
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry


class Objective(Protocol):
    """What a head is held to. Made for one head; an example has one frame, or those of a pseudo-clip."""

    def target(self, sample: Sample, views: Sequence[View], places: Sequence[ImageGeometry]) -> Any:
        """The truth of an example, on the CPU.

        Args:
            sample: the labelled picture.
            views: of it, one for each frame.
            places: where each lies in the network's input.
        """
        ...

    def losses(self, frames: Sequence[EncoderFeatures], targets: Sequence[Any], progress: float) -> dict[str, Tensor]:
        """Run the head and compare.

        Args:
            frames: for each frame the features of B examples.
            targets: B of what `target` gave.
            progress: of the training, in [0, 1].

        Returns:
            The losses by name; their sum is what training makes smaller.
        """
        ...


@dataclass(frozen=True)
class Recipe:
    """How a kind of head is trained.

    Attributes:
        data: kind of truth, one of `decoders.training.data.formats.KINDS`.
        schedule: how long, on which views.
        settings: keyword arguments of a new head on an encoder.
        objective: what a head is held to; None: it learns from its pictures at once, without steps.
        frames: views that make an example, 1 for stills.
    """

    data: str
    schedule: Schedule
    settings: Callable[[EncoderSpec], dict[str, Any]]
    objective: Callable[[nn.Module], Objective] | None
    frames: int = 1


def mixed_precision(features: EncoderFeatures) -> torch.autocast:
    """bfloat16 on a GPU, and on a CPU that multiplies it; one that can't would take many times as long."""
    device = features.device_type
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda" or (device == "cpu" and _cpu_has_bfloat16()))


def _cpu_has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def spread_blocks(spec: EncoderSpec) -> list[int]:
    """Four blocks spread evenly over an encoder, the last one among them, or all if it has fewer."""
    count = min(4, spec.depth)
    return [(number + 1) * spec.depth // count - 1 for number in range(count)]
