"""The command `parity`: a line for each case, figures on request, and an exit code that tells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from serving.cli.parity import parity

Cases = Any
"""That of conftest.py."""


def run_parity(*arguments: Path | str) -> Result:
    app = typer.Typer()
    app.command()(parity)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def two(cases: Cases) -> Sequence[str]:
    return cases.copy("dinov2_resample"), cases.copy("post_panoptic_variants")


def test_cases_that_agree_end_with_zero_and_a_line_for_each(cases: Cases, two: Sequence[str]) -> None:
    result = run_parity(cases.folder)
    assert result.exit_code == 0
    first, second, summary = result.stdout.splitlines()
    assert first.startswith("pass  dinov2_resample (resampling): 2 compared, worst proj_weight_dst: ")
    assert "(tolerance 1e-05), " in first
    assert first.endswith(" s")
    assert second.startswith("pass  post_panoptic_variants (panoptic merge): 40 compared")
    assert summary.startswith("cases: 2, comparisons: 42, failed cases: 0, ")


def test_one_case_that_differs_ends_with_one_and_says_where(cases: Cases, two: Sequence[str]) -> None:
    cases.change_tensors(two[0], lambda tensors: tensors["pos_embed_dst"].view(-1)[3].add_(1))
    result = run_parity(cases.folder)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("FAIL  dinov2_resample")
    assert lines[1] == "      FAIL  pos_embed_dst: 1.0e+00 (tolerance 1e-05)"
    assert lines[2].startswith("pass  post_panoptic_variants")
    assert "failed cases: 1, " in lines[-1]


def test_a_broken_case_ends_with_one_and_the_others_are_run(cases: Cases, two: Sequence[str]) -> None:
    (cases.folder / f"{two[0]}.safetensors").unlink()
    result = run_parity(cases.folder)
    assert result.exit_code == 1
    assert "dinov2_resample.safetensors is missing" in result.stdout
    assert "pass  post_panoptic_variants" in result.stdout


def test_what_nothing_compares_ends_with_one(cases: Cases, two: Sequence[str]) -> None:
    cases.change_tensors(two[0], lambda tensors: tensors.update(more=torch.ones(2)))
    result = run_parity(cases.folder)
    assert result.exit_code == 1
    assert "not understood, nothing compares: more" in result.stdout


def test_verbose_prints_every_comparison(cases: Cases, two: Sequence[str]) -> None:
    result = run_parity(cases.folder, "--verbose")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2 + 42 + 1
    assert "      pass  run3.segment_map.2: 0.0e+00 (tolerance 1e-04 of the pixels)" in result.stdout


def test_what_a_case_lacks_is_printed(cases: Cases, two: Sequence[str]) -> None:
    cases.change_tensors(two[0], lambda tensors: [tensors.pop(name) for name in ("pos_embed_src", "pos_embed_dst")])
    result = run_parity(cases.folder)
    assert result.exit_code == 0
    assert "skipped, not in this case: " in result.stdout
    assert "pos_embed_dst" in result.stdout


def test_an_empty_folder_and_none_at_all_end_with_two(tmp_path: Path) -> None:
    empty = run_parity(tmp_path)
    assert empty.exit_code == 2
    assert "no case in" in empty.output
    assert run_parity(tmp_path / "absent").exit_code == 2


def test_figures_are_written_as_json_and_as_markdown(cases: Cases, two: Sequence[str], tmp_path: Path) -> None:
    assert run_parity(cases.folder, "--out", tmp_path / "figures.json").exit_code == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["passed"] is True
    assert figures["folder"] == "cases"
    assert str(cases.folder) not in (tmp_path / "figures.json").read_text()
    assert [(case["case"], len(case["comparisons"])) for case in figures["cases"]] == [(two[0], 2), (two[1], 40)]
    assert run_parity(cases.folder, "--out", tmp_path / "figures.md").exit_code == 0
    assert "| pos_embed_dst | " in (tmp_path / "figures.md").read_text()


def test_figures_are_written_when_a_case_fails_too(cases: Cases, two: Sequence[str], tmp_path: Path) -> None:
    (cases.folder / f"{two[0]}.safetensors").write_bytes(b"")
    assert run_parity(cases.folder, "--out", tmp_path / "figures.json").exit_code == 1
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["passed"], [case["passed"] for case in figures["cases"]]) == (False, [False, True])
