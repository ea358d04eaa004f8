"""The state of a training run as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write `state` with torch, under another name first, so that the file is whole whenever it is there.

    Args:
        state: tensors, numbers, text and containers of them.
        path: the file; one that is there is replaced once the new one is on the disk.
    """
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
