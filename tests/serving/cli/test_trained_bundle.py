"""A trained head's bundle says all that its parent would otherwise say in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from decoders.labels import LabelSet, load_label_set, read_label_set
from decoders.prototypes import PrototypeDecoder
from decoders.training.weights_file import save_head
from encoders.checkpoints import load_encoder, sha256_of
from serving.bundles.loading import load_bundle
from serving.bundles.schema import TaskEntry, read_bundle
from serving.cli import main as cli
from serving.cli.trained_bundle import write_bundle, write_label_set


def test_a_label_set_of_ones_own_is_written_and_a_packaged_one_is_named(tmp_path: Path, label_set: LabelSet) -> None:
    assert write_label_set(tmp_path / "new", "task", label_set) == "task_labels.yaml"
    assert read_label_set(tmp_path / "new" / "task_labels.yaml").labels == label_set.labels
    packaged = load_label_set("coco_supercategories")
    assert write_label_set(tmp_path / "other", "task", packaged) == "coco_supercategories"
    altered = LabelSet(packaged.name, packaged.labels[:5])
    assert write_label_set(tmp_path, "task", altered) == "task_labels.yaml"


def test_a_head_trained_again_is_held_to_its_own_file_and_learns_nothing_more_from_examples(
    bundle_file: Path, tmp_path: Path, draw_picture: Callable[..., Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYHEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("POLYHEAD_DEVICE", "cpu")
    for root in ("breeds", "more"):
        for number, name in enumerate(("pug", "husky")):
            (tmp_path / root / name).mkdir(parents=True)
            draw_picture(60, 80, number + 7 * (root == "more")).save(tmp_path / root / name / "1.png")
    parent = {
        "name": "parent",
        "extends": str(bundle_file),
        "default_tasks": ["breeds"],
        "tasks": {"breeds": {"decoder": "prototypes", "examples": "breeds", "description": "Dogs."}},
    }
    (tmp_path / "parent.yaml").write_text(yaml.safe_dump(parent))
    source = ["--data", str(tmp_path / "more"), "--bundle", str(tmp_path / "parent.yaml")]
    done = CliRunner().invoke(cli.app, ["train", "breeds", *source, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    entry = read_bundle(str(tmp_path / "out" / "bundle.yaml"))[0].tasks["breeds"]
    assert entry.examples is None
    assert entry.sha256 == sha256_of(tmp_path / "out" / "breeds.safetensors")
    assert entry.description == "Dogs."
    before, after = (
        load_bundle(str(path), cache_dir=tmp_path).heads["breeds"].decoder
        for path in (tmp_path / "parent.yaml", tmp_path / "out" / "bundle.yaml")
    )
    assert isinstance(before, PrototypeDecoder) and isinstance(after, PrototypeDecoder)
    assert before.prototypes.shape == after.prototypes.shape
    assert not torch.allclose(before.prototypes, after.prototypes, atol=1e-3)
    assert [label.name for label in after.label_set.labels] == ["husky", "pug"]


def test_a_new_task_is_the_default_and_the_others_stay(bundle_file: Path, tmp_path: Path, label_set: LabelSet) -> None:
    head = PrototypeDecoder(load_encoder(bundle_file.parent / "encoder").spec, label_set=label_set)
    save_head(head, tmp_path / "kinds.safetensors", {})
    entry = TaskEntry(decoder="prototypes", labels=write_label_set(tmp_path, "kinds", label_set))
    file, folder = read_bundle(str(write_bundle(tmp_path, str(bundle_file), "kinds", entry)))
    assert (file.name, folder) == (tmp_path.name, tmp_path.resolve())
    assert file.default_tasks == ("kinds",)
    assert list(file.tasks) == ["panoptic", "depth", "kinds"]
