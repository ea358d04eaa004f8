"""Label sets: what the classes of a head are called, which are things, and their colours."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

_PACKAGED = Path(__file__).parent / "label_sets"
_GOLDEN_RATIO = 0.6180339887498949  # steps of this part of a turn spread hues evenly, however many they are
_SATURATIONS = (0.6, 0.8, 1.0)
_BRIGHTNESSES = (1.0, 0.8)


@dataclass(frozen=True)
class Label:
    """One class. `is_thing`: countable objects, as against stuff. `color`: RGB in [0, 255]."""

    label_id: int
    name: str
    is_thing: bool
    color: tuple[int, int, int]


@dataclass(frozen=True)
class LabelSet:
    """The classes of a head, in the order of its logits (label_id is the index)."""

    name: str
    labels: tuple[Label, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, label_id: int) -> Label:
        return self.labels[label_id]

    @cached_property
    def stuff_ids(self) -> frozenset[int]:
        """The label ids that are stuff."""
        return frozenset(label.label_id for label in self.labels if not label.is_thing)


def packaged_label_sets() -> tuple[str, ...]:
    """The names of the packaged label sets, sorted."""
    return tuple(sorted(path.stem for path in _PACKAGED.glob("*.yaml")))


def load_label_set(name: str) -> LabelSet:
    """Read a packaged label set. A label without a colour of its own gets one that depends on its id alone.

    Raises:
        ValueError: there is none of that name (names those there are), or its file has a label without a name or
            without a word on whether it is a thing.
    """
    if name not in packaged_label_sets():
        raise ValueError(f"no label set '{name}'; packaged: {', '.join(packaged_label_sets())}")
    return read_label_set(_PACKAGED / f"{name}.yaml")


def read_label_set(path: Path) -> LabelSet:
    """Read a label set from a file of one's own, in the form of the packaged ones; raises as `load_label_set` does."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"label set {path}: {' '.join(str(error).split())}") from None
    entries = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"label set {path}: it must hold 'labels:', a list of entries with name and thing")
    return LabelSet(path.stem, tuple(_read_label(path.name, number, entry) for number, entry in enumerate(entries)))


def new_label_set(name: str, labels: Sequence[str]) -> LabelSet:
    """A label set of things that have names and nothing else."""
    return LabelSet(name, tuple(Label(i, label, True, _spread_color(i)) for i, label in enumerate(labels)))


def _read_label(file_name: str, label_id: int, entry: dict[str, Any]) -> Label:
    """One label of a file.

    Raises:
        ValueError: it has no name, or `thing` is neither true nor false; says which label, of which file.
    """
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():  # YAML's bare no, on and 7 are no text
        raise ValueError(f"{file_name}: label {label_id} has no name: {entry}")
    is_thing = entry.get("thing")
    if not isinstance(is_thing, bool):
        raise ValueError(f"{file_name}: label {label_id} is neither thing nor stuff: {entry}")
    color = entry.get("color")
    if color is not None and not _is_color(color):
        raise ValueError(f"{file_name}: the color of label {label_id} is no [red, green, blue] of 0 to 255: {entry}")
    return Label(label_id, name, is_thing, tuple(color) if color else _spread_color(label_id))


def _is_color(color: Any) -> bool:
    return isinstance(color, list) and len(color) == 3 and all(type(part) is int and 0 <= part <= 255 for part in color)


def _spread_color(label_id: int) -> tuple[int, int, int]:
    """An RGB colour in [0, 255] for a label: always the same, and far from those of the labels next to it."""
    red, green, blue = colorsys.hsv_to_rgb(
        label_id * _GOLDEN_RATIO % 1,
        _SATURATIONS[label_id % len(_SATURATIONS)],
        _BRIGHTNESSES[label_id % len(_BRIGHTNESSES)],
    )
    return round(255 * red), round(255 * green), round(255 * blue)
