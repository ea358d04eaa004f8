"""Recorded cases, whole and broken: they pass as they are, under any name, and fail if anything in them is changed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from decoders.parity.cases import NoCasesError
from decoders.parity.report import CaseReport
from decoders.parity.runner import run_folder

Cases = Any
"""That of conftest.py."""
PACKAGED = Path(__file__).parents[2] / "golden"
IMAGE, MASKED, PICTURES = "image_dinov2_tiny.io", "image_dinov3_tiny.io", "image_dinov3_tiny.e2e"
VIDEO, CLIP, MERGE = "video_dinov2_tiny.io", "video_post", "post_panoptic_variants"
CASES = (
    *(IMAGE, MASKED, PICTURES, VIDEO, "video_dinov3_tiny.io", CLIP, "post_panoptic", MERGE),
    *("post_instance", "post_semantic", "preproc", "dinov2_resample"),
)
"""One of each kind at least; the full-size one is in `test_every_shared_case_passes`."""
INPUTS = re.compile(r"(sem_)?image\d*_u8(\.\d+)?|frames_u8|\w+_src|class_logits_per_frame")
LOGITS_GIVEN = ("post_", "video_post")


def failures(report: CaseReport) -> list[str]:
    return [comparison.name for comparison in report.comparisons if not comparison.passed]


def run_all(folder: Path) -> list[CaseReport]:
    return run_folder(folder, lambda report: None)


# As they are


def test_every_packaged_case_passes() -> None:
    reports = run_all(PACKAGED)
    assert [(r.name, r.problems, failures(r)) for r in reports if not r.passed] == []
    assert {kind for report in reports for kind in report.kinds} >= {
        "stages of a picture model",
        "video model",
        "panoptic merge",
        "scaling and padding",
        "resampling",
    }


def test_every_shared_case_passes(golden_dir: Path) -> None:
    seen: list[CaseReport] = []
    begun: list[str] = []
    reports = run_folder(golden_dir, seen.append, begun.append)
    assert [(r.name, r.problems, failures(r)) for r in reports if not r.passed] == []
    assert reports == seen
    assert begun == [report.name for report in reports] == sorted(path.stem for path in golden_dir.glob("*.json"))


def test_cases_are_told_by_what_they_hold_and_not_by_their_names(cases: Cases) -> None:
    names = [name for name in CASES if (PACKAGED / f"{name}.json").is_file()]
    for number, name in enumerate(names):
        new = cases.copy(name, f"case{len(names) - number}")
        cases.change_facts(new, lambda facts: (facts.pop("case"), facts.get("config", {}).pop("name", None)))
    reports = run_all(cases.folder)
    assert [(r.name, r.problems, failures(r)) for r in reports if not r.passed] == []
    assert len(reports) == len(names)


def test_weights_are_found_under_the_name_that_a_case_gives(cases: Cases) -> None:
    cases.copy(IMAGE)
    for kind in ("json", "safetensors"):
        (cases.folder / f"{IMAGE}.{kind}").rename(cases.folder / f"other.{kind}")
    assert cases.run("other").passed  # by "case"
    cases.change_facts("other", lambda facts: facts.pop("case"))
    cases.change_facts("other", lambda facts: facts["config"].pop("name"))
    cases.change_facts("other", lambda facts: facts.update(weights="image_dinov2_tiny"))
    assert cases.run("other").passed
    cases.change_facts("other", lambda facts: facts.pop("weights"))
    assert "no file of decoder weights" in cases.run("other").problems[0]


# Nothing passes in silence


def perturbed(name: str, tensor: Tensor) -> Tensor:
    """A tensor that is wrong in one number or byte; a map that is wrong in one pixel of a hundred."""
    changed = tensor.clone()
    flat = changed.view(-1)
    if tensor.is_floating_point():
        flat[len(flat) // 2] += 0.01
    elif name.startswith(("padded", "crops", "sem_crops")) or "origins" in name:
        flat[len(flat) // 2] += 1
    else:
        flat[::100] += 1
    return changed


def expected_tensors(cases: Cases, name: str) -> dict[str, Tensor]:
    given = {"mask_logits", "class_logits"} if name.startswith(LOGITS_GIVEN) else set()
    return {n: t for n, t in cases.tensors(name).items() if not INPUTS.fullmatch(n) and n not in given}


@pytest.mark.parametrize("name", CASES)
def test_every_expected_tensor_is_compared(cases: Cases, name: str) -> None:
    cases.copy(name)
    values = {
        tensor: perturbed(tensor, value)
        for tensor, value in expected_tensors(cases, name).items()
        if not re.search(r"(^|\.)(labels|query)(\.|$)", tensor)  # by these, lists are matched: the next test
    }
    cases.change_tensors(name, lambda tensors: tensors.update(values))
    report = cases.run(name)
    assert report.problems == ()
    assert set(values) <= {comparison.partition(" ")[0] for comparison in failures(report)}
    assert not report.passed


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        *(("post_instance", "labels.0"), ("post_instance", "query.1"), (PICTURES, "instance0.labels")),
        *((VIDEO, "vis.labels"), (VIDEO, "vis.query"), (CLIP, "vis.labels"), (CLIP, "vis.query")),
    ],
)
def test_an_instance_under_another_label_or_query_fails(cases: Cases, name: str, tensor: str) -> None:
    cases.copy(name)
    cases.change_tensors(name, lambda tensors: tensors[tensor][1:2].add_(1))
    assert failures(cases.run(name))


def follow(facts: Any, path: str) -> tuple[Any, Any]:
    """The container and the key of the last step of a dotted path."""
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    for step in steps:
        facts = facts[step]
    return facts, last


def change_fact(cases: Cases, name: str, path: str, value: object) -> None:
    def change(facts: dict[str, Any]) -> None:
        container, key = follow(facts, path)
        assert container[key] != value
        container[key] = value

    cases.change_facts(name, change)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        (MERGE, "runs.0.segments_id_class.0.1", [1, 3]),
        (MERGE, "runs.3.segments_id_class.1", []),
        (MERGE, "runs.1.segments_id_class.2", [[0, 5]]),
        (MERGE, "runs.2.scaled_sizes.0", [41, 96]),
        (PICTURES, "tasks.panoptic.segments.1.2", [2, 8]),
        (VIDEO, "tasks.vps.segments.3.category_id", 5),
        (VIDEO, "tasks.vps.query.7", 19),
        (VIDEO, "tasks.vps_stream.2.segments.0.id", 7),
        (VIDEO, "padded_hw", [64, 128]),
        (VIDEO, "pixel_mean", [127.5, 127.5, 127.5]),
        (CLIP, "vps.segments.1.isthing", True),
        (CLIP, "vps.query.0", 2),
        (CLIP, "vps_threshold_0$99999.segments", [{"id": 1, "isthing": True, "category_id": 0}]),
        (CLIP, "vps_threshold_0$99999.all_zero", False),
        ("post_instance", "scaled_sizes.1", [160, 121]),
        ("post_semantic", "scaled_sizes.2", [128, 193]),
        ("preproc", "items.0.scaled", [107, 160]),
        ("preproc", "detectron2_shortest_edge.5.out", [1080, 720]),
    ],
)
def test_a_stated_list_that_is_changed_fails(cases: Cases, name: str, path: str, value: object) -> None:
    cases.copy(name)
    cases.change_facts(name, lambda facts: facts.update({k.replace(".", "$"): facts.pop(k) for k in list(facts)}))
    change_fact(cases, name, path, value)
    cases.change_facts(name, lambda facts: facts.update({k.replace("$", "."): facts.pop(k) for k in list(facts)}))
    report = cases.run(name)
    assert len(failures(report)) == 1
    assert report.problems == ()


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        (IMAGE, "config.interaction", [1, 2, 3, 5]),
        (IMAGE, "config.heads", 8),
        (IMAGE, "config.img_size", [112, 80]),
        (PICTURES, "config.img_size", [128, 96]),
        (PICTURES, "tasks.panoptic.mask_thresh", 0.999),
        (PICTURES, "tasks.panoptic.overlap_thresh", 1.5),
        (PICTURES, "tasks.panoptic.stuff", []),
        (PICTURES, "tasks.panoptic.void_class", 9),
        (PICTURES, "tasks.panoptic.void_segment", 0),
        (PICTURES, "tasks.instance.topk", 7),
        (PICTURES, "tasks.semantic.img_size", [64, 64]),
        (VIDEO, "config.heads", 4),
        (VIDEO, "config.out_hw", [108, 72]),
        (VIDEO, "size_divisibility", 64),
        (VIDEO, "tasks.vis.max_num", 6),
        (VIDEO, "tasks.vps.num_things", 4),
        (VIDEO, "tasks.vps.overlap_threshold", 0.3),
        (CLIP, "output_size", [135, 81]),
        (CLIP, "img_size", [90, 149]),
        (CLIP, "first_resize_size", [128, 160]),
        (CLIP, "max_num", 9),
        (CLIP, "num_things", 8),
        (CLIP, "object_mask_threshold", 0.9999),
        (CLIP, "overlap_threshold", 0.99),
        (MERGE, "img_size", [96, 128]),
        (MERGE, "image_sizes.1", [121, 80]),
        (MERGE, "runs.0.mask_thresh", 0.3),
        (MERGE, "runs.0.overlap_thresh", 0.95),
        ("post_panoptic", "runs.0.stuff", [2, 3]),
        ("post_instance", "topk", 10),
        ("post_instance", "img_size", [160, 192]),
        ("post_semantic", "img_size", [96, 96]),
        ("post_semantic", "image_sizes.0", [213, 160]),
        ("preproc", "items.1.img_size", [160, 192]),
        ("preproc", "detectron2_shortest_edge.0.min_size", 449),
        ("preproc", "detectron2_shortest_edge.18.max_size", 1334),
        ("dinov2_resample", "dst_grid", [8, 6]),
        ("dinov2_resample", "dst_patch", 15),
    ],
)
def test_every_parameter_is_taken_from_the_case(cases: Cases, name: str, path: str, value: object) -> None:
    cases.copy(name)
    change_fact(cases, name, path, value)
    assert not cases.run(name).passed


@pytest.mark.parametrize(
    ("name", "tensor", "atol", "rtol"),
    [
        (IMAGE, "mask_logits", 2e-4, 1e-4),
        (IMAGE, "class_logits", 1e-4, 0),
        (IMAGE, "rope_cos", 1e-6, 0),
        (IMAGE, "feature_norm.0", 5e-5, 0),
        (IMAGE, "feature_bn.3", 5e-5, 0),
        (IMAGE, "tokens_out", 5e-5, 0),
        (MASKED, "masked.class_logits.1", 1e-4, 0),
        (VIDEO, "query_state", 5e-5, 0),
        (VIDEO, "vis.scores", 1e-4, 0),
        (PICTURES, "instance0.scores", 1e-4, 0),
        (PICTURES, "semantic1.scores_s4", 2e-5, 0),
        ("post_instance", "scores.1", 1e-5, 0),
        ("post_semantic", "scores.2", 1e-5, 0),
        ("dinov2_resample", "pos_embed_dst", 1e-5, 0),
    ],
)
def test_a_number_may_be_off_by_its_tolerance_and_no_more(
    cases: Cases, name: str, tensor: str, atol: float, rtol: float
) -> None:
    cases.copy(name)
    wanted = cases.tensors(name)[tensor].view(-1)
    allowed = atol + rtol * wanted[0].abs().item()
    for amount, passes in ((0.3 * allowed, True), (1.7 * allowed, False)):  # our own rounding counts as well
        cases.change_tensors(name, lambda tensors, amount=amount: tensors[tensor].view(-1)[0].add_(amount))
        assert cases.run(name).passed is passes


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        *((MERGE, "run1.segment_map.0"), (MERGE, "run1.class_map.0"), (VIDEO, "vps.map"), (VIDEO, "vis.masks")),
        *(("post_instance", "masks.0"), ("post_semantic", "argmax.1")),
    ],
)
def test_a_map_may_differ_in_one_pixel_of_ten_thousand_and_no_more(cases: Cases, name: str, tensor: str) -> None:
    cases.copy(name)
    most = int(1e-4 * cases.tensors(name)[tensor].numel())

    def flip(first: int, end: int) -> Callable[[dict[str, Tensor]], object]:
        return lambda tensors: tensors[tensor].view(-1)[first:end].bitwise_xor_(1)

    cases.change_tensors(name, flip(0, most))
    assert cases.run(name).passed
    cases.change_tensors(name, flip(most, most + 1))
    assert failures(cases.run(name)) == [tensor]


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_that_nothing_compares_is_a_failure(cases: Cases, name: str) -> None:
    cases.copy(name)
    cases.change_tensors(name, lambda tensors: tensors.update(surprise=torch.ones(3)))
    report = cases.run(name)
    assert not report.passed
    assert report.problems == ("not understood, nothing compares: surprise",)
    assert report.comparisons and not failures(report)


def test_a_case_of_no_known_kind_is_a_failure(cases: Cases) -> None:
    cases.write("riddle", {"case": "riddle"}, {"answer": torch.ones(3)})
    report = cases.run("riddle")
    assert not report.passed
    assert "not understood" in report.problems[0]
    cases.write("nothing", {"case": "nothing"}, {})
    assert not cases.run("nothing").passed


def test_given_logits_without_anything_expected_of_them_are_a_failure(cases: Cases) -> None:
    cases.copy(MERGE)
    cases.change_tensors(MERGE, lambda tensors: [tensors.pop(t) for t in list(tensors) if t.startswith("run")])
    assert "not understood" in cases.run(MERGE).problems[0]


# Parts of cases


@pytest.mark.parametrize(
    ("name", "gone", "told"),
    [
        (IMAGE, ("rope_cos", "rope_sin", "feature_bn.0", "tokens_in"), "rope_cos"),
        (IMAGE, ("mask_logits", "class_logits"), "mask_logits"),
        (PICTURES, ("padded_u8", "mask_logits", "panoptic0.class_map", "instance1.scores"), "padded_u8"),
        (VIDEO, ("query_state", "tokens_in.5", "vps_stream.map", "vis.query"), "query_state"),
        (CLIP, ("mean_class_logits", "vss.map", "vis.query", "vis.scores"), "vss.map"),
        (CLIP, ("class_logits_per_frame",), "class_logits_per_frame"),
        (MERGE, ("run0.class_map.0", "run3.segment_map.2"), "run0.class_map.0"),
        ("post_instance", ("query.0", "scores.1"), "query.0"),
        ("post_semantic", ("crops_u8", "image_u8.0", "origins", "argmax.1"), "origins"),
        ("preproc", ("image_u8.2", "padded_u8.2"), "padded_u8.2"),
        ("dinov2_resample", ("pos_embed_src", "pos_embed_dst"), "pos_embed_dst"),
    ],
)
def test_what_a_case_lacks_is_skipped_and_told(cases: Cases, name: str, gone: tuple[str, ...], told: str) -> None:
    cases.copy(name)
    cases.change_tensors(name, lambda tensors: [tensors.pop(tensor) for tensor in gone])
    report = cases.run(name)
    assert (report.problems, failures(report)) == ((), [])
    assert any(skipped.partition(" ")[0] == told for skipped in report.skipped)


def test_a_case_may_hold_a_size_table_and_no_tensors(cases: Cases) -> None:
    cases.copy("preproc")
    (cases.folder / "preproc.safetensors").unlink()
    cases.change_facts("preproc", lambda facts: (facts.pop("tensors"), facts.pop("items")))
    report = cases.run("preproc")
    assert report.passed
    assert len(report.comparisons) == 1


@pytest.mark.parametrize("step", [2, 3, 5])
def test_scores_may_be_sub_sampled_in_any_step_without_a_word_on_it(cases: Cases, step: int) -> None:
    name = cases.copy("post_semantic")

    def change(tensors: dict[str, Tensor]) -> None:
        for scores in ("scores.0", "scores.2", "crop0_scores"):
            tensors[scores] = tensors[scores][:, ::step, ::step]

    cases.change_tensors(name, change)
    cases.change_facts(name, lambda facts: (facts.pop("semantics"), facts.pop("scores_stride")))
    report = cases.run(name)
    assert (report.problems, failures(report)) == ((), [])
    wrong = cases.tensors(name)["scores.2"]
    wrong[4, 3, 5] += 3e-5
    cases.change_tensors(name, lambda tensors: tensors.update({"scores.2": wrong}))
    assert failures(cases.run(name)) == ["scores.2"]


def test_instances_of_equal_score_are_matched_by_their_masks(cases: Cases) -> None:
    cases.copy("post_instance")
    report = cases.run("post_instance")

    def change(tensors: dict[str, Tensor]) -> None:
        tensors.pop("query.0")
        order = torch.randperm(len(tensors["labels.0"]))
        for part in ("labels.0", "scores.0", "masks.0"):
            tensors[part] = tensors[part][order]

    cases.change_tensors("post_instance", change)
    assert cases.run("post_instance").passed
    assert report.passed


# Broken files


def test_a_case_without_its_weights_fails_and_the_others_run(cases: Cases) -> None:
    cases.copy(IMAGE)
    cases.copy(MERGE)
    (cases.folder / "image_dinov2_tiny.ckpt.safetensors").unlink()
    broken, whole = run_all(cases.folder)
    assert whole.passed
    assert not broken.passed
    assert "no file of decoder weights, such as image_dinov2_tiny.ckpt.safetensors" in broken.problems[0]


def test_an_encoder_that_is_nowhere_is_told(cases: Cases) -> None:
    cases.copy(IMAGE)
    (cases.folder / "image_dinov2_tiny.encoder.safetensors").unlink()
    assert "no encoder weights" in cases.run(IMAGE).problems[0]


@pytest.mark.parametrize("file", [f"{IMAGE}.safetensors", "image_dinov2_tiny.ckpt.safetensors"])
@pytest.mark.parametrize("size", [0, 7, 5000])
def test_a_file_that_is_cut_short_is_told_and_the_others_run(cases: Cases, file: str, size: int) -> None:
    cases.copy(IMAGE)
    cases.copy(MERGE)
    path = cases.folder / file
    path.write_bytes(path.read_bytes()[:size])
    broken, whole = run_all(cases.folder)
    assert whole.passed
    assert not broken.passed
    assert "fetch it again" in broken.problems[0]


@pytest.mark.parametrize("content", ["{", "[1, 2]", "", "\x00\xff"])
def test_facts_that_are_no_json_object_are_told(cases: Cases, content: str) -> None:
    cases.copy(MERGE)
    (cases.folder / f"{MERGE}.json").write_text(content)
    report = cases.run(MERGE)
    assert not report.passed
    assert f"{MERGE}.json" in report.problems[0]


@pytest.mark.parametrize("kind", ["json", "safetensors"])
def test_half_of_a_case_is_a_failure(cases: Cases, kind: str) -> None:
    cases.copy(MERGE)
    (cases.folder / f"{MERGE}.{kind}").unlink()
    (report,) = run_all(cases.folder)
    assert not report.passed
    assert f"{MERGE}.{kind}" in report.problems[0]


@pytest.mark.parametrize("path", ["runs", "img_size", "image_sizes"])
def test_a_parameter_that_is_missing_is_named(cases: Cases, path: str) -> None:
    cases.copy(MERGE)
    cases.change_facts(MERGE, lambda facts: facts.pop(path))
    report = cases.run(MERGE)
    assert report.problems == (f"{MERGE}.json does not say {path}",)


@pytest.mark.parametrize("value", [None, "96", [96], {"h": 96}, [[1]], -5])
def test_a_parameter_of_nonsense_fails_the_case_alone(cases: Cases, value: object) -> None:
    cases.copy(MERGE)
    cases.copy("dinov2_resample")
    change_fact(cases, MERGE, "img_size", value)
    whole, broken = run_all(cases.folder)
    assert whole.passed
    assert not broken.passed and broken.problems


def test_a_folder_without_a_case_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoCasesError, match="no case in"):
        run_all(tmp_path)
    (tmp_path / "README.md").write_text("nothing here")
    shutil.copy(PACKAGED / "image_dinov2_tiny.ckpt.safetensors", tmp_path)
    with pytest.raises(NoCasesError, match="no case in"):
        run_all(tmp_path)
