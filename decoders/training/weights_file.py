"""A head's weights as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_head(head: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a head's weights as float16 safetensors (counters of batch norm as they are), with `metadata`.

    The file is whole whenever it is there: it is written under another name first.
    """
    weights: dict[str, Tensor] = {
        name: tensor.detach().cpu().half().contiguous() if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in head.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    save_file(weights, unfinished, metadata=dict(metadata))
    unfinished.replace(path)


def begin_from(head: nn.Module, path: Path) -> list[str]:
    """Take over from a file of `save_head` every tensor that has the head's name and shape, so as to train on.

    Returns:
        The head's tensors that keep their random beginning, such as a class layer for other classes.

    Raises:
        ValueError: it is no safetensors file, or not one tensor fits.
    """
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} can't be read as safetensors ({error})") from error
    own = head.state_dict()
    taken = {name: tensor for name, tensor in found.items() if name in own and own[name].shape == tensor.shape}
    if not taken:
        raise ValueError(f"no tensor of {path} has a name and shape of this head")
    head.load_state_dict(taken, strict=False)
    return [name for name in own if name not in taken]
