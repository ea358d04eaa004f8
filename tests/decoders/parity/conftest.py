"""Cases to break: copies of recorded ones, under other names and with parts changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from decoders.parity.report import CaseReport
from decoders.parity.runner import run_case

TESTS = Path(__file__).parents[2]
SOURCES = (TESTS.parent.parent / "shared" / "golden" / "visible", TESTS / "golden")


class Cases:
    """A folder of copied cases.

    Args:
        folder: to copy into.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copy(self, name: str, new_name: str | None = None) -> str:
        """Copy a recorded case and its weights, under another name if asked; skips the test where there is none."""
        source = next((s for s in SOURCES if (s / f"{name}.safetensors").is_file()), None)
        if source is None:
            pytest.skip(f"golden {name}: ../shared/golden/visible is absent, and tests/golden has no copy of it")
        new_name = new_name or name
        for kind in ("json", "safetensors"):
            shutil.copy(source / f"{name}.{kind}", self.folder / f"{new_name}.{kind}")
        stem, new_stem = (each.partition(".")[0] for each in (name, new_name))
        for kind in ("ckpt", "encoder"):
            weights = source / f"{stem}.{kind}.safetensors"
            if weights.is_file():
                shutil.copy(weights, self.folder / f"{new_stem}.{kind}.safetensors")
        return new_name

    def facts(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}.json").read_text())

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def write(self, name: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(facts))
        save_file({key: t.clone().contiguous() for key, t in tensors.items()}, self.folder / f"{name}.safetensors")

    def change_tensors(self, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
        tensors = self.tensors(name)
        change(tensors)
        self.write(name, self.facts(name), tensors)

    def change_facts(self, name: str, change: Callable[[dict[str, Any]], object]) -> None:
        facts = self.facts(name)
        change(facts)
        (self.folder / f"{name}.json").write_text(json.dumps(facts))

    def run(self, name: str) -> CaseReport:
        return run_case(self.folder, name)


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    folder = tmp_path / "cases"
    folder.mkdir()
    return Cases(folder)
