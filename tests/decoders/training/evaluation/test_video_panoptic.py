"""VPQ and STQ: against recorded figures of the published code, and what identities that don't hold cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from decoders.labels import LabelSet
from decoders.training.evaluation.clip_overlaps import ClipOverlaps
from decoders.training.evaluation.measure import Counts
from decoders.training.evaluation.segment_matching import count_overlaps
from decoders.training.evaluation.segmentation_tracking_quality import SegmentationTrackingQuality
from decoders.training.evaluation.video_panoptic_quality import WINDOWS, VideoPanopticQuality


def read_clip(case: dict[str, Any]) -> ClipOverlaps:
    predicted, true = (np.array(case[side], dtype=np.int32) for side in ("predicted", "true"))
    labels = [{int(i): label for i, label in case[f"{side}_labels"].items()} for side in ("predicted", "true")]
    overlaps = tuple(count_overlaps(p, t) for p, t in zip(predicted, true, strict=True))
    return ClipOverlaps(overlaps, labels[0], labels[1], frozenset(case["crowd_ids"]))


def drawn_clip(predicted: list[str], true: list[str], labels: dict[int, int]) -> ClipOverlaps:
    """A clip of one-row frames from digits; true ids are the predicted ones plus 4."""

    def frame(row: str) -> np.ndarray:
        return np.array([[int(digit) for digit in row]], dtype=np.int32)

    return ClipOverlaps(
        tuple(count_overlaps(frame(p), frame(t)) for p, t in zip(predicted, true, strict=True)),
        labels,
        {i + 4: label for i, label in labels.items()},
        frozenset(),
    )


@pytest.fixture
def clips(read_case: Callable[[str], Any]) -> list[ClipOverlaps]:
    return [read_clip(case) for case in read_case("video_panoptic")["clips"]]


def test_vpq_of_every_window_is_that_of_vipsegs_code(
    clips: list[ClipOverlaps], label_set: LabelSet, read_case: Callable[[str], Any], once: Callable[[int], Counts]
) -> None:
    recorded = read_case("video_panoptic")["vpq"]
    measure = VideoPanopticQuality(label_set)
    for clip in clips:
        measure.add(clip)
    figures = measure.figures(once(len(clips)))
    assert min(len(clip.frames) for clip in clips) < max(WINDOWS)  # a clip shorter than a window is among them
    assert {f"VPQ{k}": recorded[str(k)]["figures"]["PQ"] for k in WINDOWS} == pytest.approx(
        {name: value for name, value in figures.items() if name[3:].isdigit()}
    )
    for group in ("", "_things", "_stuff"):
        mean = np.mean([recorded[str(k)]["figures"][f"PQ{group}"] for k in WINDOWS])
        assert figures[f"VPQ{group}"] == pytest.approx(mean)


@pytest.mark.parametrize(("size", "key"), [(5, "stq"), (1, "stq_of_first")])
def test_stq_is_that_of_deeplab2s_code(
    size: int,
    key: str,
    clips: list[ClipOverlaps],
    label_set: LabelSet,
    read_case: Callable[[str], Any],
    once: Callable[[int], Counts],
) -> None:
    measure = SegmentationTrackingQuality(label_set)
    for clip in clips[:size]:
        measure.add(clip)
    assert measure.figures(once(size)) == pytest.approx(read_case("video_panoptic")[key])


@pytest.mark.parametrize("measure_class", [VideoPanopticQuality, SegmentationTrackingQuality])
def test_a_clip_that_counts_twice_is_as_if_it_were_there_twice(
    measure_class: Any, clips: list[ClipOverlaps], label_set: LabelSet, once: Callable[[int], Counts]
) -> None:
    short, long = measure_class(label_set), measure_class(label_set)
    for clip in clips[:3]:
        short.add(clip)
    for number in (1, 1, 2):
        long.add(clips[number])
    assert short.figures(np.array([0, 2, 1])) == pytest.approx(long.figures(once(3)))


def test_identities_that_change_in_the_middle_cost_windows_of_two_frames_and_association(label_set: LabelSet) -> None:
    labels = {1: 0, 2: 0}
    true = ["5566"] * 2
    kept, swapped = drawn_clip(["1122", "1122"], true, labels), drawn_clip(["1122", "2211"], true, labels)
    counts = np.ones(1, dtype=np.int64)
    figures = {}
    for name, clip in (("kept", kept), ("swapped", swapped)):
        vpq, stq = VideoPanopticQuality(label_set), SegmentationTrackingQuality(label_set)
        vpq.add(clip)
        stq.add(clip)
        figures[name] = vpq.figures(counts) | stq.figures(counts)
    assert {figures["kept"][name] for name in ("VPQ1", "VPQ2", "VPQ", "AQ", "SQ", "STQ")} == {100}
    assert (figures["swapped"]["VPQ1"], figures["swapped"]["VPQ2"]) == (100, 0)
    # Every tube shares half of each object: two parts of 1/2, each with an IoU of 1/3.
    assert figures["swapped"]["AQ"] == pytest.approx(100 / 3)
    assert figures["swapped"]["SQ"] == 100


def test_pixels_left_void_are_one_more_class_of_stq(label_set: LabelSet) -> None:
    measure = SegmentationTrackingQuality(label_set)
    measure.add(drawn_clip(["1110"], ["5555"], {1: 3}))
    assert measure.figures(np.ones(1, dtype=np.int64))["SQ"] == pytest.approx(100 * (0.75 + 0) / 2)
    assert measure.per_class() == {"sky": {"IoU": 75}}


def test_stq_without_things_has_no_association(label_set: LabelSet) -> None:
    measure = SegmentationTrackingQuality(label_set)
    measure.add(drawn_clip(["1111"], ["5555"], {1: 3}))
    figures = measure.figures(np.ones(1, dtype=np.int64))
    assert figures["SQ"] == 100
    assert np.isnan([figures["AQ"], figures["STQ"]]).all()
