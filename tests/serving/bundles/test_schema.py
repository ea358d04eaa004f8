"""Bundles as written: what is read, and what is said about a file that is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from encoders.geometry import FitGeometry, InputGeometry, ShortestEdgeGeometry, WindowGeometry
from serving.bundles.schema import GeometryEntry, packaged_bundles, read_bundle
from serving.bundles.weights import parse_reference
from serving.errors import BundleError

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
        ("? [a]\n: 1\n", "is not YAML: while constructing a mapping"),
        ("name: one\nencoder: {}\nname: two\n", "is not YAML: line 3 gives 'name' again, after line 1; keep one"),
        ("tasks:\n  depth: {}\n  depth: {}\n", "is not YAML: line 3 gives 'depth' again, after line 2; keep one"),
        ("geometry: {height: 1, height: 2}\n", "is not YAML: line 1 gives 'height' again, after line 1; keep one"),
    ],
)
def test_a_file_that_is_no_mapping_is_told(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(BundleError) as refused:
        read_bundle(str(path))
    assert str(refused.value).startswith(f"{path} {words}")
    assert "\n" not in str(refused.value)


# Extending


def test_paths_of_an_extended_bundle_stay_its_own_also_from_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    base = {
        "name": "base",
        "encoder": {"weights": "w/encoder"},
        "geometry": {"height": 56, "width": 56},
        "default_tasks": ["depth"],
        "tasks": {"depth": {"decoder": "depth", "weights": "w/depth.safetensors", "settings": {"a": 1, "b": 2}}},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    child = {"name": "child", "extends": "../base.yaml", "tasks": {"depth": {"settings": {"b": 3}}}}
    (tmp_path / "sub" / "child.yaml").write_text(yaml.safe_dump(child))
    monkeypatch.chdir(tmp_path.parent)
    file, folder = read_bundle(f"{tmp_path.name}/sub/child.yaml")
    assert folder == tmp_path / "sub"
    assert Path(file.encoder.weights).resolve() == tmp_path / "w" / "encoder"
    assert Path(str(file.tasks["depth"].weights)).resolve() == tmp_path / "w" / "depth.safetensors"
    assert file.tasks["depth"].settings == {"a": 1, "b": 3}
    assert file.tasks["depth"].decoder == "depth"


def test_settings_of_a_decoder_go_with_it_where_another_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "linear.yaml"
    head = {"decoder": "linear_panoptic", "settings": {"out_indices": [23]}}
    path.write_text(yaml.safe_dump({"name": "linear", "extends": "pmt-l-640", "tasks": {"panoptic": head}}))
    entry = read_bundle(str(path))[0].tasks["panoptic"]
    assert (entry.decoder, entry.settings, entry.labels) == ("linear_panoptic", {"out_indices": [23]}, "coco_panoptic")


def test_a_geometry_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text(yaml.safe_dump({"name": "wide", "extends": "pmt-l-640", "geometry": {"windows": 512}}))
    assert read_bundle(str(path))[0].geometry.build() == WindowGeometry(512)


def test_bundles_that_extend_each_other_are_told(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "extends": f"{other}.yaml"}))
    with pytest.raises(BundleError, match=r"a\.yaml extends .*b\.yaml extends .*a\.yaml$"):
        read_bundle(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("extends", "words"), [("no-such", "no bundle 'no-such' .that .*x.yaml extends"), (None, "extends None")]
)
def test_a_bundle_that_extends_nothing_that_there_is_is_told(extends: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"name": "x", "extends": extends}))
    with pytest.raises(BundleError, match=words):
        read_bundle(str(tmp_path / "x.yaml"))


def test_a_default_task_given_twice_is_told(write: Callable[[Change], Path]) -> None:
    with pytest.raises(BundleError, match="name a task twice"):
        read_bundle(str(write(lambda content: content.update(default_tasks=["depth", "depth"]))))


def test_a_key_on_top_of_a_merged_one_is_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text("""
name: merged
encoder: {weights: encoder}
geometry: {height: 56, width: 56}
default_tasks: [near]
tasks:
  far: &far {decoder: depth, description: far}
  near: {<<: *far, description: near}
""")
    file, _ = read_bundle(str(path))
    assert (file.tasks["near"].decoder, file.tasks["near"].description) == ("depth", "near")
