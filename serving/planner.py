"""Which encoder passes a set of tasks needs: tasks of one input geometry share one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from decoders.base import Decoder
from encoders.geometry import InputGeometry


@dataclass(frozen=True)
class Head:
    """A loaded head.

    Attributes:
        task: its name in the bundle.
        decoder: the module.
        geometry: of the input that it works on.
        description: one line for people.
    """

    task: str
    decoder: Decoder
    geometry: InputGeometry
    description: str = ""


@dataclass(frozen=True)
class EncoderPass:
    """One run of the encoder: its input geometry, and the tasks that read its features."""

    geometry: InputGeometry
    tasks: tuple[str, ...]


def plan(tasks: Iterable[str], heads: Mapping[str, Head]) -> tuple[EncoderPass, ...]:
    """The fewest passes that serve `tasks`, one per input geometry, in the order of the tasks."""
    groups: dict[InputGeometry, list[str]] = {}
    for task in tasks:
        groups.setdefault(heads[task].geometry, []).append(task)
    return tuple(EncoderPass(geometry, tuple(group)) for geometry, group in groups.items())


@dataclass(frozen=True)
class Taps:
    """The encoder blocks that some heads read, ascending: with and without the final LayerNorm."""

    out_indices: tuple[int, ...]
    hidden_indices: tuple[int, ...]

    def __or__(self, other: Taps) -> Taps:
        """What one of the two reads."""
        return Taps(
            tuple(sorted({*self.out_indices, *other.out_indices})),
            tuple(sorted({*self.hidden_indices, *other.hidden_indices})),
        )


def taps(tasks: Iterable[str], heads: Mapping[str, Head]) -> Taps:
    """The union of what these tasks read."""
    decoders = [heads[task].decoder for task in tasks]
    return Taps(
        tuple(sorted({index for decoder in decoders for index in decoder.out_indices})),
        tuple(sorted({index for decoder in decoders for index in decoder.hidden_indices})),
    )
