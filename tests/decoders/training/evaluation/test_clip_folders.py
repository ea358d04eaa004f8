"""Labelled video on disk: VIPSeg's layout and YouTube-VIS's, and what is said of what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from decoders.labels import LabelSet
from decoders.training.data.check import check_data
from decoders.training.data.folders import DataError
from decoders.training.data.samples import InstanceSample, PanopticSample, SemanticSample
from decoders.training.evaluation.clip_folders import holds_clips, open_clips

MAP = np.repeat([[1, 300, 300, 0]], 3, axis=0).astype(np.int32)
CATEGORIES = [
    {"id": 7, "name": "cat", "supercategory": "animal", "isthing": 1},
    {"id": 9, "name": "sky", "supercategory": "outside", "isthing": 0},
]


@pytest.fixture
def vipseg(tmp_path: Path) -> Path:
    """Two videos of two frames: a cat (300) and sky (1)."""
    videos, annotations = [], []
    for video in ("first", "second"):
        (tmp_path / "images" / video).mkdir(parents=True)
        (tmp_path / "panomasksRGB" / video).mkdir(parents=True)
        images, frames = [], []
        for number in range(2):
            name = f"{number:04d}"
            Image.new("RGB", (4, 3), "gray").save(tmp_path / "images" / video / f"{name}.jpg")
            rgb = np.stack([MAP & 255, MAP >> 8, MAP >> 16], axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(tmp_path / "panomasksRGB" / video / f"{name}.png")
            images.append({"id": f"{name}", "file_name": f"{name}.png", "height": 3, "width": 4})
            infos = [{"id": 1, "category_id": 9, "iscrowd": 0}, {"id": 300, "category_id": 7, "iscrowd": number}]
            frames.append({"image_id": name, "file_name": f"{name}.png", "segments_info": infos})
        videos.append({"video_id": video, "images": images})
        annotations.append({"video_id": video, "annotations": frames})
    index = {"videos": videos, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "panoptic_gt_VIPSeg_val.json").write_text(json.dumps(index))
    return tmp_path


@pytest.fixture
def youtube_vis(tmp_path: Path) -> Path:
    """One video of two frames with two cats, of which the second is out of view in the first frame."""
    (tmp_path / "JPEGImages" / "v1").mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (4, 3)).save(tmp_path / "JPEGImages" / "v1" / f"{number}.jpg")
    left, right = (np.asfortranarray(i == MAP).astype(np.uint8) for i in (1, 300))
    compressed = coco_mask.encode(right)
    in_numbers = {"size": [3, 4], "counts": [0, 3, 9]}  # column by column: the first one is inside
    entries: list[dict[str, Any]] = [
        {"id": 1, "video_id": 5, "category_id": 7, "iscrowd": 0, "segmentations": [in_numbers, in_numbers]},
        {
            "id": 2,
            "video_id": 5,
            "category_id": 7,
            "iscrowd": 0,
            "segmentations": [None, compressed | {"counts": compressed["counts"].decode()}],
        },
    ]
    assert (coco_mask.decode(coco_mask.frPyObjects(in_numbers, 3, 4)) == left).all()
    videos = [{"id": 5, "height": 3, "width": 4, "file_names": ["v1/0.jpg", "v1/1.jpg"]}]
    index = {"videos": videos, "annotations": entries, "categories": CATEGORIES[:1]}
    (tmp_path / "instances.json").write_text(json.dumps(index))
    return tmp_path


def test_vipsegs_clips_hold_their_frames_in_order_with_ids_that_last(vipseg: Path, label_set: LabelSet) -> None:
    assert holds_clips(vipseg)
    data = open_clips("panoptic", vipseg, "val", label_set)
    assert check_data(data.frames) == []
    assert [clip.name for clip in data.clips] == ["first", "second"]
    first, last = data.clips[0].frames
    assert (first.name, last.name) == ("first/0000.png", "first/0001.png")
    assert isinstance(last, PanopticSample)
    truth = last.read_segments()
    assert (truth.segment_map == MAP).all()
    assert (truth.labels, truth.crowd_ids) == ({1: 3, 300: 0}, {300})
    assert last.read_image().size == (4, 3)


def test_vipsegs_clips_serve_semantic_heads(vipseg: Path, label_set: LabelSet) -> None:
    frame = open_clips("semantic", vipseg, None, label_set).clips[0].frames[0]
    assert isinstance(frame, SemanticSample)
    assert frame.read_label_map()[0].tolist() == [3, 0, 0, -1]


def test_youtube_vis_objects_keep_their_place_when_out_of_view(youtube_vis: Path, label_set: LabelSet) -> None:
    data = open_clips("instance", youtube_vis, None, label_set)
    [clip] = data.clips
    assert clip.name == "v1"
    areas = []
    for frame in clip.frames:
        assert isinstance(frame, InstanceSample)
        areas.append([each.mask.area() for each in frame.read_masks()])
        assert {each.label_id for each in frame.read_masks()} == {0}
    assert areas == [[3, 0], [3, 6]]


def test_everything_missing_is_told_by_name_and_at_once(vipseg: Path, label_set: LabelSet) -> None:
    (vipseg / "images" / "first" / "0001.jpg").unlink()
    (vipseg / "panomasksRGB" / "second" / "0000.png").unlink()
    with pytest.raises(DataError) as refused:
        check_data(open_clips("panoptic", vipseg, None, label_set).frames)
    assert "first/0001.png: " in str(refused.value)
    assert "second/0000.png: " in str(refused.value)


def test_a_category_that_the_label_set_has_not_is_an_error(vipseg: Path) -> None:
    other = LabelSet("other", open_clips("panoptic", vipseg).frames.label_set.labels[:1])  # type: ignore[union-attr]
    with pytest.raises(DataError, match="category 'sky'"):
        check_data(open_clips("panoptic", vipseg, None, other).frames)


def test_data_without_videos_holds_no_clips(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    (tmp_path / "broken.json").write_text("{")
    assert not holds_clips(tmp_path)
    with pytest.raises(DataError, match="there are: none"):
        open_clips("panoptic", tmp_path)


def test_the_form_that_a_kind_needs_is_told(youtube_vis: Path) -> None:
    with pytest.raises(DataError, match="one JSON file of panoptic"):
        open_clips("panoptic", youtube_vis)
