"""Small caches of what depends on the size of the input alone."""

from __future__ import annotations

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

_MOST = 8
"""Grids kept: callers choose the shape of their pictures, and a grid of a large model takes tens of megabytes."""


def remember(cache: dict[Key, Value], key: Key, value: Value) -> None:
    """Add an entry and forget the oldest beyond the limit; threads may do so at once."""
    cache[key] = value
    for oldest in list(cache)[:-_MOST]:
        cache.pop(oldest, None)
