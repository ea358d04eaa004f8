"""What a run leaves on disk while it goes on: a checkpoint to take it up from, and a curve of its losses."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from decoders.training.optimizer import HeadOptimizer
from decoders.training.schedule import TrainingError
from encoders.run_state import save_state

CHECKPOINT, CURVE = "checkpoint.pt", "curve.csv"


class RunFolder:
    """The journal of a run in a folder.

    ``curve.csv`` has a line for each step: the learning rate, the losses, and the validation loss at the steps that had
    one; the same goes to TensorBoard, if its package is installed, in ``tensorboard/``. ``checkpoint.pt`` is written
    under another name and then renamed, so that it is whole whenever it is there; it is read with ``weights_only``.

    Args:
        folder: made if absent.
        facts: what the run is; a checkpoint of a run with other facts is not taken up.
        resume: take up a run that is there.
        report: told (step, loss).

    Raises:
        TrainingError: there is a checkpoint and `resume` is not set, or it is of another run.
    """

    def __init__(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        *,
        resume: bool,
        report: Callable[[int, float], None],
    ) -> None:
        self.folder = folder
        self._facts = json.dumps(dict(facts), sort_keys=True, default=str)
        self._report = report
        self._state = self._read(resume)
        folder.mkdir(parents=True, exist_ok=True)
        self._columns: list[str] = []
        self._board = _open_board(folder / "tensorboard")

    def resume(self, head: nn.Module, optimizer: HeadOptimizer) -> int:
        """As in `Journal`."""
        done = 0
        if self._state is not None:
            head.load_state_dict(self._state["head"])
            optimizer.load_state_dict(self._state["optimizer"])
            torch.set_rng_state(self._state["rng"])
            if torch.cuda.is_available() and self._state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(self._state["cuda_rng"])
            done = int(self._state["step"])
        self._cut_curve(done)
        return done

    def step(self, step: int, learning_rate: float, losses: Mapping[str, float | None]) -> None:
        """As in `Journal`."""
        self._write({"step": step, "learning_rate": learning_rate, **losses})
        self._report(step, losses["loss"] or 0.0)

    def save(self, head: nn.Module, optimizer: HeadOptimizer, step: int) -> None:
        """As in `Journal`."""
        state = {
            "facts": self._facts,
            "step": step,
            "head": head.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }
        save_state(state, self.folder / CHECKPOINT)

    def finish(self) -> None:
        """The run is over: its checkpoint goes."""
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        if self._board is not None:
            self._board.close()

    def _read(self, resume: bool) -> dict[str, Any] | None:
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            step, facts = state["step"], json.loads(state["facts"])
        except Exception as error:
            raise TrainingError(f"{path} is no checkpoint of a run ({error}); delete it to begin anew") from error
        if not resume:
            raise TrainingError(
                f"{path} is there from a run that stopped after step {step}: go on with --resume, delete it to begin "
                "anew, or give another --out"
            )
        wanted = json.loads(self._facts)
        other = [name for name in facts.keys() | wanted.keys() if facts.get(name) != wanted.get(name)]
        if other:
            told = ", ".join(f"{name} {facts.get(name)} (now {wanted.get(name)})" for name in sorted(other))
            raise TrainingError(f"{path} is of another run: {told}")
        return state

    def _cut_curve(self, done: int) -> None:
        """Keep the lines of the steps that are done: a run may have gone on after its last checkpoint."""
        path = self.folder / CURVE
        kept: list[dict[str, str]] = []
        if done and path.is_file():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                kept = [row for row in reader if int(row["step"]) <= done]
                self._columns = list(reader.fieldnames or ())
        text = io.StringIO()
        if self._columns:
            writer = csv.DictWriter(text, self._columns)
            writer.writeheader()
            writer.writerows(kept)
        path.write_text(text.getvalue(), newline="")

    def _write(self, row: Mapping[str, Any]) -> None:
        with (self.folder / CURVE).open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns or list(row))
            if not self._columns:
                self._columns = list(row)
                writer.writeheader()
            writer.writerow(row)
        if self._board is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(name, value, row["step"])


def _open_board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # needs the optional package tensorboard
    except ImportError:
        return None
    return SummaryWriter(str(folder))
