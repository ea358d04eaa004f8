"""Bundles as written: what is read, and what is said about a file that is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from encoders.geometry import FitGeometry, InputGeometry, ShortestEdgeGeometry, WindowGeometry
from serving.bundle_file import GeometryEntry, packaged_bundles, read_bundle
from serving.errors import BundleError
from serving.weights import parse_reference

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def write(bundle_file: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Writes the tiny bundle's file as a function changes it, without its weights."""

    def change_and_write(change: Change) -> Path:
        content = copy.deepcopy(yaml.safe_load(bundle_file.read_text()))
        change(content)
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return change_and_write


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ({"height": 56, "width": 84}, FitGeometry(56, 84)),
        ({"windows": 512}, WindowGeometry(512)),
        ({"shortest_edge": 720}, ShortestEdgeGeometry(720)),
        ({"shortest_edge": 448, "longest": 800, "multiple": 14}, ShortestEdgeGeometry(448, 800, 14)),
    ],
)
def test_each_rule_of_the_input_is_told_by_its_keys(entry: dict[str, int], rule: InputGeometry) -> None:
    assert GeometryEntry.model_validate(entry).build() == rule


def test_every_packaged_bundle_can_be_read() -> None:
    assert "demo" in packaged_bundles()
    for name in packaged_bundles():
        file, folder = read_bundle(name)
        assert file.name == name
        for task in file.tasks.values():
            if task.weights is not None:
                parse_reference(task.weights, folder)


@pytest.mark.parametrize("name", ["no-such-bundle", "/nowhere/bundle.yaml"])
def test_an_absent_bundle_is_told_with_those_there_are(name: str) -> None:
    with pytest.raises(BundleError, match=rf"no bundle '{name}'; packaged: .*demo.*path of a \.yaml file"):
        read_bundle(name)


def forget(content: dict[str, Any], *keys: str) -> None:
    for key in keys[:-1]:
        content = content[key]
    del content[keys[-1]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda c: c.update(enocder=1), "enocder", id="unknown key"),
        pytest.param(lambda c: c["tasks"]["depth"].update(wieghts="x"), "wieghts", id="unknown key of a task"),
        pytest.param(lambda c: c["geometry"].update(depth=3), r"geometry\.depth", id="unknown key of the geometry"),
        pytest.param(lambda c: forget(c, "encoder"), "encoder", id="no encoder"),
        pytest.param(lambda c: forget(c, "geometry"), "geometry", id="no geometry"),
        pytest.param(lambda c: forget(c, "tasks", "depth", "decoder"), r"tasks\.depth\.decoder", id="no decoder"),
        pytest.param(lambda c: c["geometry"].update(height=0), r"geometry\.height", id="no height"),
        pytest.param(lambda c: c.update(encoder={}), r"encoder\.weights", id="an encoder without weights"),
        pytest.param(lambda c: c["encoder"].update(adapter="timm"), r"encoder\.adapter", id="unknown adapter"),
        pytest.param(lambda c: c["geometry"].update(windows=64), "give one rule", id="two rules"),
        pytest.param(lambda c: c.update(geometry={"height": 56}), "give one rule", id="half a rule"),
        pytest.param(lambda c: c["geometry"].update(longest=64), "belong to shortest_edge", id="another rule's key"),
        pytest.param(lambda c: c["tasks"]["depth"].update(sha256="abc"), r"tasks\.depth\.sha256", id="no SHA-256"),
        pytest.param(
            lambda c: c.update(default_tasks=["panoptc"]),
            r"default_tasks \['panoptc'\] must name some of \['depth', 'panoptic'\]",
            id="default task without a head",
        ),
        pytest.param(lambda c: c.update(default_tasks=[]), r"default_tasks \[\] must name some", id="no default task"),
    ],
)
def test_a_wrong_file_is_told_with_its_path_and_what_is_wrong(
    change: Change, words: str, write: Callable[[Change], Path]
) -> None:
    path = write(change)
    with pytest.raises(BundleError, match=words) as refused:
        read_bundle(str(path))
    assert str(refused.value).startswith(f"{path} is not a valid bundle: ")
    assert "\n" not in str(refused.value)


def test_all_that_is_wrong_in_a_file_is_told_in_one_line(write: Callable[[Change], Path]) -> None:
    path = write(lambda content: content.update(enocder=1, geometry={"height": 56}))
    with pytest.raises(BundleError, match=r"geometry: .*one rule.*; enocder: ") as refused:
        read_bundle(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a valid bundle: the file: "),
        ("just text", "is not a valid bundle: the file: "),
        ("- a\n- list\n", "is not a valid bundle: the file: "),
        ("name: [unclosed", "is not YAML: "),
        ("a: b: c", "is not YAML: "),
    ],
)
def test_a_file_that_is_no_mapping_is_told(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(BundleError) as refused:
        read_bundle(str(path))
    assert str(refused.value).startswith(f"{path} {words}")
    assert "\n" not in str(refused.value)
