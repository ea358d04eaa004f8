"""Finding a head's class by name: built-in ones and those that installed packages offer under `polyhead.decoders`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from decoders.base import Decoder

GROUP = "polyhead.decoders"


def available() -> dict[str, EntryPoint]:
    """Every registered head, name to entry point; nothing is imported yet.

    Raises:
        ValueError: two packages offer the same name.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        known = found.setdefault(point.name, point)
        if known.value != point.value:
            raise ValueError(f"decoder '{point.name}' is offered twice: {known.value} and {point.value}")
    return found


def decoder_class(name: str) -> Callable[..., Decoder]:
    """Import the class of a head.

    Raises:
        ValueError: there is no head of that name; names those there are.
    """
    points = available()
    if name not in points:
        raise ValueError(f"no decoder '{name}'; installed: {', '.join(sorted(points))}")
    loaded: Callable[..., Decoder] = points[name].load()
    return loaded
