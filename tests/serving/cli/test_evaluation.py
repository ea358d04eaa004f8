"""`polyhead eval` as a user runs it, on drawn data with a tiny random encoder: what is scored, written and said."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from decoders.training.weights_file import save_head
from encoders.checkpoints import load_encoder
from serving.bundles.loading import new_decoder
from serving.bundles.schema import TaskEntry
from serving.cli import main as cli
from serving.engine import Engine

CLASSES = ("cat", "cup", "sky")
MASKS = {"out_indices": [0, 2], "num_queries": 6, "num_blocks": 1}
HEADS: dict[str, dict[str, Any]] = {
    "segments": {"decoder": "panoptic", "settings": MASKS | {"score_threshold": 0, "overlap_threshold": 0}},
    "pieces": {"decoder": "linear_panoptic", "settings": {"out_indices": [2]}},
    "classes": {"decoder": "linear_semantic", "settings": {"out_indices": [2]}},
    "objects": {"decoder": "instance", "settings": MASKS | {"top_k": 6}},
    "follow": {"decoder": "video_panoptic", "settings": MASKS | {"score_threshold": 0, "overlap_threshold": 0}},
    "follow_objects": {"decoder": "video_instance", "settings": MASKS | {"top_k": 6, "score_threshold": 0}},
    "follow_classes": {"decoder": "video_semantic", "settings": MASKS},
    "what": {"decoder": "linear_classification", "settings": {"out_indices": [2]}},
}


@pytest.fixture(scope="module")
def many_heads(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a head of every kind that can be scored, with random weights, on the tiny bundle's encoder."""
    folder = tmp_path_factory.mktemp("many_heads")
    labels = {"labels": [{"name": name, "thing": name != "sky"} for name in CLASSES]}
    (folder / "three.yaml").write_text(yaml.safe_dump(labels))
    spec = load_encoder(bundle_file.parent / "encoder").spec
    tasks = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for task, head in HEADS.items():
            entry = head | {"labels": "three.yaml"}
            decoder = new_decoder(TaskEntry(**entry), spec, folder)
            assert isinstance(decoder, torch.nn.Module)
            save_head(decoder, folder / f"{task}.safetensors", {})
            tasks[task] = entry | {"weights": f"{task}.safetensors"}
    (folder / "many.yaml").write_text(
        yaml.safe_dump({"extends": str(bundle_file), "name": "many", "default_tasks": ["classes"], "tasks": tasks})
    )
    return folder / "many.yaml"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """Runs commands with a cache of their own, in a wide terminal."""
    monkeypatch.setenv("POLYHEAD_DEVICE", "cpu")
    monkeypatch.setenv("POLYHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


@pytest.fixture
def panoptic_data(tmp_path: Path, draw_picture: Callable[..., Image.Image]) -> Path:
    """A COCO folder of five drawn pictures of two sizes: sky above, a cat and a cup below."""
    root = tmp_path / "drawn"
    (root / "images").mkdir(parents=True)
    (root / "panoptic").mkdir()
    images, annotations = [], []
    for number in range(5):
        height, width = (48, 64) if number % 2 else (60, 40)
        ids = np.full((height, width), 3, np.int32)
        ids[height // 2 :, : width // 2], ids[height // 2 :, width // 2 :] = 1, 2
        picture = np.asarray(draw_picture(height, width, number)) // 2 + (60 * (ids % 3))[..., None].astype(np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{number}.png")
        Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], axis=-1).astype(np.uint8)).save(
            root / "panoptic" / f"{number}.png"
        )
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        infos = [{"id": i, "category_id": i, "iscrowd": 0} for i in (1, 2, 3)]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": infos})
    categories = [{"id": i, "name": name, "isthing": int(name != "sky")} for i, name in enumerate(CLASSES, 1)]
    index = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(index))
    return root


@pytest.fixture
def class_data(tmp_path: Path, draw_picture: Callable[..., Image.Image]) -> Path:
    """Two drawn pictures of each class."""
    for name in CLASSES:
        (tmp_path / "named" / name).mkdir(parents=True)
        for number in range(2):
            draw_picture(40, 50, number).save(tmp_path / "named" / name / f"{number}.jpg")
    return tmp_path / "named"


def evaluate(runner: CliRunner, tasks: str, data: Path, bundle: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    """The runs that the command wrote."""
    arguments = ["eval", tasks, "--data", str(data), "--bundle", str(bundle), "--out", str(out), *more]
    done = runner.invoke(cli.app, [*arguments, "--resamples", "20"])
    assert done.exit_code == 0, done.output
    written = json.loads(out.read_text())
    assert (written["data"], written["resamples"], written["seed"]) == (data.name, 20, 0)
    runs: list[dict[str, Any]] = written["runs"]
    return runs


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("segments", {"PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"}),
        ("pieces", {"PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"}),
        ("classes", {"mIoU", "pixel_accuracy"}),
        ("objects", {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"}),
    ],
)
def test_a_head_is_scored_on_every_picture(
    task: str, names: set[str], runner: CliRunner, panoptic_data: Path, many_heads: Path, tmp_path: Path
) -> None:
    [run] = evaluate(runner, task, panoptic_data, many_heads, tmp_path / "figures.json")
    assert (run["bundle"], run["task"], run["pictures"], run["frames"]) == (str(many_heads), task, 5, 5)
    assert run["encoder_revision"] == Engine.from_bundle(str(many_heads)).bundle.encoder.spec.revision
    assert names <= run["figures"].keys()
    main = run["figures"][min(names, key=len)]
    assert main["low"] <= main["value"] <= main["high"]
    assert set(run["per_class"]) <= set(CLASSES)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("follow", {"VPQ", "VPQ1", "VPQ2", "VPQ4", "VPQ6", "STQ", "AQ", "SQ"}),
        ("follow_objects", {"AP", "AP50", "AP75"}),
        ("follow_classes", {"mIoU"}),
    ],
)
def test_a_head_that_remembers_is_scored_on_clips_cut_from_photos(
    task: str, names: set[str], runner: CliRunner, panoptic_data: Path, many_heads: Path, tmp_path: Path
) -> None:
    [run] = evaluate(runner, task, panoptic_data, many_heads, tmp_path / "figures.json", "--frames", "3")
    assert (run["clips"], run["frames"]) == (5, 15)
    assert names <= run["figures"].keys()


def test_the_score_is_that_of_the_bundles_own_answers(
    runner: CliRunner, panoptic_data: Path, many_heads: Path, tmp_path: Path
) -> None:
    [run] = evaluate(runner, "classes", panoptic_data, many_heads, tmp_path / "figures.json", "--batch-size", "2")
    engine = Engine.from_bundle(str(many_heads), device="cpu")
    right, pixels = 0, 0
    for number in range(5):
        [answer] = engine.predict(panoptic_data / "images" / f"{number}.png", ["classes"])
        found = answer.results["classes"].segment_map  # type: ignore[union-attr]
        with Image.open(panoptic_data / "panoptic" / f"{number}.png") as image:
            truth = np.asarray(image)[..., 0]
        right, pixels = right + int((found == truth).sum()), pixels + truth.size
    assert run["figures"]["pixel_accuracy"]["value"] == pytest.approx(100 * right / pixels, abs=0.01)


def test_heads_on_the_same_pictures_share_their_encoder_passes(
    runner: CliRunner, panoptic_data: Path, many_heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[tuple[int, tuple[str, ...]]] = []
    run_pass = Engine.run_pass

    def counting(self: Engine, inputs: Any) -> Any:
        batches.append((len(inputs), inputs[0].tasks))
        return run_pass(self, inputs)

    monkeypatch.setattr(Engine, "run_pass", counting)
    runs = evaluate(runner, "segments,classes", panoptic_data, many_heads, tmp_path / "figures.json")
    assert [run["task"] for run in runs] == ["segments", "classes"]
    assert batches == [(5, ("segments", "classes"))]


def test_depth_is_scored_on_the_frames_of_the_split(
    runner: CliRunner, frames: Path, bundle_file: Path, tmp_path: Path
) -> None:
    [run] = evaluate(runner, "depth", frames, bundle_file, tmp_path / "figures.json", "--split", "2:3")
    [scaled] = evaluate(
        runner, "depth", frames, bundle_file, tmp_path / "scaled.json", "--split", "2:3", "--median-scaled"
    )
    assert run["pictures"] == 2
    assert run["figures"].keys() == {"AbsRel", "RMSE_m", "log10", "delta1", "delta2", "delta3"}
    assert scaled["figures"]["AbsRel"]["value"] != run["figures"]["AbsRel"]["value"]


def test_label_maps_are_read_as_the_options_say(
    runner: CliRunner, many_heads: Path, tmp_path: Path, draw_picture: Callable[..., Image.Image]
) -> None:
    root = tmp_path / "maps"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    draw_picture(40, 60).save(root / "images" / "a.png")
    ids = np.full((40, 60), 9, np.uint8)  # 9: no class; 1 and 2: cat and cup
    ids[:10, :30], ids[:10, 30:] = 1, 2
    Image.fromarray(ids).save(root / "labels" / "a.png")
    [run] = evaluate(
        runner, "classes", root, many_heads, tmp_path / "figures.json", "--first-id", "1", "--ignore", "0,9"
    )
    parts = {name: told["pixels"] for name, told in run["per_class"].items() if told["pixels"]}
    assert parts == {"cat": 50, "cup": 50}


def test_classes_are_told_with_what_they_are_taken_for(
    runner: CliRunner, class_data: Path, many_heads: Path, tmp_path: Path
) -> None:
    [run] = evaluate(runner, "what", class_data, many_heads, tmp_path / "figures.json")
    assert run["pictures"] == 6
    assert run["figures"]["top5"]["value"] == 100  # there are three classes
    assert all(told["pictures"] == 2 for told in run["per_class"].values())
    assert any(re.fullmatch(r"(cat|cup|sky) \([12]\).*", told["taken_for"]) for told in run["per_class"].values())


def test_bundles_stand_beside_each_other_in_one_table(
    runner: CliRunner, panoptic_data: Path, many_heads: Path, tmp_path: Path
) -> None:
    other = many_heads.with_name("other.yaml")
    other.write_text(yaml.safe_dump({"extends": str(many_heads), "name": "other"}))
    out = tmp_path / "figures.json"
    arguments = ["eval", "classes", "--data", str(panoptic_data), "--resamples", "10", "--out", str(out)]
    for path in (many_heads, other):
        arguments += ["--bundle", str(path)]
    done = runner.invoke(cli.app, arguments, env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output
    first, second = json.loads(out.read_text())["runs"]
    assert (first["bundle"], second["bundle"]) == (str(many_heads), str(other))
    assert first["figures"] == second["figures"]  # the same head, the same draws
    assert first["difference_to_first"] == {}
    assert second["difference_to_first"]["mIoU"] == {"value": 0, "low": 0, "high": 0}
    row = next(line for line in done.stdout.splitlines() if "mIoU" in line)
    value = f"{first['figures']['mIoU']['value']:.4g}"
    assert row.count(value) == 2
    assert "classes on drawn: 5 pictures, with 95 % intervals by 10 resamples" in done.stdout


def test_a_head_and_its_baseline_are_told_with_their_difference_by_the_same_resamples(
    runner: CliRunner, panoptic_data: Path, many_heads: Path, bundle_file: Path, tmp_path: Path
) -> None:
    entry = {"decoder": "linear_semantic", "settings": {"out_indices": [0]}, "labels": "three.yaml"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        head = new_decoder(TaskEntry(**entry), load_encoder(bundle_file.parent / "encoder").spec, many_heads.parent)
    assert isinstance(head, torch.nn.Module)
    save_head(head, many_heads.with_name("first_block.safetensors"), {})
    baseline = many_heads.with_name("baseline.yaml")
    tasks = {"classes": entry | {"weights": "first_block.safetensors"}}
    baseline.write_text(yaml.safe_dump({"extends": str(many_heads), "name": "baseline", "tasks": tasks}))
    out = tmp_path / "figures.json"
    arguments = ["eval", "classes", "--data", str(panoptic_data), "--resamples", "50", "--out", str(out)]
    for path in (baseline, many_heads):
        arguments += ["--bundle", str(path)]
    done = runner.invoke(cli.app, arguments, env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output
    first, second = json.loads(out.read_text())["runs"]
    assert second["difference_to_first"].keys() == second["figures"].keys()
    for name, told in second["difference_to_first"].items():
        value = second["figures"][name]["value"] - first["figures"][name]["value"]
        assert told["value"] == pytest.approx(value, abs=2e-4)
        assert told["low"] <= told["value"] <= told["high"]
    told = second["difference_to_first"]["pixel_accuracy"]
    assert told["low"] < told["high"]
    assert done.stdout.count("difference to the first") == 1
    row = next(line for line in done.stdout.splitlines() if "pixel_accuracy" in line)
    assert f"{told['value']:+.4g}  [{told['low']:+.4g}, {told['high']:+.4g}]" in row


def test_heads_of_other_classes_are_not_subtracted(
    runner: CliRunner, panoptic_data: Path, many_heads: Path, tmp_path: Path
) -> None:
    labels = {"labels": [{"name": name, "thing": True} for name in CLASSES]}
    (tmp_path / "things.yaml").write_text(yaml.safe_dump(labels))
    other = tmp_path / "other.yaml"
    tasks = {"segments": {"labels": "things.yaml"}}
    other.write_text(yaml.safe_dump({"extends": str(many_heads), "name": "other", "tasks": tasks}))
    out = tmp_path / "figures.json"
    arguments = ["eval", "segments", "--data", str(panoptic_data), "--resamples", "5", "--out", str(out)]
    done = runner.invoke(cli.app, [*arguments, "--bundle", str(many_heads), "--bundle", str(other)])
    assert done.exit_code == 0, done.output
    assert [run["difference_to_first"] for run in json.loads(out.read_text())["runs"]] == [{}, {}]
    assert f"segments: {other} has other classes or pictures than {many_heads}; no difference is told" in done.output
    assert "difference to the first" not in done.stdout


@pytest.mark.parametrize("task", ["segments", "follow", "what"])
def test_a_sheet_has_a_row_for_every_picture_shown(
    task: str, runner: CliRunner, panoptic_data: Path, class_data: Path, many_heads: Path, tmp_path: Path
) -> None:
    data = class_data if task == "what" else panoptic_data
    heights = {}
    for worst in (1, 3):
        sheet = tmp_path / "deep" / f"{worst}.jpg"
        evaluate(
            *(runner, task, data, many_heads, tmp_path / "f.json"),
            *("--sheet", str(sheet), "--worst", str(worst), "--frames", "2"),
        )
        with Image.open(sheet) as image:
            heights[worst] = image.height
            assert image.width == 3 * 328 + 8  # input, truth, answer
            pixels = np.asarray(image.convert("RGB"))
        assert pixels[40:].std() > 20  # pictures, not a blank
    assert heights[3] > heights[1] + 100


def test_several_tasks_have_a_sheet_each(
    runner: CliRunner, panoptic_data: Path, many_heads: Path, tmp_path: Path
) -> None:
    evaluate(
        *(runner, "segments,classes", panoptic_data, many_heads, tmp_path / "f.json"),
        *("--sheet", str(tmp_path / "sheet.png"), "--limit", "2"),
    )
    assert (tmp_path / "sheet_segments.png").is_file()
    assert (tmp_path / "sheet_classes.png").is_file()


def test_broken_data_is_told_by_name_and_at_once_before_anything_runs(
    runner: CliRunner,
    panoptic_data: Path,
    many_heads: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (panoptic_data / "images" / "1.png").write_bytes(b"no picture")
    (panoptic_data / "panoptic" / "3.png").unlink()

    def never(*_: Any) -> None:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(Engine, "run_pass", never)
    monkeypatch.setattr(
        sys, "argv", ["polyhead", "eval", "segments", "--data", str(panoptic_data), "--bundle", str(many_heads)]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "1.png: the picture can't be read" in said
    assert "3.png: its segments are missing" in said


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ("panoptc", "no head for 'panoptc'; loaded: "),
        ("depth", "holds no depth"),
        ("what", "class 'images': is not in label set three"),
        ("classes --ignore none", "--ignore none is no list of ids"),
        ("vector", "results of kind 'embedding' have no score"),
    ],
)
@pytest.mark.usefixtures("runner")
def test_a_mistake_is_told_in_plain_words(
    tasks: str,
    words: str,
    panoptic_data: Path,
    many_heads: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = many_heads.with_name("vector.yaml")
    bundle.write_text(
        yaml.safe_dump({"extends": str(many_heads), "name": "vector", "tasks": {"vector": {"decoder": "embedding"}}})
    )
    monkeypatch.setattr(
        sys, "argv", ["polyhead", "eval", *tasks.split(), "--data", str(panoptic_data), "--bundle", str(bundle)]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "Traceback" not in said
    assert words in said
