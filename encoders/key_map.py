"""Renaming a checkpoint's tensors with nothing lost: every name is taken once, and what stays is an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


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

    def fuse(self, theirs: str, names: tuple[str, str, str], ours: str) -> dict[str, Tensor]:
        """Stack query, key and value in that order; an absent key bias becomes zeros (SPEC of the PMT code, 8)."""
        weights = [self.take(f"{theirs}{name}.weight") for name in names]
        query, key, value = names
        query_bias, value_bias = self.take(f"{theirs}{query}.bias"), self.take(f"{theirs}{value}.bias")
        key_bias = self.take_optional(f"{theirs}{key}.bias")
        biases = [query_bias, torch.zeros_like(query_bias) if key_bias is None else key_bias, value_bias]
        if self._missing:
            return {}
        return {f"{ours}.weight": torch.cat(weights), f"{ours}.bias": torch.cat(biases)}

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


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
