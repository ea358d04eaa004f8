"""A folder for each class, with and without splits."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from decoders.labels import LabelSet
from decoders.training.data.class_folders import few_of_each, load_class_folders
from decoders.training.data.folders import DataError


def put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def test_classes_are_the_folders_names(tmp_path: Path) -> None:
    for name in ("dog/1.jpg", "cat/2.jpg", "cat/3.png"):
        put(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    dataset = load_class_folders(tmp_path)
    assert [(sample.name, sample.label_id) for sample in dataset.samples] == [
        ("cat/2.jpg", 0),
        ("cat/3.png", 0),
        ("dog/1.jpg", 1),
    ]
    assert dataset.label_set is not None and [label.name for label in dataset.label_set.labels] == ["cat", "dog"]


def test_a_split_is_a_folder_of_class_folders(tmp_path: Path) -> None:
    for name in ("train/cat/1.jpg", "validation/cat/2.jpg", "test/cat/3.jpg"):
        put(tmp_path / name)
    assert [sample.name for sample in load_class_folders(tmp_path).samples] == ["cat/1.jpg"]
    assert load_class_folders(tmp_path, prefer="val").samples[0].read_image().size == (4, 4)
    assert len(load_class_folders(tmp_path, "test").samples) == 1
    with pytest.raises(DataError, match="no split 'dev'; there are: test, train, validation"):
        load_class_folders(tmp_path, "dev")


def test_an_empty_and_an_unknown_class_are_told(tmp_path: Path, label_set: LabelSet) -> None:
    put(tmp_path / "cat" / "1.jpg")
    put(tmp_path / "unicorn" / "1.jpg")
    (tmp_path / "cup").mkdir()
    dataset = load_class_folders(tmp_path, label_set=label_set)
    assert [str(problem) for problem in dataset.problems] == [
        "class 'cup': its folder holds no pictures",
        "class 'unicorn': is not in label set five",
    ]


def test_a_folder_without_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no folders"):
        load_class_folders(tmp_path)


def test_few_of_each_class_are_drawn_by_the_seed(tmp_path: Path) -> None:
    for number in range(9):
        put(tmp_path / "cat" / f"{number}.jpg")
    for number in range(2):
        put(tmp_path / "dog" / f"{number}.jpg")
    dataset = load_class_folders(tmp_path)
    drawn = {seed: [sample.name for sample in few_of_each(dataset, 3, seed).samples] for seed in range(5)}
    assert [sample.name for sample in few_of_each(dataset, 3, 0).samples] == drawn[0]
    assert len({tuple(names) for names in drawn.values()}) > 1
    for names in drawn.values():
        assert [name.split("/")[0] for name in names] == ["cat"] * 3 + ["dog"] * 2
    assert few_of_each(dataset, 3, 0).label_set == dataset.label_set
    with pytest.raises(DataError, match="at least 1"):
        few_of_each(dataset, 0, 0)
