"""`polyhead bundles` and `polyhead pull`: what they print, and when they fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from serving.bundles.schema import packaged_bundles
from serving.cli.main import app


@pytest.fixture
def polyhead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """Runs commands with an empty cache, on a wide terminal."""
    monkeypatch.setenv("POLYHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


def test_list_names_every_packaged_bundle_and_what_is_to_be_pulled(polyhead: CliRunner) -> None:
    result = polyhead.invoke(app, ["bundles", "list"])
    assert result.exit_code == 0
    for name in packaged_bundles():
        assert name in result.output
    [line] = [line for line in result.output.splitlines() if "pmt-s-640" in line]
    assert "2 to pull" in line


def test_show_prints_the_plan_of_a_bundle_whose_weights_are_not_here(polyhead: CliRunner) -> None:
    result = polyhead.invoke(app, ["bundles", "show", "pmt-l-together"])
    assert result.exit_code == 0
    assert "2 encoder pass(es)" in result.output
    assert "736 x 1280" in result.output
    assert "encoder weights: facebook/dinov3-vitl16-pretrain-lvd1689m @main  (to pull)" in result.output


def test_the_plan_as_json_adds_up(polyhead: CliRunner) -> None:
    result = polyhead.invoke(app, ["bundles", "show", "pmt-l-640", "--json"])
    answer = json.loads(result.stdout)
    [only] = answer["passes"]
    assert only["tasks"] == ["panoptic", "instance"]
    assert only["encoder_gflops"] > only["heads_gflops"]["panoptic"] > 0
    assert [part["part"] for part in answer["parts"]] == ["encoder", "panoptic", "instance"]
    assert not any(part["here"] for part in answer["parts"])


def test_check_passes_by_the_published_names_and_fails_without_files(polyhead: CliRunner) -> None:
    assert polyhead.invoke(app, ["bundles", "check", "pmt-s-640", "--random"]).exit_code == 0
    absent = polyhead.invoke(app, ["bundles", "check", "pmt-s-640"])
    assert absent.exit_code == 1
    assert "polyhead pull" in absent.output


def test_check_of_a_bundle_on_disk_reads_its_files(polyhead: CliRunner, bundle_file: Path) -> None:
    result = polyhead.invoke(app, ["bundles", "check", str(bundle_file)])
    assert result.exit_code == 0, result.output
    assert result.output.count("fits") == 3


def test_pull_names_every_file_of_a_bundle(polyhead: CliRunner, bundle_file: Path) -> None:
    result = polyhead.invoke(app, ["pull", str(bundle_file)])
    assert result.exit_code == 0
    for part in ("encoder", "panoptic", "depth"):
        assert f"{part} of '{bundle_file}': {bundle_file.parent}" in result.output


def test_a_part_without_classes_or_weights_is_shown_all_the_same(
    polyhead: CliRunner, bundle_file: Path, tmp_path: Path
) -> None:
    content = {"name": "more", "extends": str(bundle_file), "tasks": {"search": {"decoder": "embedding"}}}
    path = tmp_path / "more.yaml"
    path.write_text(yaml.safe_dump(content))
    result = polyhead.invoke(app, ["bundles", "show", str(path)])
    assert result.exit_code == 0, result.output
    assert "search" in result.output
