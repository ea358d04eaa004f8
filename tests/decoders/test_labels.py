"""Label sets: packaged ones are whole and in the order of the models' logits, and unknown ones are refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import decoders.labels
from decoders.labels import LabelSet, load_label_set, packaged_label_sets

COUNTS = {  # things, stuff
    "ade20k": (100, 50),
    "coco_instance": (80, 0),
    "coco_panoptic": (80, 53),
    "coco_supercategories": (12, 15),
    "imagenet1k": (1000, 0),
    "ovis": (25, 0),
    "vipseg": (58, 66),
    "vspw": (58, 66),
    "youtube_vis_2019": (40, 0),
    "youtube_vis_2021": (40, 0),
}
THINGS_FIRST = sorted(COUNTS.keys() - {"ade20k"})  # which mixes them
SHARED_NAMES = {"imagenet1k": {"crane": [134, 517]}}

# label ids as the code of the published models maps the data sets' own ids, here in brackets, to them
PLACES = [
    ("ade20k", 0, "wall", False),  # (1)
    ("ade20k", 2, "sky", False),  # (3)
    ("ade20k", 7, "bed", True),  # (8)
    ("ade20k", 12, "person", True),  # (13)
    ("ade20k", 20, "car", True),  # (21)
    ("ade20k", 126, "animal", True),  # (127)
    ("ade20k", 149, "flag", True),  # (150)
    ("coco_instance", 0, "person", True),  # (1)
    ("coco_instance", 11, "stop sign", True),  # (13)
    ("coco_instance", 56, "chair", True),  # (62)
    ("coco_instance", 79, "toothbrush", True),  # (90)
    ("coco_panoptic", 0, "person", True),  # (1)
    ("coco_panoptic", 16, "dog", True),  # (18)
    ("coco_panoptic", 60, "dining table", True),  # (67)
    ("coco_panoptic", 79, "toothbrush", True),  # (90)
    ("coco_panoptic", 80, "banner", False),  # (92)
    ("coco_panoptic", 83, "cardboard", False),  # (100)
    ("coco_panoptic", 100, "road", False),  # (149)
    ("coco_panoptic", 119, "sky-other-merged", False),  # (187)
    ("coco_panoptic", 132, "rug-merged", False),  # (200)
    ("imagenet1k", 0, "tench", True),
    ("imagenet1k", 207, "golden retriever", True),
    ("imagenet1k", 281, "tabby", True),
    ("imagenet1k", 638, "maillot", True),
    ("imagenet1k", 639, "tank suit", True),
    ("imagenet1k", 817, "sports car", True),
    ("imagenet1k", 999, "toilet tissue", True),
    ("ovis", 0, "Person", True),  # (1)
    ("ovis", 11, "Poultry", True),  # (12)
    ("ovis", 24, "Vehical", True),  # (25)
    ("vipseg", 0, "door", True),  # (2)
    ("vipseg", 3, "goal", True),  # (10)
    ("vipseg", 17, "person", True),  # (60)
    ("vipseg", 57, "train", True),  # (123)
    ("vipseg", 58, "wall", False),  # (0)
    ("vipseg", 59, "ceiling", False),  # (1)
    ("vipseg", 123, "food", False),  # (121)
    ("vspw", 0, "door", True),  # (2)
    ("vspw", 57, "train", True),  # (123)
    ("vspw", 58, "wall", False),  # (0)
    ("vspw", 123, "food", False),  # (121)
    ("youtube_vis_2019", 0, "person", True),  # (1)
    ("youtube_vis_2019", 5, "sedan", True),  # (6)
    ("youtube_vis_2019", 39, "tennis_racket", True),  # (40)
    ("youtube_vis_2021", 0, "airplane", True),  # (1)
    ("youtube_vis_2021", 25, "person", True),  # (26)
    ("youtube_vis_2021", 39, "zebra", True),  # (40)
]

# colours the data sets' owners publish
COLORS = [
    ("ade20k", "wall", (120, 120, 120)),
    ("ade20k", "sky", (6, 230, 230)),
    ("coco_panoptic", "person", (220, 20, 60)),
    ("coco_panoptic", "rug-merged", (250, 141, 255)),
    ("vipseg", "wall", (120, 120, 120)),
    ("vipseg", "person", (11, 200, 200)),
    ("youtube_vis_2021", "person", (220, 20, 60)),
]


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the packaged label sets."""
    monkeypatch.setattr(decoders.labels, "_PACKAGED", tmp_path)
    return tmp_path


def test_label_sets_are_packaged() -> None:
    assert packaged_label_sets() == tuple(sorted(COUNTS))


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_packaged_label_sets_are_whole(name: str) -> None:
    labels = load_label_set(name).labels
    assert [label.label_id for label in labels] == list(range(len(labels)))
    assert all(len(label.color) == 3 for label in labels)
    assert all(type(value) is int and 0 <= value <= 255 for label in labels for value in label.color)
    assert all(isinstance(label.is_thing, bool) and label.name == label.name.strip() != "" for label in labels)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_names_are_unique_but_where_the_data_set_shares_them(name: str) -> None:
    places: dict[str, list[int]] = {}
    for label in load_label_set(name).labels:
        places.setdefault(label.name, []).append(label.label_id)
    assert {name: ids for name, ids in places.items() if len(ids) > 1} == SHARED_NAMES.get(name, {})


@pytest.mark.parametrize(("name", "counts"), COUNTS.items())
def test_label_sets_have_the_things_and_the_stuff_of_their_data_set(name: str, counts: tuple[int, int]) -> None:
    labels = load_label_set(name)
    assert (len(labels) - len(labels.stuff_ids), len(labels.stuff_ids)) == counts


@pytest.mark.parametrize("name", THINGS_FIRST)
def test_things_come_before_stuff(name: str) -> None:
    things, stuff = COUNTS[name]
    assert load_label_set(name).stuff_ids == frozenset(range(things, things + stuff))


@pytest.mark.parametrize(("name", "label_id", "label", "is_thing"), PLACES)
def test_labels_are_in_the_order_of_the_logits(name: str, label_id: int, label: str, is_thing: bool) -> None:
    found = load_label_set(name)[label_id]
    assert (found.name, found.is_thing) == (label, is_thing)


@pytest.mark.parametrize(("name", "label", "color"), COLORS)
def test_labels_have_the_colours_of_their_data_set(name: str, label: str, color: tuple[int, int, int]) -> None:
    assert [found.color for found in load_label_set(name).labels if found.name == label] == [color]


def test_the_things_of_coco_are_those_of_its_panoptic_set() -> None:
    assert load_label_set("coco_instance").labels == load_label_set("coco_panoptic").labels[:80]


def test_vspw_has_the_labels_of_vipseg() -> None:
    assert load_label_set("vspw").labels == load_label_set("vipseg").labels


def test_the_two_years_of_youtube_vis_differ_in_five_classes_and_share_their_colours() -> None:
    first, second = (
        {label.name: label.color for label in load_label_set(f"youtube_vis_{year}").labels} for year in (2019, 2021)
    )
    assert first.keys() - second.keys() == {"ape", "eagle", "hand", "owl", "sedan"}
    assert second.keys() - first.keys() == {"bird", "car", "flying_disc", "squirrel", "whale"}
    assert all(first[name] == second[name] for name in first.keys() & second.keys())


def test_labels_without_a_colour_get_one_each_unlike_their_neighbours() -> None:
    colors = [label.color for label in load_label_set("imagenet1k").labels]
    assert len(set(colors)) == len(colors)
    assert all(max(abs(a - b) for a, b in zip(*pair, strict=True)) >= 50 for pair in pairwise(colors))


def test_a_colour_that_is_computed_depends_on_the_label_id_alone(packaged: Path) -> None:
    (packaged / "some.yaml").write_text(
        "labels: [{name: a, thing: true}, {name: b, thing: false, color: [1, 2, 3]}, {name: c, thing: false}]"
    )
    (packaged / "none.yaml").write_text(
        "labels: [{name: d, thing: false}, {name: e, thing: true}, {name: f, thing: true}]"
    )
    some, none = load_label_set("some"), load_label_set("none")
    assert some[1].color == (1, 2, 3) != none[1].color
    assert [some[i].color for i in (0, 2)] == [none[i].color for i in (0, 2)] == [(255, 102, 102), (149, 255, 0)]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{thing: true}", "has no name"),
        ("{name: , thing: true}", "has no name"),
        ("{name: ' ', thing: true}", "has no name"),
        ("{name: no, thing: true}", "has no name"),  # YAML's no is false
        ("{name: b}", "is neither thing nor stuff"),
        ("{name: b, thing: 1}", "is neither thing nor stuff"),
    ],
)
def test_a_label_that_lacks_something_is_refused_with_its_file_and_place(
    packaged: Path, entry: str, problem: str
) -> None:
    (packaged / "bad.yaml").write_text(f"labels: [{{name: a, thing: true}}, {entry}]")
    with pytest.raises(ValueError, match=rf"bad\.yaml: label 1 {problem}"):
        load_label_set("bad")


@pytest.mark.parametrize("name", ["coca", "", "../labels"])
def test_an_unknown_label_set_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=rf"no label set '{name}'; packaged: .*coco_supercategories"):
        load_label_set(name)


def test_stuff_is_what_is_no_thing(label_set: LabelSet) -> None:
    assert label_set.stuff_ids == {3, 4}
    assert len(label_set) == 5
    assert label_set[4].name == "road"
