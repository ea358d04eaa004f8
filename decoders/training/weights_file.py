"""A head's weights as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
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
