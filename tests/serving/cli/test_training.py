"""`polyhead train`: a folder of pictures becomes a bundle that answers and is scored; mistakes in plain words."""

from __future__ import annotations

import csv
import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from decoders.depth import DepthDecoder
from decoders.linear_depth import LinearDepthDecoder
from decoders.training.journal import RunFolder
from encoders.checkpoints import sha256_of
from serving.bundles.loading import load_bundle
from serving.cli import main as cli
from serving.cli import training
from serving.engine import Engine

COLORS = {"ball": (230, 60, 40), "brick": (50, 90, 220)}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder, in which commands run with a cache of their own."""
    monkeypatch.setenv("POLYHEAD_DEVICE", "cpu")
    monkeypatch.setenv("POLYHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's COCO folder: 20 pictures of a ball and a brick, ``images/`` and ``annotations.json``."""
    root = tmp_path_factory.mktemp("mine")
    (root / "images").mkdir()
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for category_id, name in enumerate(COLORS, 1):
        truth["categories"].append({"id": category_id, "name": name})
    for number in range(20):
        rng = np.random.default_rng(number)
        image = Image.fromarray(rng.integers(100, 140, (60, 80, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        truth["images"].append({"id": number, "file_name": f"{number}.png", "height": 60, "width": 80})
        for category_id, (name, color) in enumerate(COLORS.items(), 1):
            left, top = int(rng.integers(2, 14)) + 38 * (category_id - 1), int(rng.integers(4, 26))
            box = (left, top, left + 24, top + 24)
            (draw.ellipse if name == "ball" else draw.rectangle)(box, fill=color)
            corners = [box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]
            truth["annotations"].append(
                {
                    "id": 2 * number + category_id,
                    "image_id": number,
                    "category_id": category_id,
                    "iscrowd": 0,
                    "area": 576,
                }
                | {"bbox": [left, top, 24, 24], "segmentation": [corners]}
            )
        image.save(root / "images" / f"{number}.png")
    (root / "annotations.json").write_text(json.dumps(truth))
    return root


def polyhead(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.mark.usefixtures("here")
def test_twenty_photos_become_a_bundle_that_answers_and_is_scored(bundle_file: Path, photos: Path, here: Path) -> None:
    weights = bundle_file.parent / "encoder" / "model.safetensors"
    before = sha256_of(weights)
    trained = polyhead(
        *("train", "instance", "--data", photos, "--bundle", bundle_file, "--out", "mine"),
        *("--steps", 12, "--views", 2, "--batch-size", 4, "--learning-rate", 0.003, "--every", 5),
    )
    assert trained.exit_code == 0, trained.output
    assert "polyhead serve --bundle mine/bundle.yaml" in trained.stdout
    assert sha256_of(weights) == before
    with (here / "mine" / "curve.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert not (here / "mine" / "checkpoint.pt").exists()

    engine = Engine.from_bundle("mine/bundle.yaml", device="cpu")
    assert [label.name for label in engine.bundle.label_sets["instance"].labels] == ["ball", "brick"]
    assert engine.bundle.default_tasks == ("instance",)
    [answer] = engine.predict(photos / "images" / "0.png")
    assert answer.errors == {}
    assert answer.results["instance"].instances
    served, original = (load_bundle(str(path), cache_dir=here) for path in (Path("mine/bundle.yaml"), bundle_file))
    assert list(served.heads) == ["panoptic", "depth", "instance"]
    for ours, theirs in zip(served.encoder.parameters(), original.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)

    scored = polyhead("eval", "instance", "--data", photos, "--bundle", "mine/bundle.yaml", "--out", "figures.json")
    assert scored.exit_code == 0, scored.output
    assert json.loads((here / "figures.json").read_text())


def train_depth(bundle_file: Path, frames: Path, *more: object) -> Result:
    source = ("--data", frames, "--bundle", bundle_file, "--split", "0:1")
    return polyhead("train", "depth", *source, "--steps", 1, *more)


def test_a_named_task_of_a_bundle_is_trained_again_and_the_bundle_itself_stays(
    bundle_file: Path, frames: Path, here: Path
) -> None:
    packaged = {path: path.read_bytes() for path in bundle_file.parent.glob("*.safetensors")}
    done = train_depth(bundle_file, frames)
    assert done.exit_code == 0, done.output
    assert {path: path.read_bytes() for path in packaged} == packaged
    with safe_open(here / "depth" / "depth.safetensors", "np") as file:
        facts = file.metadata()
    assert (facts["task"], facts["pictures"], facts["steps"]) == ("depth", "2", "1")
    bundle = load_bundle("depth/bundle.yaml", cache_dir=here)
    assert bundle.default_tasks == ("panoptic", "depth")
    assert bundle.heads["depth"].decoder.out_indices == (1, 2)  # as the bundle's settings say


def test_a_head_of_another_size_has_a_geometry_of_its_own(bundle_file: Path, frames: Path, here: Path) -> None:
    done = train_depth(bundle_file, frames, "--size", "28x42", "--task", "near", "--out", "small")
    assert done.exit_code == 0, done.output
    heads = load_bundle("small/bundle.yaml", cache_dir=here).heads
    assert heads["near"].geometry.typical_size == (28, 42)
    assert heads["depth"].geometry.typical_size == (56, 56)


def test_a_setting_of_a_task_is_replaced_and_the_others_stay(bundle_file: Path, frames: Path, here: Path) -> None:
    before = load_bundle(str(bundle_file), cache_dir=here).heads["depth"].decoder
    done = train_depth(bundle_file, frames, "--set", "out_indices=[2]", "--set", "max_depth_m=4")
    assert done.exit_code == 0, done.output
    after = load_bundle("depth/bundle.yaml", cache_dir=here).heads["depth"].decoder
    assert isinstance(before, DepthDecoder) and isinstance(after, DepthDecoder)
    assert (before.out_indices, after.out_indices) == ((1, 2), (2,))
    assert len(after.laterals) == 1
    settings = yaml.safe_load((here / "depth" / "bundle.yaml").read_text())["tasks"]["depth"]["settings"]
    assert settings == yaml.safe_load(bundle_file.read_text())["tasks"]["depth"]["settings"] | {
        "out_indices": [2],
        "max_depth_m": 4,
    }


def test_a_linear_baseline_takes_the_place_of_the_task_that_it_is_compared_with(
    bundle_file: Path, frames: Path, here: Path
) -> None:
    done = polyhead(
        *("train", "linear_depth", "--data", frames, "--bundle", bundle_file, "--split", "0:1", "--steps", 1),
        *("--task", "depth", "--size", "28x42", "--set", "hidden_indices=[1]", "--set", "max_depth_m=5"),
    )
    assert done.exit_code == 0, done.output
    head = load_bundle("depth/bundle.yaml", cache_dir=here).heads["depth"]
    assert isinstance(head.decoder, LinearDepthDecoder)
    assert (head.decoder.hidden_indices, head.decoder.max_depth_m) == ((1,), 5)
    assert head.geometry.typical_size == (28, 42)


def test_a_bundle_file_can_be_moved_with_its_folder(bundle_file: Path, frames: Path, here: Path) -> None:
    assert train_depth(bundle_file, frames).exit_code == 0
    content = yaml.safe_load((here / "depth" / "bundle.yaml").read_text())
    assert content["tasks"]["depth"]["weights"] == "depth.safetensors"
    assert not Path(content["extends"]).is_absolute()


def test_a_stopped_run_is_not_begun_anew_by_mistake(bundle_file: Path, frames: Path, here: Path) -> None:
    assert train_depth(bundle_file, frames, "--steps", 3, "--every", 2).exit_code == 0
    (here / "depth" / "bundle.yaml").unlink()
    (here / "depth" / "checkpoint.pt").write_bytes(b"no checkpoint")
    done = train_depth(bundle_file, frames)
    assert "is no checkpoint of a run" in str(done.exception)


def test_a_finished_head_is_not_written_over(bundle_file: Path, frames: Path, here: Path) -> None:
    assert train_depth(bundle_file, frames).exit_code == 0
    before = (here / "depth" / "depth.safetensors").read_bytes()
    again = train_depth(here / "depth" / "bundle.yaml", frames, "--seed", 1)
    assert "depth/bundle.yaml is there already: give another --out, or delete it" in str(again.exception)
    assert (here / "depth" / "depth.safetensors").read_bytes() == before


def test_ctrl_c_saves_the_run_says_how_to_go_on_and_resume_does(
    bundle_file: Path, frames: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = RunFolder.step

    def interrupted(self: RunFolder, number: int, *told: Any) -> None:
        step(self, number, *told)
        if number == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "step", interrupted)
        stopped = train_depth(bundle_file, frames, "--steps", 4)
    assert stopped.exit_code == 130
    assert "stopped after step 2; the same command with --resume goes on from there" in stopped.output
    assert not (here / "depth" / "bundle.yaml").exists()
    assert "go on with --resume" in str(train_depth(bundle_file, frames, "--steps", 4).exception)
    other = train_depth(bundle_file, frames, "--steps", 4, "--resume", "--set", "out_indices=[2]")
    assert "checkpoint.pt is of another run: settings {" in str(other.exception)
    resumed = train_depth(bundle_file, frames, "--steps", 4, "--resume")
    assert resumed.exit_code == 0, resumed.output
    with (here / "depth" / "curve.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    assert (here / "depth" / "bundle.yaml").exists()


def test_broken_data_is_told_all_at_once_and_nothing_is_trained(bundle_file: Path, frames: Path, here: Path) -> None:
    (frames / "frame-000000.color.jpg").write_bytes(b"no picture")
    Image.fromarray(np.zeros((60, 80), np.uint16)).save(frames / "frame-000001.depth.png")
    done = train_depth(bundle_file, frames)
    said = str(done.exception)
    assert "2 errors in the data" in said
    assert "frame-000000.color.jpg: the picture can't be read" in said
    assert "frame-000001.color.jpg: its depth is unknown everywhere" in said
    assert not (here / "depth" / "depth.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["panoptc"],
            "no task 'panoptc' in bundle tiny; there are: panoptic, depth; nor is it a kind of head: panoptic,",
        ),
        (["depth", "--split", "first"], "split 'first' is no range of frames; write e.g. 0:695"),
        (["depth", "--split", "7:9"], "no RGB-D frames 7..9 in "),
        (["depth", "--size", "big"], "--size big is no size; write e.g. 448 or 448x640, pixels"),
        (["depth", "--size", "50"], "task 'depth': 50 x 50 is no multiple of the encoder's patch size 14"),
        (["depth", "--ignore", "x"], "--ignore x is no list of ids; write e.g. 0,255"),
        (["depth", "--set", "out_indices=[1,9]"], "decoder 'depth': out_indices [1, 9] outside 0..2 of "),
        (["linear_depth", "--set", "hidden_indices=[3]"], "decoder 'linear_depth': out_indices [3] outside 0..2 of "),
        (
            ["depth", "--set", "out_indices=2"],
            "--set out_indices=2: it stands in place of [1, 2]; give a value of that kind",
        ),
        (["linear_depth", "--set", "max_depth_m=far"], "--set max_depth_m=far: it stands in place of 10.0;"),
        (["linear_depth", "--set", "max_depth_m=yes"], "--set max_depth_m=True: it stands in place of 10.0;"),
        (["depth", "--set", "out_indices=[last]"], "--set out_indices=['last']: it stands in place of [1, 2];"),
        (["depth", "--set", "num_queries=9"], "decoder 'depth': got an unexpected keyword argument 'num_queries'"),
        (["depth", "--set", "queries"], "--set queries is no setting; write e.g. num_queries=100"),
        (["depth", "--set", "out_indices=[1"], "--set out_indices=[1 is no setting; write e.g. num_queries=100"),
        (["depth", "--set", "a=1", "--set", "a=2"], "--set a is given twice; keep one of them"),
        (["depth", "--set", "label_set=x"], "--set label_set: a head's classes are given by --labels"),
        (["panoptic"], "{frames} holds no COCO panoptic data"),
        (["semantic", "--labels", "mine"], "no label set 'mine'"),
        (["prototypes", "--init", __file__], "--init: prototypes learns at once, from nothing; leave it out"),
        (["depth", "--paste", "1"], "--paste is for heads that learn from panoptic data, which depth is not"),
        (["embedding"], "no task 'embedding' in bundle tiny"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_mistake_is_one_line(
    arguments: list[str],
    words: str,
    bundle_file: Path,
    frames: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = ["--data", str(frames), "--bundle", str(bundle_file)]
    monkeypatch.setattr(sys, "argv", ["polyhead", "train", *arguments, *source])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 1
    assert said.startswith(f"error {words.format(frames=frames)}")
    assert "\n" not in said


def test_a_category_that_the_label_set_lacks_is_named_with_the_remedy(
    bundle_file: Path, photos: Path, here: Path
) -> None:
    done = polyhead("train", "instance", "--data", photos, "--bundle", bundle_file, "--labels", "coco_instance")
    said = str(done.exception)
    assert "category 'ball': is not in label set coco_instance and is used 20 times" in said
    assert "--labels from-data" in said


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("again", [(), ("--resume",)], ids=["anew", "with nothing to resume"])
def test_a_head_may_begin_with_another_s_weights(bundle_file: Path, photos: Path, again: tuple[str, ...]) -> None:
    shared = ("--data", photos, "--bundle", bundle_file, "--views", 1, "--batch-size", 2)
    shared += ("--set", "num_queries=4", "--set", "num_blocks=1")
    first = polyhead("train", "instance", *shared, "--out", "first", "--steps", 1, "--seed", 3)
    assert first.exit_code == 0, first.output
    weights = Path("first/instance.safetensors")
    still = ("--steps", 1, "--learning-rate", 0)
    second = polyhead("train", "instance", *shared, "--out", "second", "--init", weights, *still, *again)
    assert second.exit_code == 0, second.output
    before, after = load_file(weights), load_file("second/instance.safetensors")
    trained = [name for name in before if "running_" not in name and "num_batches" not in name]
    assert trained
    assert all(torch.equal(before[name], after[name]) for name in trained)


@pytest.mark.usefixtures("here")
def test_weights_of_which_nothing_fits_are_refused_before_the_data_are_checked(
    bundle_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(training, "_check")
    save_file({"other": torch.zeros(3)}, tmp_path / "other.safetensors")
    done = polyhead(
        *("train", "instance", "--data", photos, "--bundle", bundle_file, "--out", "mine", "--views", 1, "--steps", 1),
        *("--init", tmp_path / "other.safetensors"),
    )
    assert done.exit_code != 0
    assert "--init: no tensor of" in str(done.exception)


@pytest.mark.usefixtures("here")
def test_shots_are_of_classes(bundle_file: Path, photos: Path, tmp_path: Path) -> None:
    done = polyhead("train", "instance", "--data", photos, "--bundle", bundle_file, "--out", "mine", "--shots", 2)
    assert "--shots is for heads that learn classes" in str(done.exception)
    for number in range(3):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (80 * number, 0, 0)).save(tmp_path / "pets" / name / f"{number}.png")
    few = polyhead(
        "train", "prototypes", "--data", tmp_path / "pets", "--bundle", bundle_file, "--out", "few", "--shots", 2
    )
    assert few.exit_code == 0, few.output
    with safe_open("few/prototypes.safetensors", "pt") as file:
        assert file.metadata()["pictures"] == "4"
