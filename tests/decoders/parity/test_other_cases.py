"""Cases of other counts and sizes than the recorded ones, made by taking these apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from decoders.parity.report import CaseReport

Cases = Any
"""That of conftest.py."""
IMAGE, PICTURES, VIDEO = "image_dinov3_tiny.io", "image_dinov3_tiny.e2e", "video_dinov2_tiny.io"


def assert_passes(report: CaseReport) -> None:
    assert (report.problems, [str(c) for c in report.comparisons if not c.passed]) == ((), [])
    assert report.passed


def keep(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    tensors.clear()
    tensors.update(wanted)


@pytest.mark.parametrize("row", [0, 1])
def test_one_picture_of_a_batch(cases: Cases, row: int) -> None:
    cases.copy(IMAGE)
    rope = ("rope_cos", "rope_sin")
    cases.change_tensors(
        IMAGE, lambda tensors: keep(tensors, {n: t if n in rope else t[row : row + 1] for n, t in tensors.items()})
    )
    report = cases.run(IMAGE)
    assert_passes(report)
    assert len(report.comparisons) == 21


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_first_frames_of_a_clip(cases: Cases, frames: int) -> None:
    cases.copy(VIDEO)
    whole_clip = ("mean_class_logits", "vis.", "vps.", "vss.")  # and not vps_stream
    later = [f"tokens_in.{t}" for t in range(frames, 6)]
    cases.change_tensors(
        VIDEO,
        lambda tensors: keep(
            tensors,
            {
                n: t if n.startswith("tokens") else t[:frames]
                for n, t in tensors.items()
                if not n.startswith(whole_clip) and n not in later
            },
        ),
    )
    cases.change_facts(
        VIDEO,
        lambda facts: (
            facts.pop("tensors"),
            facts["tasks"].pop("vps"),
            facts["tasks"].update(vps_stream=facts["tasks"]["vps_stream"][:frames]),
            facts["config"].update(frames=frames),
        ),
    )
    report = cases.run(VIDEO)
    assert_passes(report)
    assert ("streams (there is one frame)" in report.skipped) is (frames == 1)


def test_frames_alone_without_any_results(cases: Cases) -> None:
    cases.copy(VIDEO)
    kept = ("frames_u8", "mask_logits", "class_logits")
    cases.change_tensors(VIDEO, lambda tensors: keep(tensors, {n: tensors[n] for n in kept}))
    cases.change_facts(VIDEO, lambda facts: (facts.pop("tasks"), facts["config"].pop("out_hw"), facts.pop("tensors")))
    assert_passes(cases.run(VIDEO))


def test_one_raw_picture_with_windows_of_the_other(cases: Cases) -> None:
    cases.copy(PICTURES)

    def change(tensors: dict[str, Tensor]) -> None:
        wanted = {n: t for n, t in tensors.items() if n.startswith(("image0", "panoptic0", "instance0"))}
        wanted |= {n: tensors[n][:1] for n in ("padded_u8", "mask_logits", "class_logits")}
        origins = tensors["sem_origins"]
        of_second = origins[:, 0] == 1
        wanted["sem_origins"] = origins[of_second] - torch.tensor([1, 0, 0], dtype=torch.int32)
        wanted["sem_image0_u8"] = tensors["sem_image1_u8"]
        wanted |= {f"semantic0.{part}": tensors[f"semantic1.{part}"] for part in ("scores_s4", "argmax")}
        wanted |= {n: tensors[n][of_second] for n in ("sem_crops_u8", "sem_mask_logits", "sem_class_logits")}
        keep(tensors, wanted)

    cases.change_tensors(PICTURES, change)
    cases.change_facts(PICTURES, lambda facts: facts.pop("tensors"))
    assert_passes(cases.run(PICTURES))


def test_pictures_of_a_merge_in_another_order(cases: Cases) -> None:
    name = cases.copy("post_panoptic_variants")
    order = [2, 0]

    def change_tensors(tensors: dict[str, Tensor]) -> None:
        wanted = {n: tensors[n][order] for n in ("mask_logits", "class_logits")}
        for run in range(2):
            for part in ("class_map", "segment_map"):
                wanted |= {f"run{run}.{part}.{new}": tensors[f"run{run}.{part}.{old}"] for new, old in enumerate(order)}
        keep(tensors, wanted)

    def change_facts(facts: dict[str, Any]) -> None:
        facts["image_sizes"] = [facts["image_sizes"][old] for old in order]
        facts["runs"] = facts["runs"][:2]
        for run in facts["runs"]:
            for part in ("scaled_sizes", "segments_id_class"):
                run[part] = [run[part][old] for old in order]
        facts.pop("tensors")

    cases.change_tensors(name, change_tensors)
    cases.change_facts(name, change_facts)
    assert_passes(cases.run(name))


def test_maps_that_are_sub_sampled(cases: Cases) -> None:
    name = cases.copy("post_panoptic_variants")
    cases.change_tensors(
        name,
        lambda tensors: keep(
            tensors,
            {
                f"{n[:-2]}_s3{n[-2:]}" if n.startswith("run") else n: t[::3, ::3] if n.startswith("run") else t
                for n, t in tensors.items()
            },
        ),
    )
    cases.change_facts(name, lambda facts: facts.pop("tensors"))
    report = cases.run(name)
    assert_passes(report)
    assert len(report.comparisons) == 40


@pytest.mark.parametrize("wrong", ["mask_logits", "mask_logits_s2"])
def test_a_result_may_be_there_whole_and_in_part_and_both_are_compared(cases: Cases, wrong: str) -> None:
    cases.copy(IMAGE)
    cases.change_tensors(IMAGE, lambda tensors: tensors.update(mask_logits_s2=tensors["mask_logits"][..., ::2, ::2]))
    assert_passes(cases.run(IMAGE))
    cases.change_tensors(IMAGE, lambda tensors: tensors[wrong].add_(0.01))
    failed = {c.name.partition(" ")[0] for c in cases.run(IMAGE).comparisons if not c.passed}
    assert failed == {wrong}


def test_one_file_may_hold_several_kinds(cases: Cases) -> None:
    """Given logits with instances and with class scores: both are compared."""
    name = cases.copy("post_instance")
    cases.copy("post_panoptic_variants")
    merge = cases.tensors("post_panoptic_variants")
    runs = cases.facts("post_panoptic_variants")["runs"]
    instances = cases.tensors(name)
    assert not instances.keys() & {n for n in merge if n.startswith("run")}
    cases.change_facts(name, lambda facts: facts.update(runs=runs[:1], stuff=[6, 7]))
    cases.change_tensors(name, lambda tensors: tensors.update({"run0.segment_map.0": merge["run0.segment_map.0"]}))
    report = cases.run(name)
    assert report.kinds == ("panoptic merge", "instances")
    assert not report.passed  # those maps are of other logits
