"""Labelled pictures on disk, read into samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoders.labels import LabelSet
from decoders.training.data import load_coco_panoptic, load_rgbd_frames

IDS = np.array([[7, 7, 300], [0, 70_000, 300]])
SEGMENTS = [
    {"id": 7, "category_id": 10, "iscrowd": 0},
    {"id": 300, "category_id": 11, "iscrowd": 1},
    {"id": 70_000, "category_id": 12, "iscrowd": 0},
]
CATEGORIES = [
    {"id": 10, "name": "siamese", "supercategory": "cat"},
    {"id": 11, "name": "cup", "supercategory": "kitchen"},
    {"id": 12, "name": "motorway", "supercategory": "road"},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A split "tiny" of one picture, 2 x 3 pixels, three segments, one of them a crowd."""
    truth: dict[str, Any] = {
        "images": [{"id": 5, "file_name": "a.png"}],
        "annotations": [{"image_id": 5, "file_name": "a.truth.png", "segments_info": SEGMENTS}],
        "categories": CATEGORIES,
    }
    (tmp_path / "images" / "tiny").mkdir(parents=True)
    (tmp_path / "panoptic" / "panoptic_tiny").mkdir(parents=True)
    (tmp_path / "panoptic" / "panoptic_tiny.json").write_text(json.dumps(truth))
    Image.fromarray(np.full((2, 3), 9, np.uint8)).save(tmp_path / "images" / "tiny" / "a.png")  # grey, not RGB
    rgb = np.stack([IDS % 256, IDS // 256 % 256, IDS // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "panoptic" / "panoptic_tiny" / "a.truth.png")
    return tmp_path


def test_coco_colours_become_segment_ids(root: Path, label_set: LabelSet) -> None:
    (sample,) = load_coco_panoptic(root, "tiny", label_set)
    np.testing.assert_array_equal(sample.segment_map, IDS)
    assert sample.segment_map.dtype == np.int32
    assert sample.name == "a.png"


def test_a_category_is_looked_up_by_its_super_category_or_else_by_its_name(root: Path, label_set: LabelSet) -> None:
    (sample,) = load_coco_panoptic(root, "tiny", label_set)
    assert {i: label_set[label].name for i, label in sample.labels.items()} == {7: "cat", 300: "cup", 70_000: "road"}


def test_crowds_are_told_apart(root: Path, label_set: LabelSet) -> None:
    (sample,) = load_coco_panoptic(root, "tiny", label_set)
    assert sample.crowd_ids == {300}


def test_a_grey_picture_is_read_as_rgb(root: Path, label_set: LabelSet) -> None:
    (sample,) = load_coco_panoptic(root, "tiny", label_set)
    assert sample.image.mode == "RGB"
    assert sample.image.size == (3, 2)


def test_a_category_outside_the_label_set_is_named(root: Path, label_set: LabelSet) -> None:
    file = root / "panoptic" / "panoptic_tiny.json"
    file.write_text(file.read_text().replace("motorway", "river").replace('"road"', '"water"'))
    with pytest.raises(ValueError, match=r"category 'river' \('water'\) is not in label set five"):
        load_coco_panoptic(root, "tiny", label_set)


@pytest.mark.parametrize(
    "absent", ["panoptic/panoptic_tiny.json", "images/tiny/a.png", "panoptic/panoptic_tiny/a.truth.png"]
)
def test_an_absent_file_is_named(root: Path, label_set: LabelSet, absent: str) -> None:
    (root / absent).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_coco_panoptic(root, "tiny", label_set)
    assert str(root / absent) in str(error.value)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Frames 0, 5, 10 and 15; the depth of each is its number in metres, with two pixels unknown."""
    for number in (0, 5, 10, 15):
        depth = np.full((4, 6), 1000 * number + 500, np.uint16)
        depth[0, 0], depth[1, 1] = 0, 65535
        Image.fromarray(depth).save(tmp_path / f"frame-{number:06}.depth.png")
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / f"frame-{number:06}.color.jpg")
    return tmp_path


def test_frames_are_read_in_order_from_the_first_to_the_last_asked(frames: Path) -> None:
    names = [sample.name for sample in load_rgbd_frames(frames, 5, 10)]
    assert names == ["frame-000005.color.jpg", "frame-000010.color.jpg"]


def test_millimetres_become_metres_and_unmeasured_pixels_nan(frames: Path) -> None:
    (sample,) = load_rgbd_frames(frames, 10, 10)
    assert sample.depth_m.dtype == np.float32
    assert sample.image.size == (6, 4)
    unknown = np.isnan(sample.depth_m)
    assert unknown[0, 0]
    assert unknown[1, 1]
    assert unknown.sum() == 2
    np.testing.assert_allclose(sample.depth_m[~unknown], 10.5)


def test_a_range_without_frames_is_named(frames: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no RGB-D frames 20\.\.30 in "):
        load_rgbd_frames(frames, 20, 30)
