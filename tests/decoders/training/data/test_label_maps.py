"""Label maps in the layouts of ADE20K, Cityscapes and CamVid, and in a folder of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from decoders.labels import LabelSet
from decoders.training.data.folders import DataError
from decoders.training.data.label_maps import MapFormat, load_label_maps
from decoders.training.data.samples import IGNORE

IDS = np.array([[0, 1, 2], [3, 4, 255]], np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def picture(path: Path) -> None:
    write(path, np.zeros((2, 3, 3), np.uint8))


def test_ids_are_label_ids_and_255_is_ignored(tmp_path: Path, label_set: LabelSet) -> None:
    picture(tmp_path / "images" / "a.jpg")
    write(tmp_path / "labels" / "a.png", IDS)
    (sample,) = load_label_maps(tmp_path, label_set=label_set).samples
    label_map = sample.read_label_map()
    assert label_map.dtype == np.int32
    np.testing.assert_array_equal(label_map, [[0, 1, 2], [3, 4, IGNORE]])


def test_in_ade20ks_layout_classes_count_from_1_and_0_is_ignored(tmp_path: Path, label_set: LabelSet) -> None:
    for split in ("training", "validation"):
        picture(tmp_path / "images" / split / "ADE_1.jpg")
        write(tmp_path / "annotations" / split / "ADE_1.png", np.array([[0, 1, 2], [3, 4, 5]], np.uint8))
    dataset = load_label_maps(tmp_path, label_set=label_set, prefer="val")
    assert len(dataset.samples) == 1
    np.testing.assert_array_equal(dataset.samples[0].read_label_map(), [[IGNORE, 0, 1], [2, 3, 4]])


def test_cityscapes_ids_become_its_19_classes(tmp_path: Path) -> None:
    picture(tmp_path / "leftImg8bit" / "train" / "aachen" / "aachen_1_leftImg8bit.png")
    maps = tmp_path / "gtFine" / "train" / "aachen"
    write(maps / "aachen_1_gtFine_labelIds.png", np.array([[7, 26, 33], [0, 24, 4]], np.uint8))
    write(maps / "aachen_1_gtFine_color.png", np.zeros((2, 3, 3), np.uint8))
    dataset = load_label_maps(tmp_path)
    assert dataset.problems == ()
    assert dataset.label_set is not None and dataset.label_set[13].name == "car"
    np.testing.assert_array_equal(dataset.samples[0].read_label_map(), [[0, 13, 18], [IGNORE, 11, IGNORE]])
    write(maps / "aachen_1_gtFine_labelTrainIds.png", np.array([[5, 5, 5], [5, 5, 255]], np.uint8))
    (sample,) = load_label_maps(tmp_path).samples  # the train ids win
    np.testing.assert_array_equal(sample.read_label_map(), [[5, 5, 5], [5, 5, IGNORE]])


def test_camvids_colours_are_read_by_its_palette(tmp_path: Path) -> None:
    (tmp_path / "label_colors.txt").write_text("128 128 128\tsky\n64 0 128 car\n")
    picture(tmp_path / "train" / "a.png")
    colors = [[(128, 128, 128), (64, 0, 128), (0, 0, 0)]] * 2
    write(tmp_path / "train_labels" / "a_L.png", np.array(colors, np.uint8))
    dataset = load_label_maps(tmp_path)
    assert dataset.label_set is not None
    assert [(each.name, each.color) for each in dataset.label_set.labels] == [
        ("sky", (128, 128, 128)),
        ("car", (64, 0, 128)),
    ]
    np.testing.assert_array_equal(dataset.samples[0].read_label_map(), [[0, 1, IGNORE]] * 2)


def test_colours_are_those_of_the_label_set_unless_a_file_says_otherwise(tmp_path: Path, label_set: LabelSet) -> None:
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.png", np.array([[label_set[4].color, label_set[1].color]], np.uint8))
    (sample,) = load_label_maps(tmp_path, label_set=label_set).samples
    np.testing.assert_array_equal(sample.read_label_map(), [[4, 1]])


def test_values_that_are_no_class_are_named(tmp_path: Path, label_set: LabelSet) -> None:
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.png", np.array([[5, 0, 77]], np.uint8))
    (sample,) = load_label_maps(tmp_path, label_set=label_set).samples
    with pytest.raises(ValueError, match=r"a\.png holds values that are no class: 5, 77"):
        sample.read_label_map()
    write(tmp_path / "labels" / "a.png", np.array([[(9, 8, 7)]], np.uint8))
    with pytest.raises(ValueError, match="no class: #090807"):
        sample.read_label_map()


def test_first_id_and_ignored_ids_can_be_said(tmp_path: Path, label_set: LabelSet) -> None:
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.png", np.array([[10, 14, 77]], np.uint8))
    map_format = MapFormat(first_id=10, ignored_ids=frozenset({77}))
    (sample,) = load_label_maps(tmp_path, label_set=label_set, map_format=map_format).samples
    np.testing.assert_array_equal(sample.read_label_map(), [[0, 4, IGNORE]])


def test_classes_come_from_a_file_of_names_or_else_from_the_maps(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "labels" / "a.png", np.array([[3, 8, 255]], np.uint8))
    dataset = load_label_maps(tmp_path)
    assert dataset.label_set is not None
    assert [label.name for label in dataset.label_set.labels] == ["class_3", "class_8"]
    np.testing.assert_array_equal(dataset.samples[0].read_label_map(), [[0, 1, IGNORE]])
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    dataset = load_label_maps(tmp_path)
    assert dataset.label_set is not None
    assert [label.name for label in dataset.label_set.labels] == ["a", "b", "c", "d"]


def test_a_picture_without_a_map_is_told(tmp_path: Path, label_set: LabelSet) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    dataset = load_label_maps(tmp_path, label_set=label_set)
    assert [str(problem) for problem in dataset.problems] == [f"a.png: has no label map in {tmp_path / 'labels'}"]


def test_a_folder_without_maps_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match="holds no label maps"):
        load_label_maps(tmp_path)
