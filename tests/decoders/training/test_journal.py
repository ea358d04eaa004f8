"""What a run leaves behind: a checkpoint that is whole, and a curve without gaps or repeats."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from decoders.training.journal import CHECKPOINT, CURVE, RunFolder
from decoders.training.optimizer import HeadOptimizer
from decoders.training.schedule import TrainingError


def open_run(folder: Path, *, resume: bool = False, **facts: Any) -> RunFolder:
    return RunFolder(folder, {"steps": 5, "decoder": "depth"} | facts, resume=resume, report=lambda *_: None)


def new_head() -> tuple[nn.Linear, HeadOptimizer]:
    head = nn.Linear(3, 2)
    return head, HeadOptimizer(head, 0.01)


def take_step(head: nn.Module, optimizer: HeadOptimizer) -> None:
    optimizer.zero_grad()
    head(torch.rand(4, 3)).square().sum().backward()
    optimizer.step(0.1)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / CURVE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_goes_on_with_weights_optimiser_and_chance_as_they_were(tmp_path: Path) -> None:
    head, optimizer = new_head()
    run = open_run(tmp_path)
    assert run.resume(head, optimizer) == 0
    take_step(head, optimizer)
    run.save(head, optimizer, 1)
    take_step(head, optimizer)
    other, other_optimizer = new_head()
    torch.rand(7)
    assert open_run(tmp_path, resume=True).resume(other, other_optimizer) == 1
    take_step(other, other_optimizer)
    assert torch.equal(head.weight, other.weight)


def test_a_checkpoint_that_could_not_be_finished_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, optimizer = new_head()
    run = open_run(tmp_path)
    run.save(head, optimizer, 1)
    before = (tmp_path / CHECKPOINT).read_bytes()

    def broken_off(state: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken_off)
    with pytest.raises(OSError, match="disk full"):
        run.save(head, optimizer, 2)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_pickle_that_asks_to_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("ran",))

    torch.save({"step": 1, "facts": "{}", "head": Evil()}, tmp_path / CHECKPOINT)
    with pytest.raises(TrainingError, match="is no checkpoint of a run"):
        open_run(tmp_path, resume=True)


def test_a_run_is_neither_begun_anew_nor_mixed_with_another_by_mistake(tmp_path: Path) -> None:
    head, optimizer = new_head()
    open_run(tmp_path).save(head, optimizer, 3)
    with pytest.raises(TrainingError, match="stopped after step 3: go on with --resume"):
        open_run(tmp_path)
    with pytest.raises(TrainingError, match=r"is of another run: steps 5 \(now 9\)"):
        open_run(tmp_path, resume=True, steps=9)


def test_the_curve_has_a_line_for_every_step_once(tmp_path: Path) -> None:
    head, optimizer = new_head()
    run = open_run(tmp_path)
    run.resume(head, optimizer)
    for step in range(1, 5):
        run.step(step, 0.1 * step, {"loss": 1 / step, "validation_loss": None if step % 2 else 7.0})
        if step == 2:
            run.save(head, optimizer, step)
    run = open_run(tmp_path, resume=True)
    assert run.resume(head, optimizer) == 2
    for step in range(3, 6):
        run.step(step, 0.1 * step, {"loss": 2.0, "validation_loss": None})
    found = rows(tmp_path)
    assert [row["step"] for row in found] == ["1", "2", "3", "4", "5"]
    assert [row["loss"] for row in found] == ["1.0", "0.5", "2.0", "2.0", "2.0"]
    assert [row["validation_loss"] for row in found[:2]] == ["", "7.0"]
    assert found[1]["learning_rate"] == "0.2"


def test_a_run_begun_anew_begins_its_curve_anew(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        run = open_run(tmp_path)
        run.resume(*new_head())
        run.step(1, 0.1, {"loss": loss})
        run.finish()
    assert [row["loss"] for row in rows(tmp_path)] == ["2.0"]


def test_a_finished_run_leaves_no_checkpoint(tmp_path: Path) -> None:
    run = open_run(tmp_path)
    run.save(*new_head(), 1)
    run.finish()
    assert not (tmp_path / CHECKPOINT).exists()


def test_tensorboard_gets_the_curve_where_its_package_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = open_run(tmp_path)
    run.resume(*new_head())
    run.step(1, 0.1, {"loss": 1.0})
    run.finish()
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_without_tensorboard_there_is_the_curve_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = open_run(tmp_path)
    run.resume(*new_head())
    run.step(1, 0.1, {"loss": 1.0})
    run.finish()
    assert [path.name for path in tmp_path.iterdir()] == [CURVE]
