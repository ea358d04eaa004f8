"""Bringing a checkpoint's tensors into a module with nothing lost: every name is used once, or that is an error."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint does not fit: names are missing or left over, a shape differs, or the file can't be read."""


@dataclass(frozen=True)
class LoadOptions:
    """What a caller says of an encoder's weights that their names and shapes don't.

    Attributes:
        num_heads: only for sizes that were never published.
        position_grid: (grid_h, grid_w) of the learned positions as stored, only where it is not square.
        patch_size: run at this patch size: the patch kernel is resampled to it.
        resample_grid: (grid_h, grid_w) that the learned positions are resampled to once, now; a picture's own grid is
            then resampled from this one.
    """

    num_heads: int | None = None
    position_grid: tuple[int, int] | None = None
    patch_size: int | None = None
    resample_grid: tuple[int, int] | None = None


class KeyMap:
    """Takes tensors out of a checkpoint by their published names and remembers what was missing or did not fit.

    Where something is amiss, the methods return stand-ins and `finish` raises.

    Args:
        weights: published name to tensor.
        ignore: names that may be present and are not used.
    """

    def __init__(self, weights: Mapping[str, Tensor], ignore: Collection[str] = ()) -> None:
        self._left = {name: tensor for name, tensor in weights.items() if name not in ignore}
        self._missing: list[str] = []
        self._wrong: list[str] = []

    def take(self, name: str, ndim: int | None = None) -> Tensor:
        """The tensor of that name; `ndim`: the number of dimensions that it must have."""
        tensor = self._left.pop(name, None)
        if tensor is None:
            self._missing.append(name)
        elif ndim is not None and tensor.ndim != ndim:
            self.refuse(f"{name} is {list(tensor.shape)}, not of {ndim} dimensions")
        else:
            return tensor
        return torch.empty((1,) * (ndim or 4))

    def take_optional(self, name: str) -> Tensor | None:
        """The tensor of that name, or None."""
        return self._left.pop(name, None)

    def any_ends(self, suffix: str) -> bool:
        """Whether a name that was not taken yet ends so."""
        return any(name.endswith(suffix) for name in self._left)

    def refuse(self, reason: str) -> None:
        """Let `finish` raise for this reason."""
        self._wrong.append(reason)

    def join(self, tensors: Sequence[Tensor], dim: int) -> Tensor:
        """The tensors in a row along `dim`; their other dimensions must be equal."""
        if self._missing or self._wrong:
            return torch.empty(1, 1, 1)
        if len({(*t.shape[:dim], *t.shape[dim + 1 :]) for t in tensors}) != 1:
            self.refuse("shapes that do not go together: " + ", ".join(str(list(t.shape)) for t in tensors))
            return torch.empty(1, 1, 1)
        return torch.cat(list(tensors), dim=dim)

    def count(self, pattern: str) -> int:
        """How many consecutive numbers, from 0, give a name when put into `pattern`'s ``{}``."""
        number = 0
        while pattern.format(number) in self._left:
            number += 1
        if number == 0:
            self._missing.append(pattern.format(0))
        return number

    def copy(self, theirs: str, ours: str, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Weight and bias of each layer in `names` (their name to ours), below the two prefixes."""
        return {
            f"{ours}{new}.{kind}": self.take(f"{theirs}{old}.{kind}")
            for old, new in names.items()
            for kind in ("weight", "bias")
        }

    def stack(
        self, theirs: str, names: Sequence[str], ours: str, *, without_bias: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Stack the weights and the biases of several linear layers in that order; absent biases become zeros.

        Args:
            theirs: prefix of the layers.
            names: of the layers.
            ours: name of the stacked layer.
            without_bias: those of `names` that have no bias.
        """
        weights = [self.take(f"{theirs}{name}.weight", ndim=2) for name in names]
        biases = [
            weight.new_zeros(len(weight)) if name in without_bias else self.take(f"{theirs}{name}.bias", ndim=1)
            for name, weight in zip(names, weights, strict=True)
        ]
        return {f"{ours}.weight": self.join(weights, dim=0), f"{ours}.bias": self.join(biases, dim=0)}

    def finish(self, what: str) -> None:
        """Raise unless every name was taken, none was missing and nothing was refused.

        Raises:
            CheckpointError: lists the missing and the left-over names and what was refused.
        """
        parts = {"missing": self._missing, "left over": sorted(self._left), "wrong": self._wrong}
        if any(parts.values()):
            raise CheckpointError(f"not a {what} checkpoint; {_told(parts)}")


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load `weights`, in the module's own names, into a module; every name and shape must fit.

    Raises:
        CheckpointError: lists what is missing, left over, or of another shape or type.
    """
    wanted = module.state_dict()
    missing, left = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    both = sorted(wanted.keys() & weights.keys())
    shapes = [
        f"{name} is {list(weights[name].shape)}, not {list(wanted[name].shape)}"
        for name in both
        if weights[name].shape != wanted[name].shape
    ]
    types = [
        f"{name} is {weights[name].dtype}"
        for name in both
        if weights[name].is_floating_point() != wanted[name].is_floating_point()
    ]
    parts = {"missing": missing, "left over": left, "of another shape": shapes, "of another type": types}
    if any(parts.values()):
        raise CheckpointError(f"{source} does not fit; {_told(parts)}")
    module.load_state_dict(dict(weights))


def _told(parts: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{what}: {_some(names)}" for what, names in parts.items() if names)


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
