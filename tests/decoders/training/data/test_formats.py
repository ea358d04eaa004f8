"""Opening a folder for a kind of truth, whichever layout it has; sample data are read where they are present."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoders.labels import LabelSet, load_label_set
from decoders.training.data.check import check_sample
from decoders.training.data.folders import DataError
from decoders.training.data.formats import KINDS, open_data
from decoders.training.data.samples import Dataset, Sample

SHARED = Path(__file__).parents[5] / "shared" / "data"


@pytest.mark.parametrize(
    ("kind", "folder", "split", "count", "labels"),
    [
        ("panoptic", "coco128", None, 100, "coco_supercategories"),
        ("panoptic", "coco128", "val", 100, "coco_panoptic"),
        ("instance", "coco128", None, 100, "coco_supercategories"),
        ("semantic", "coco128", None, 100, None),
        ("depth", "rgbd_7scenes", "0:695", 140, None),
        ("classification", "clothing10", None, 400, None),
    ],
)
def test_sample_data_are_whole(kind: str, folder: str, split: str | None, count: int, labels: str | None) -> None:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"../shared/data/{folder} is absent")
    label_set = None if labels is None else load_label_set(labels)
    dataset: Dataset[Sample] = open_data(kind, SHARED / folder, split, label_set)
    assert len(dataset.samples) == count
    assert dataset.problems == ()
    num_labels = 0 if dataset.label_set is None else len(dataset.label_set)
    assert [problem for sample in dataset.samples[:3] for problem in check_sample(sample, num_labels)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_such_data_is_refused(kind: str, tmp_path: Path, label_set: LabelSet) -> None:
    with pytest.raises(DataError):
        open_data(kind, tmp_path, label_set=label_set)
    with pytest.raises(DataError, match="no folder"):
        open_data(kind, tmp_path / "absent", label_set=label_set)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no kind of data 'pose'; there are: panoptic,"):
        open_data("pose", tmp_path)
