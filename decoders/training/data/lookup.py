"""Translating the values of a map by a table, quickly for maps of any range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def translate_map(map_: NDArray[np.int32], table: Mapping[int, int], default: int) -> NDArray[np.int32]:
    """Each value of `map_` replaced by what `table` says, or by `default`; the shape stays."""
    if not table:
        return np.full_like(map_, default)
    keys = np.array(sorted(table), dtype=np.int32)
    values = np.array([table[key] for key in keys.tolist()], dtype=np.int32)
    places = np.searchsorted(keys, map_).clip(max=len(keys) - 1)
    return np.where(keys[places] == map_, values[places], np.int32(default))
