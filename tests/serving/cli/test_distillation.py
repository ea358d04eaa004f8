"""`polyhead distill`: unlabelled pictures and a teacher become an encoder that heads can be put on."""

from __future__ import annotations

import csv
import dataclasses
import functools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from encoders.distillation import distill
from encoders.distillation.distill import Distillation, DistillationSchedule
from encoders.distillation.student import TINY, new_student
from serving.cli import distillation
from serving.cli import main as cli
from serving.engine import Engine
from serving.errors import StartError
from serving.types import PredictOptions

SMALL = dataclasses.replace(TINY, embed_dim=32, depth=2, num_heads=1, mlp_dim=32)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(distill, "TINY", SMALL)
    monkeypatch.setattr(distill, "new_student", lambda config: new_student(SMALL))
    sides = ((32, 0.5, 4), (48, 0.5, 2))
    monkeypatch.setattr(distillation, "DistillationSchedule", functools.partial(DistillationSchedule, sides=sides))
    monkeypatch.setenv("POLYHEAD_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pictures(tmp_path: Path, draw_picture: Callable[..., Image.Image]) -> Path:
    (tmp_path / "pictures" / "val").mkdir(parents=True)
    for number in range(3):
        draw_picture(60, 80, number).save(tmp_path / "pictures" / f"{number}.png")
    draw_picture(60, 80, 9).save(tmp_path / "pictures" / "val" / "9.png")
    return tmp_path / "pictures"


def teacher_file(path: Path, dim: int = 32) -> Path:
    """Random weights in timm's names."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, 5, dim),
        "patch_embed.proj.weight": (dim, 3, 16, 16),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    for i in range(2):
        linears = {"attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim), "mlp.fc1": (32, dim), "mlp.fc2": (dim, 32)}
        for name, shape in linears.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (dim,), f"blocks.{i}.{name}.bias": (dim,)}
    save_file({name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}, path)
    return path


def curve_steps() -> list[str]:
    with Path("mine/curve.csv").open(newline="") as file:
        return [row["step"] for row in csv.DictReader(file)]


def polyhead(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    """What a command says that ends with an error in plain words."""
    done = polyhead(*arguments)
    assert done.exit_code != 0
    assert isinstance(done.exception, StartError)
    return str(done.exception)


def test_unlabelled_pictures_become_an_encoder_that_answers(pictures: Path, tmp_path: Path) -> None:
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    done = polyhead(
        "distill",
        pictures,
        "--teacher",
        teacher,
        "--out",
        "mine",
        "--leave-out",
        "/val/",
        "--steps",
        4,
        "--val",
        pictures / "val",
    )
    assert done.exit_code == 0, done.output
    assert "try: polyhead train" in done.output
    assert "not told of the teacher" in done.output
    assert sorted(path.name for path in Path("mine").iterdir()) == ["bundle.yaml", "curve.csv", "encoder.safetensors"]
    with Path("mine/curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["chain"] for row in rows] == ["1", "4", "0", "0"]
    engine = Engine.from_bundle("mine/bundle.yaml", device="cpu")
    assert "from 3 pictures" in Path("mine/bundle.yaml").read_text()  # not the one that was left out
    [prediction] = engine.predict([Image.open(pictures / "0.png")], ["embedding"], PredictOptions())
    assert not prediction.errors


def test_a_stopped_run_is_gone_on_with_only_when_asked(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    arguments = ("distill", pictures, "--teacher", teacher, "--out", "mine", "--steps", 4)
    train = Distillation._train

    def interrupted_at_3(run: Distillation, views: torch.Tensor) -> float:
        if run.step == 2:
            assert curve_steps() == ["1", "2"]  # even a run that is killed leaves its curve
            signal.raise_signal(signal.SIGINT)
        return train(run, views)

    with monkeypatch.context() as patched:
        patched.setattr(Distillation, "_train", interrupted_at_3)
        stopped = polyhead(*arguments)
    assert stopped.exit_code == 130
    assert "stopped after step 3; the same command with --resume goes on from there" in stopped.output
    assert not Path("mine/bundle.yaml").exists()
    assert isinstance(polyhead(*arguments).exception, StartError)
    resumed = polyhead(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert curve_steps() == ["1", "2", "3", "4"]


def test_a_finished_encoder_is_not_written_over(pictures: Path, tmp_path: Path) -> None:
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    arguments = ("distill", pictures, "--teacher", teacher, "--out", "mine", "--steps", 1)
    assert polyhead(*arguments).exit_code == 0
    before = Path("mine/encoder.safetensors").read_bytes()
    assert "mine/bundle.yaml is there already: give another --out, or delete it" in refusal(*arguments, "--seed", 1)
    assert Path("mine/encoder.safetensors").read_bytes() == before


def test_a_checkpoint_that_is_none_is_refused_in_plain_words(pictures: Path, tmp_path: Path) -> None:
    Path("mine").mkdir()
    Path("mine/checkpoint.pt").write_text("no checkpoint")
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    said = refusal("distill", pictures, "--teacher", teacher, "--out", "mine", "--resume")
    assert "mine/checkpoint.pt is no checkpoint of such a run" in said


def test_a_run_that_went_further_than_asked_is_not_taken_up(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> Path:
        raise OSError("disk full")

    teacher = teacher_file(tmp_path / "teacher.safetensors")
    arguments = ("distill", pictures, "--teacher", teacher, "--out", "mine", "--steps")
    with monkeypatch.context() as broken:
        broken.setattr(distillation, "_write", stop)
        polyhead(*arguments, 4)
    assert "has 4 steps behind it; give at least so many --steps" in refusal(*arguments, 3, "--resume")


def test_a_loss_that_is_no_number_is_told_in_plain_words(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Distillation, "_loss", lambda run, told, *_: torch.nan * told[0].sum())
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    said = refusal("distill", pictures, "--teacher", teacher, "--out", "mine")
    assert "the loss of step 1 is nan" in said


def test_a_file_that_is_no_picture_is_named_with_the_remedy(pictures: Path, tmp_path: Path) -> None:
    (pictures / "text.png").write_text("no picture")
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    said = refusal("distill", pictures, "--teacher", teacher, "--out", "mine")
    assert "text.png can't be read" in said
    assert "--leave-out" in said


def test_video_without_a_frame_is_told_in_plain_words(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "load_pictures", lambda files, *_: ([] for _ in files))
    teacher = teacher_file(tmp_path / "teacher.safetensors")
    assert "holds no frames" in refusal("distill", pictures, "--teacher", teacher, "--out", "mine")


def test_a_teacher_of_another_size_is_refused_before_any_picture_is_read(pictures: Path, tmp_path: Path) -> None:
    (pictures / "text.png").write_text("no picture")
    teacher = teacher_file(tmp_path / "wide.safetensors", dim=64)
    assert "embed_dim is 64" in refusal("distill", pictures, "--teacher", teacher, "--out", "mine")
