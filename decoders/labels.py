"""Label sets: what the classes of a head are called, which are things, and their colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

_PACKAGED = Path(__file__).parent / "label_sets"


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


def load_label_set(name: str) -> LabelSet:
    """Read a packaged label set.

    Raises:
        ValueError: there is none of that name; names those there are.
    """
    path = _PACKAGED / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _PACKAGED.glob("*.yaml")))
        raise ValueError(f"no label set '{name}'; packaged: {known}")
    entries = yaml.safe_load(path.read_text())["labels"]
    return LabelSet(
        name,
        tuple(Label(i, entry["name"], bool(entry["thing"]), tuple(entry["color"])) for i, entry in enumerate(entries)),
    )
