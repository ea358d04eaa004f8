"""Everything that is wrong with the data is told by name, at once, errors apart from what is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoders.labels import LabelSet
from decoders.masks import encode
from decoders.training.data.check import MOST_LINES, check_data, check_sample
from decoders.training.data.folders import DataError
from decoders.training.data.samples import (
    IGNORE,
    ClassSample,
    Dataset,
    DepthSample,
    ImageFile,
    InstanceMask,
    InstanceSample,
    PanopticSample,
    Problem,
    Sample,
    Segments,
    SemanticSample,
)

IMAGE = Image.new("RGB", (6, 4))
ONES = np.ones((4, 6), np.int32)


def image() -> Image.Image:
    return IMAGE


def panoptic(map_: np.ndarray = ONES, labels: dict[int, int] | None = None) -> PanopticSample:
    return PanopticSample("a", image, lambda: Segments(map_, {1: 0} if labels is None else labels, frozenset()))


@pytest.mark.parametrize("kind", ["panoptic", "instance", "semantic", "depth", "classification"])
def test_good_samples_of_every_kind_pass(
    kind: str, draw_samples: Callable[..., list[Sample]], label_set: LabelSet
) -> None:
    told: list[int] = []
    dataset = Dataset("drawn", tuple(draw_samples(kind)), label_set)
    assert check_data(dataset, progress=told.append) == []
    assert told == [1, 2, 3, 4, 5]


def misread(error: Exception) -> Callable[[], Any]:
    def read() -> Any:
        raise error

    return read


@pytest.mark.parametrize(
    ("sample", "what", "is_error"),
    [
        (replace(panoptic(), read_image=misread(OSError("broken"))), "the picture can't be read (broken)", True),
        (replace(panoptic(), read_segments=misread(OSError("torn"))), "its truth can't be read (torn)", True),
        (panoptic(ONES[:2]), "the picture has 6 x 4 pixels, its truth 6 x 2", True),
        (panoptic(ONES, {1: 0, 9: 0}), "segment 9 is in the JSON and not in the PNG", True),
        (panoptic(2 * ONES, {}), "1 segments of the PNG are not in the JSON and count as unlabelled", False),
        (panoptic(0 * ONES, {}), "has no segments", False),
        (panoptic(ONES, {1: 5}), "class 5 is none of the 5", True),
        (
            InstanceSample("a", image, lambda: [InstanceMask(0, encode(np.zeros((4, 6), bool)), False)]),
            "an object has an empty mask, which is left out",
            False,
        ),
        (
            InstanceSample("a", image, lambda: [InstanceMask(0, encode(np.ones((6, 4), bool)), False)]),
            "the picture has 6 x 4 pixels, its truth 4 x 6",
            True,
        ),
        (SemanticSample("a", image, lambda: ONES * IGNORE), "no pixel has a class", False),
        (
            SemanticSample("a", image, misread(ValueError("a.png holds 77"))),
            "its truth can't be read (a.png holds 77)",
            True,
        ),
        (DepthSample("a", image, lambda: np.full((4, 6), np.nan, np.float32)), "its depth is unknown everywhere", True),
        (ClassSample("a", image, 7), "class 7 is none of the 5", True),
    ],
)
def test_each_thing_that_is_wrong_is_told(sample: Sample, what: str, is_error: bool) -> None:
    assert Problem("a", what, is_error) in check_sample(sample, 5)


def test_errors_are_told_together_and_warnings_are_returned(label_set: LabelSet, tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    unreadable = ClassSample("b", ImageFile(tmp_path / "b.jpg"), 0)
    missing = Problem("c", "the picture is missing")
    dataset = Dataset(
        "mine", (ClassSample("a", image, 9), unreadable, ClassSample("a", image, 0)), label_set, (missing,)
    )
    with pytest.raises(DataError) as error:
        check_data(dataset)
    first, *others = str(error.value).splitlines()
    assert first == "mine: 4 errors in the data"
    assert others[:2] == ["  c: the picture is missing", "  a: occurs 2 times"]
    assert others[2] == "  a: class 9 is none of the 5"
    assert others[3].startswith("  b: the picture can't be read (cannot identify image file")
    only_warnings = Dataset("mine", (panoptic(0 * ONES, {}),), label_set)
    assert [str(problem) for problem in check_data(only_warnings)] == ["a: has no segments"]


def test_many_errors_are_counted_beyond_the_first_fifty(label_set: LabelSet) -> None:
    dataset = Dataset("mine", tuple(ClassSample(str(i), image, 9) for i in range(60)), label_set)
    with pytest.raises(DataError) as error:
        check_data(dataset)
    lines = str(error.value).splitlines()
    assert lines[0] == "mine: 60 errors in the data"
    assert len(lines) == 1 + MOST_LINES + 1
    assert lines[-1] == "  … and 10 more"


def test_no_pictures_is_an_error(label_set: LabelSet) -> None:
    with pytest.raises(DataError, match="mine: no pictures"):
        check_data(Dataset("mine", (), label_set))
