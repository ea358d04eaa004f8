"""Bringing a checkpoint's tensors into a module with nothing lost: every name is used once, or that is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint does not fit: names are missing or left over, a shape differs, or the file can't be read."""


class KeyMap:
    """Takes tensors out of a checkpoint by their published names and remembers what was missing.

    Args:
        weights: published name to tensor.
        ignore: names that may be present and are not used.
    """

    def __init__(self, weights: Mapping[str, Tensor], ignore: Sequence[str] = ()) -> None:
        self._left = {name: tensor for name, tensor in weights.items() if name not in ignore}
        self._missing: list[str] = []

    def take(self, name: str) -> Tensor:
        """The tensor of that name; an empty one if it is missing (then `finish` raises)."""
        tensor = self._left.pop(name, None)
        if tensor is None:
            self._missing.append(name)
            return torch.empty(1, 1, 1, 1)
        return tensor

    def take_optional(self, name: str) -> Tensor | None:
        """The tensor of that name, or None."""
        return self._left.pop(name, None)

    def join(self, *tensors: Tensor) -> Tensor:
        """Tokens in a row, [1, T, C]; a stand-in if a name was missing so far (then `finish` raises)."""
        return torch.empty(1, 1, 1, 1) if self._missing else torch.cat(tensors, dim=1)

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

    def fuse(self, theirs: str, names: tuple[str, str, str], ours: str, *, has_key_bias: bool) -> dict[str, Tensor]:
        """Stack query, key and value in that order; where the family has no key bias, it becomes zeros."""
        weights = [self.take(f"{theirs}{name}.weight") for name in names]
        query, key, value = names
        query_bias, value_bias = self.take(f"{theirs}{query}.bias"), self.take(f"{theirs}{value}.bias")
        key_bias = self.take(f"{theirs}{key}.bias") if has_key_bias else torch.zeros_like(query_bias)
        if self._missing:
            return {}
        return {f"{ours}.weight": torch.cat(weights), f"{ours}.bias": torch.cat((query_bias, key_bias, value_bias))}

    def finish(self, what: str) -> None:
        """Raise unless every name was taken and none was missing.

        Raises:
            CheckpointError: lists the missing and the left-over names.
        """
        left = sorted(self._left)
        if self._missing or left:
            parts = [f"missing: {_some(self._missing)}"] if self._missing else []
            parts += [f"left over: {_some(left)}"] if left else []
            raise CheckpointError(f"not a {what} checkpoint; " + "; ".join(parts))


def fill(module: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load `weights`, in the module's own names, into a module; every name and shape must fit.

    Raises:
        CheckpointError: lists what is missing, left over, or of another shape.
    """
    wanted = module.state_dict()
    missing, left = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    wrong = [
        f"{name} is {list(weights[name].shape)}, not {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    parts = {"missing": missing, "left over": left, "of another shape": wrong}
    if any(parts.values()):
        told = "; ".join(f"{what}: {_some(names)}" for what, names in parts.items() if names)
        raise CheckpointError(f"{source} does not fit; {told}")
    module.load_state_dict(dict(weights))


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
