"""Shared pieces of the tests of measures: recorded cases of published code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decoders.training.evaluation.measure import Counts

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def read_case() -> Callable[[str], Any]:
    """Reads a file of golden/ by its stem."""
    return lambda stem: json.loads((GOLDEN / f"{stem}.json").read_text())


@pytest.fixture(scope="session")
def once() -> Callable[[int], Counts]:
    """Counts that take each of so many pictures once."""
    return lambda size: np.ones(size, dtype=np.int64)
