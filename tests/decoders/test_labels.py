"""Label sets: packaged ones are whole, and unknown ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import decoders.labels
from decoders.labels import LabelSet, load_label_set

PACKAGED = sorted(path.stem for path in (Path(decoders.labels.__file__).parent / "label_sets").glob("*.yaml"))


def test_label_sets_are_packaged() -> None:
    assert "coco_supercategories" in PACKAGED


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_label_sets_are_whole(name: str) -> None:
    labels = load_label_set(name).labels
    assert [label.label_id for label in labels] == list(range(len(labels)))
    assert len({label.name for label in labels}) == len(labels)
    assert all(len(label.color) == 3 and all(0 <= value <= 255 for value in label.color) for label in labels)
    assert all(isinstance(label.is_thing, bool) and label.name == label.name.strip() != "" for label in labels)


def test_coco_supercategories_are_twelve_things_and_fifteen_kinds_of_stuff() -> None:
    labels = load_label_set("coco_supercategories")
    assert len(labels) == 27
    assert labels.stuff_ids == frozenset(range(12, 27))
    assert (labels[0].name, labels[0].is_thing) == ("person", True)


def test_an_unknown_label_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no label set 'coca'; packaged: .*coco_supercategories"):
        load_label_set("coca")


def test_stuff_is_what_is_no_thing(label_set: LabelSet) -> None:
    assert label_set.stuff_ids == {3, 4}
    assert len(label_set) == 5
    assert label_set[4].name == "road"
