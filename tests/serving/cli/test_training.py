"""`polyhead train` and `polyhead eval` on a handful of frames: where they write, and what they refuse in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from serving.cli import main as cli


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """Runs commands in an empty folder, with a cache of their own."""
    monkeypatch.setenv("POLYHEAD_DEVICE", "cpu")
    monkeypatch.setenv("POLYHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return CliRunner()


@pytest.fixture
def frames(tmp_path: Path, draw_picture: Callable[..., Image.Image]) -> Path:
    """Four RGB-D frames, numbered 0 to 3: a slope from 1 m to 4 m."""
    folder = tmp_path / "frames"
    folder.mkdir()
    slope = np.repeat(np.linspace(1000, 4000, 80, dtype=np.uint16)[None], 60, axis=0)
    for number in range(4):
        draw_picture(60, 80, number).save(folder / f"frame-{number:06d}.color.jpg")
        Image.fromarray(slope).save(folder / f"frame-{number:06d}.depth.png")
    return folder


def train(runner: CliRunner, bundle_file: Path, frames: Path, *more: str) -> Any:
    arguments = [
        "train",
        "depth",
        "--data",
        str(frames),
        "--bundle",
        str(bundle_file),
        "--split",
        "0:1",
        "--steps",
        "1",
    ]
    return runner.invoke(cli.app, [*arguments, *more])


def test_train_writes_the_weights_of_the_task_here(
    runner: CliRunner, bundle_file: Path, frames: Path, tmp_path: Path
) -> None:
    packaged = {path: path.read_bytes() for path in bundle_file.parent.glob("*.safetensors")}
    done = train(runner, bundle_file, frames)
    assert done.exit_code == 0, done.output
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["depth.safetensors"]
    assert "wrote depth.safetensors" in done.output
    assert {path: path.read_bytes() for path in packaged} == packaged  # the bundle's own weights stay
    with safe_open(tmp_path / "here" / "depth.safetensors", "np") as file:
        facts = file.metadata()
    assert (facts["task"], facts["pictures"], facts["steps"]) == ("depth", "2", "1")


def test_train_writes_where_it_is_told(runner: CliRunner, bundle_file: Path, frames: Path, tmp_path: Path) -> None:
    done = train(runner, bundle_file, frames, "--out", str(tmp_path / "mine.safetensors"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "mine.safetensors").is_file()
    assert list((tmp_path / "here").iterdir()) == []


def test_eval_prints_and_writes_the_figures_of_a_head(
    runner: CliRunner, bundle_file: Path, frames: Path, tmp_path: Path
) -> None:
    arguments = ["eval", "depth", "--data", str(frames), "--bundle", str(bundle_file), "--split", "2:3"]
    done = runner.invoke(cli.app, [*arguments, "--out", str(tmp_path / "figures.json")])
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["task"], figures["data"], figures["pictures"]) == ("depth", "frames", 2)
    assert json.loads(done.stdout) == figures


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "panoptc"], "no task 'panoptc' in bundle tiny; there are: panoptic, depth"),
        (["train", "depth", "--split", "first"], "split 'first' is no range of frames; write e.g. 0:695"),
        (["train", "depth", "--split", "7:9"], "no RGB-D frames 7..9 in "),
        (["eval", "panoptc"], "no head for 'panoptc'; loaded: depth, panoptic"),
    ],
)
@pytest.mark.usefixtures("runner")
def test_a_mistake_is_one_line(
    arguments: list[str],
    words: str,
    bundle_file: Path,
    frames: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["polyhead", *arguments, "--data", str(frames), "--bundle", str(bundle_file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 1
    assert said.startswith(f"error {words}")
    assert "\n" not in said
