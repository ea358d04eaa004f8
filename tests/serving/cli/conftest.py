"""Data that commands train and score on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def frames(tmp_path: Path, draw_picture: Callable[..., Image.Image]) -> Path:
    """Four RGB-D frames, numbered 0 to 3: a slope from 1 m to 4 m."""
    folder = tmp_path / "frames"
    folder.mkdir()
    slope = np.repeat(np.linspace(1000, 4000, 80, dtype=np.uint16)[None], 60, axis=0)
    for number in range(4):
        draw_picture(60, 80, number).save(folder / f"frame-{number:06d}.color.jpg")
        Image.fromarray(slope).save(folder / f"frame-{number:06d}.depth.png")
    return folder
