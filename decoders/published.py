"""What heads with published checkpoints share: their names to ours and back, and the encoder that some files carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from encoders.key_map import KeyMap

ENCODER_PREFIXES = ("backbone.", "dinov2.", "dinov2_with_registers.")
"""Under which a published file keeps the encoder that its head was trained on."""

_Value = TypeVar("_Value")


def split_off_encoder(weights: Mapping[str, _Value]) -> tuple[dict[str, _Value], dict[str, _Value]]:
    """Part a published file into its encoder and its head.

    Args:
        weights: names as saved, to tensors or to whatever stands for them.

    Returns:
        (the encoder's, their prefix removed, so that `encoders.checkpoints.build_encoder` reads them; the head's). The
        first is empty if the file holds a head alone.
    """
    encoder, head = {}, {}
    for name, value in weights.items():
        prefix = next((prefix for prefix in ENCODER_PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            head[name] = value
        else:
            encoder[name.removeprefix(prefix)] = value
    return encoder, head


def rename(
    weights: Mapping[str, Tensor], names: Mapping[str, str], what: str, ignore: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Give tensors our names.

    Args:
        weights: of a head, names as published.
        names: published name to ours; all are wanted.
        what: the checkpoint that this should be, for the error.
        ignore: names that may be present and are not used.

    Raises:
        CheckpointError: names are missing or left over.
    """
    keys = KeyMap(weights, ignore)
    ours = {our_name: keys.take(published) for published, our_name in names.items()}
    keys.finish(what)
    return ours


def shapes_under(names: Mapping[str, str], head: nn.Module) -> dict[str, torch.Size]:
    """The shapes of a head's tensors under their published names. `names`: as in `rename`."""
    ours = head.state_dict()
    return {published: ours[our_name].shape for published, our_name in names.items()}
