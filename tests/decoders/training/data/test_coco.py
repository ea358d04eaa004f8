"""COCO's two formats on disk, in the layouts that people have, and what is told of them when they are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from decoders.labels import LabelSet, new_label_set
from decoders.training.data.coco import load_coco_instances, load_coco_panoptic
from decoders.training.data.folders import DataError
from decoders.training.data.samples import Dataset, as_instances, as_semantic

IDS = np.array([[7, 7, 300], [0, 70_000, 300]])
SEGMENTS = [
    {"id": 7, "category_id": 10, "iscrowd": 0},
    {"id": 300, "category_id": 11, "iscrowd": 1},
    {"id": 70_000, "category_id": 12, "iscrowd": 0},
]
CATEGORIES = [
    {"id": 10, "name": "siamese", "supercategory": "cat", "isthing": 1},
    {"id": 11, "name": "cup", "supercategory": "kitchen", "isthing": 1},
    {"id": 12, "name": "motorway", "supercategory": "road", "isthing": 0},
]
LAYOUTS = {
    "today": ("panoptic/panoptic_tiny.json", "panoptic/panoptic_tiny", "images/tiny"),
    "official": ("annotations/panoptic_tiny.json", "annotations/panoptic_tiny", "tiny"),
    "plain": ("annotations.json", "panoptic", "images"),
    "plain_split": ("tiny/annotations.json", "tiny/panoptic", "tiny/images"),
}


def write_panoptic(root: Path, layout: str = "plain", **changes: Any) -> Path:
    """One picture, 2 x 3 pixels, three segments, one of them a crowd; `changes` replace keys of the JSON."""
    index, segments, images = (root / part for part in LAYOUTS[layout])
    truth: dict[str, Any] = {
        "images": [{"id": 5, "file_name": "a.png"}],
        "annotations": [{"image_id": 5, "file_name": "a.truth.png", "segments_info": SEGMENTS}],
        "categories": CATEGORIES,
    }
    for folder in (index.parent, segments, images):
        folder.mkdir(parents=True, exist_ok=True)
    index.write_text(json.dumps(truth | changes))
    Image.fromarray(np.full((2, 3), 9, np.uint8)).save(images / "a.png")  # grey, not RGB
    rgb = np.stack([IDS % 256, IDS // 256 % 256, IDS // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(segments / "a.truth.png")
    return root


def told(dataset: Dataset[Any]) -> list[str]:
    return [str(problem) for problem in dataset.problems if problem.is_error]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_split_is_found_in_every_layout(layout: str, tmp_path: Path, label_set: LabelSet) -> None:
    (sample,) = load_coco_panoptic(write_panoptic(tmp_path, layout), label_set=label_set).samples
    segment_map, labels, crowd_ids = sample.read_segments()
    np.testing.assert_array_equal(segment_map, IDS)
    assert segment_map.dtype == np.int32
    assert {i: label_set[label].name for i, label in labels.items()} == {7: "cat", 300: "cup", 70_000: "road"}
    assert crowd_ids == {300}
    assert sample.name == "a.png"


def test_a_grey_picture_is_read_as_rgb(tmp_path: Path, label_set: LabelSet) -> None:
    (sample,) = load_coco_panoptic(write_panoptic(tmp_path), label_set=label_set).samples
    image = sample.read_image()
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_names_count_before_super_categories_where_the_label_set_has_them_all(tmp_path: Path) -> None:
    fine = new_label_set("fine", ["motorway", "siamese", "cat", "cup"])
    (sample,) = load_coco_panoptic(write_panoptic(tmp_path), label_set=fine).samples
    assert sample.read_segments().labels == {7: 1, 300: 3, 70_000: 0}


def test_a_label_set_is_made_from_the_data(tmp_path: Path) -> None:
    found = load_coco_panoptic(write_panoptic(tmp_path / "mine")).label_set
    assert found is not None
    assert (found.name, [(each.name, each.is_thing) for each in found.labels]) == (
        "mine",
        [("siamese", True), ("cup", True), ("motorway", False)],
    )


def test_panoptic_truth_serves_semantic_and_instance_heads(tmp_path: Path, label_set: LabelSet) -> None:
    (sample,) = load_coco_panoptic(write_panoptic(tmp_path), label_set=label_set).samples
    np.testing.assert_array_equal(as_semantic(sample).read_label_map(), [[0, 0, 1], [-1, 4, 1]])
    objects = as_instances(sample, label_set).read_masks()
    assert [(each.label_id, each.is_crowd, each.mask.area()) for each in objects] == [(0, False, 2), (1, True, 2)]


def test_a_category_outside_the_label_set_is_told_if_it_is_used(tmp_path: Path, label_set: LabelSet) -> None:
    spare = {"id": 99, "name": "river", "supercategory": "water"}
    assert (
        told(load_coco_panoptic(write_panoptic(tmp_path, categories=[*CATEGORIES, spare]), label_set=label_set)) == []
    )
    used = [*CATEGORIES[:2], {"id": 12, "name": "river", "supercategory": "water"}]
    dataset = load_coco_panoptic(write_panoptic(tmp_path, categories=used), label_set=label_set)
    assert told(dataset) == ["category 'river' ('water'): is not in label set five and is used 1 times"]


def test_a_category_that_is_not_listed_is_told(tmp_path: Path, label_set: LabelSet) -> None:
    dataset = load_coco_panoptic(write_panoptic(tmp_path, categories=CATEGORIES[:2]), label_set=label_set)
    assert told(dataset) == ["category id 12: is used 1 times and not listed"]


def test_missing_files_are_told_and_left_out(tmp_path: Path, label_set: LabelSet) -> None:
    root = write_panoptic(tmp_path)
    (root / "images" / "a.png").unlink()
    (root / "panoptic" / "a.truth.png").unlink()
    dataset = load_coco_panoptic(root, label_set=label_set)
    assert dataset.samples == ()
    assert told(dataset) == [
        f"a.png: the picture is missing: {root / 'images' / 'a.png'}",
        f"a.png: its segments are missing: {root / 'panoptic' / 'a.truth.png'}",
    ]


def test_a_picture_listed_or_annotated_twice_is_told(tmp_path: Path, label_set: LabelSet) -> None:
    pictures = [{"id": 5, "file_name": "a.png"}, {"id": 6, "file_name": "a.png"}]
    one = {"image_id": 5, "file_name": "a.truth.png", "segments_info": SEGMENTS}
    root = write_panoptic(tmp_path, images=pictures, annotations=[one, one, one | {"image_id": 7}])
    assert told(load_coco_panoptic(root, label_set=label_set)) == [
        "a.png: is listed 2 times",
        "a.png: has two panoptic annotations",
        "a.truth.png: belongs to picture 7, which is not listed",
    ]


def test_a_split_is_chosen_by_the_beginning_of_its_name(tmp_path: Path, label_set: LabelSet) -> None:
    root = write_panoptic(tmp_path, "official")
    for name in ("train2017", "val2017"):
        (root / "annotations" / f"panoptic_{name}.json").write_text(
            (root / "annotations" / "panoptic_tiny.json").read_text()
        )
    with pytest.raises(DataError, match="no split 'test'; there are: tiny, train2017, val2017"):
        load_coco_panoptic(root, "test", label_set)
    for split, prefer, expected in ((None, "train", "train2017"), (None, "val", "val2017"), ("ti", "train", "tiny")):
        dataset = load_coco_panoptic(root, split, label_set, prefer=prefer)
        assert expected in str(dataset.problems) or expected == "tiny"


def write_instances(root: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    """A plain folder of one picture of 8 x 10 pixels."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8)).save(root / "images" / "a.jpg")
    truth = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 10}],
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    (root / "annotations.json").write_text(json.dumps(truth | changes))
    return root


def annotation(segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 10, "iscrowd": 0, "segmentation": segmentation} | more


def test_masks_are_read_from_polygons_and_both_kinds_of_run_lengths(tmp_path: Path, label_set: LabelSet) -> None:
    box = np.zeros((8, 10), np.uint8)
    box[2:6, 3:7] = 1
    compressed = coco_mask.encode(np.asfortranarray(box))
    compressed["counts"] = compressed["counts"].decode()
    edges = np.flatnonzero(np.diff(box.ravel(order="F"), prepend=0, append=0))
    plain = {"size": [8, 10], "counts": np.diff(edges, prepend=0, append=80).tolist()}
    polygon = [[3, 2, 7, 2, 7, 6, 3, 6]]
    root = write_instances(tmp_path, [annotation(each) for each in (polygon, compressed, plain)])
    (sample,) = load_coco_instances(root, label_set=label_set).samples
    for each in sample.read_masks():
        np.testing.assert_array_equal(each.mask.decode(), box.astype(bool))
        assert (each.label_id, each.is_crowd) == (0, False)


def test_a_crowd_is_told_apart_from_an_object(tmp_path: Path, label_set: LabelSet) -> None:
    box = [[3, 2, 7, 2, 7, 6, 3, 6]]
    root = write_instances(tmp_path, [annotation(box), annotation(box, iscrowd=1)])
    (sample,) = load_coco_instances(root, label_set=label_set).samples
    assert [each.is_crowd for each in sample.read_masks()] == [False, True]


def test_a_picture_without_objects_is_a_sample(tmp_path: Path, label_set: LabelSet) -> None:
    (sample,) = load_coco_instances(write_instances(tmp_path, []), label_set=label_set).samples
    assert sample.read_masks() == []


def test_a_polygon_of_two_points_is_an_empty_mask(tmp_path: Path, label_set: LabelSet) -> None:
    (sample,) = load_coco_instances(
        write_instances(tmp_path, [annotation([[1, 1, 4, 4]])]), label_set=label_set
    ).samples
    (found,) = sample.read_masks()
    assert (found.mask.area(), found.mask.size) == (0, (8, 10))


def test_an_annotation_of_an_unlisted_picture_is_told(tmp_path: Path, label_set: LabelSet) -> None:
    root = write_instances(tmp_path, [annotation([], image_id=3)])
    assert told(load_coco_instances(root, label_set=label_set)) == [
        "annotation 1: belongs to picture 3, which is not listed"
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "can't be read"), ("[]", "can't be read"), ('{"images": []}', "no list of annotations and categories")],
)
def test_a_json_that_is_none_of_cocos_is_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(DataError, match=words):
        load_coco_instances(tmp_path)


def test_one_form_is_not_taken_for_the_other(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is it a panoptic file"):
        load_coco_instances(write_panoptic(tmp_path / "panoptic"))
    with pytest.raises(DataError, match="holds instances, not panoptic segments"):
        load_coco_panoptic(write_instances(tmp_path / "instances", [annotation([])]))
