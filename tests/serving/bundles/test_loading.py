"""Bundles: what loads, and what is said to the operator about one that does not."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from decoders.depth import DepthDecoder
from decoders.results import ClassificationResult
from encoders.embedded import embedded_encoder
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry
from serving.bundles import loading as bundles
from serving.bundles.loading import fetch_weights, load_bundle
from serving.engine import Engine
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
    assert heads["panoptic"].geometry == FitGeometry(56, 56)
    assert heads["depth"].geometry == FitGeometry(84, 112)


def test_nothing_is_fetched_for_an_encoder_on_disk(bundle_file: Path, tmp_path: Path) -> None:
    folder = bundle_file.parent
    assert fetch_weights(str(bundle_file), tmp_path) == {
        "encoder": folder / "encoder",
        "panoptic": folder / "panoptic.safetensors",
        "depth": folder / "depth.safetensors",
    }
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_label_set_is_told_with_those_that_exist(write: Callable[[Change], Path], tmp_path: Path) -> None:
    path = write(lambda content: content["tasks"]["panoptic"].update(labels="coco_supercats"))
    words = r"no label set 'coco_supercats'; packaged: .*coco_supercategories"
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
    path = write(lambda content: content.update(encoder={"weights": "elsewhere"}))
    with pytest.raises(FileNotFoundError, match=r"no weights at .*elsewhere"):
        load_bundle(str(path), cache_dir=tmp_path)


def test_a_bundle_that_extends_another_has_its_heads_and_one_more(bundle_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    tasks = {"search": {"decoder": "embedding"}, "depth": {"description": "Another word."}}
    base = yaml.safe_load(bundle_file.read_text())["tasks"]["depth"]
    tasks["depth"] = base | {"weights": str(bundle_file.parent / base["weights"]), "description": "Another word."}
    path.write_text(yaml.safe_dump({"name": "more", "extends": str(bundle_file), "tasks": tasks}))
    bundle = load_bundle(str(path), cache_dir=tmp_path)
    assert bundle.name == "more"
    assert list(bundle.heads) == ["panoptic", "depth", "search"]
    assert bundle.heads["depth"].description == "Another word."
    assert bundle.default_tasks == ("panoptic", "depth")


def test_a_head_learns_its_classes_from_a_folder_of_pictures_for_each(
    write: Callable[[Change], Path], tmp_path: Path
) -> None:
    path = write(
        lambda content: content["tasks"].update(
            kind={"decoder": "prototypes", "examples": "examples", "settings": {"pooling": "mean"}}
        )
    )
    colors = {"blue": (10, 20, 220), "red": (220, 10, 20)}
    for name, color in colors.items():
        folder = path.parent / "examples" / name
        folder.mkdir(parents=True)
        for number, side in enumerate((40, 60)):
            Image.new("RGB", (side, 50), color).save(folder / f"{number}.png")
    engine = Engine(load_bundle(str(path), cache_dir=tmp_path))
    assert [label.name for label in engine.bundle.label_sets["kind"].labels] == ["blue", "red"]
    for name, color in colors.items():
        [prediction] = engine.predict(Image.new("RGB", (50, 50), color), ["kind"])
        result = prediction.results["kind"]
        assert isinstance(result, ClassificationResult)
        assert result.classes[0].label == name


@pytest.mark.parametrize("made", ["nothing", "empty", "empty class", "no picture"])
def test_examples_that_can_not_be_learned_from_are_told(
    made: str, write: Callable[[Change], Path], tmp_path: Path
) -> None:
    path = write(lambda content: content["tasks"].update(kind={"decoder": "prototypes", "examples": "examples"}))
    folder = path.parent / "examples"
    if made != "nothing":
        (folder / "cat" if made != "empty" else folder).mkdir(parents=True)
    if made == "no picture":
        (folder / "cat" / "notes.txt").write_text("no picture")
    words = {"no picture": "notes.txt is no picture", "empty class": "cat"}.get(made, "one folder of pictures")
    with pytest.raises(BundleError, match=words):
        load_bundle(str(path), cache_dir=tmp_path)


def test_examples_for_a_head_that_learns_nothing_are_told(write: Callable[[Change], Path], tmp_path: Path) -> None:
    path = write(lambda content: content["tasks"].update(kind={"decoder": "embedding", "examples": "examples"}))
    (path.parent / "examples" / "cat").mkdir(parents=True)
    with pytest.raises(BundleError, match=r"decoder 'embedding': .*label_set"):
        load_bundle(str(path), cache_dir=tmp_path)


# Weights that are something else


class Bomb:
    """Unpickled, it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_a_pickle_with_code_in_it_is_refused_and_nothing_runs(write: Callable[[Change], Path], tmp_path: Path) -> None:
    path = write(lambda content: content["tasks"]["depth"].update(weights="evil.pth"))
    proof = tmp_path / "ran"
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "extra": Bomb(proof)}, path.parent / "evil.pth")
    with pytest.raises(BundleError, match=r"task 'depth': .*evil\.pth") as refused:
        load_bundle(str(path), cache_dir=tmp_path)
    assert "\n" not in str(refused.value)
    assert not proof.exists()


def test_a_checkpoint_of_other_classes_is_refused(write: Callable[[Change], Path], tmp_path: Path) -> None:
    path = write(lambda content: content["tasks"]["panoptic"].update(labels="coco_panoptic"))
    with pytest.raises(BundleError, match=r"class_head\.weight is \[28, 64\], not \[134, 64\]"):
        load_bundle(str(path), cache_dir=tmp_path)


def test_a_checkpoint_of_another_size_is_refused(write: Callable[[Change], Path], tmp_path: Path) -> None:
    path = write(lambda content: content["tasks"]["panoptic"]["settings"].update(num_blocks=2))
    with pytest.raises(BundleError, match=r"task 'panoptic': .*missing: mask_decoder\.blocks\.1"):
        load_bundle(str(path), cache_dir=tmp_path)


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_a_published_video_checkpoint_runs_on_the_encoder_that_it_holds_and_on_no_other(
    family: str, read_golden: Callable[[str], tuple[dict[str, Any], dict[str, torch.Tensor]]], tmp_path: Path
) -> None:
    facts, _ = read_golden(f"video_{family}_tiny.io")
    _, weights = read_golden(f"video_{family}_tiny.ckpt")
    config = facts["config"]
    inner = embedded_encoder(weights)
    assert inner is not None
    save_file({name: tensor.contiguous() for name, tensor in inner.items()}, tmp_path / "encoder.safetensors")
    torch.save({"model": weights | {"criterion.empty_weight": torch.ones(11)}, "iteration": 5}, tmp_path / "head.pth")
    labels = [{"name": f"class {i}", "thing": i < config["num_things"]} for i in range(config["num_classes"])]
    (tmp_path / "labels.yaml").write_text(yaml.safe_dump({"labels": labels}))
    sizes = {
        "out_indices": config["interaction"],
        "num_queries": config["num_q"],
        "num_blocks": config["num_blocks"],
    }
    content = {
        "name": "clip",
        "encoder": {"weights": "encoder.safetensors", "num_heads": config["heads"]},
        "geometry": {"shortest_edge": 60},
        "default_tasks": ["panoptic"],
        "tasks": {
            kind: {"decoder": f"video_{kind}", "weights": "head.pth", "labels": "labels.yaml", "settings": sizes}
            for kind in ("panoptic", "instance", "semantic")
        },
    }
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump(content))
    engine = Engine(load_bundle(str(tmp_path / "clip.yaml"), cache_dir=tmp_path))
    [prediction] = engine.predict(Image.new("RGB", (90, 60), (90, 120, 60)), ["panoptic", "instance", "semantic"])
    assert prediction.errors == {}
    assert prediction.timing.encoder_passes == 1

    name = next(name for name in inner if name.endswith("norm1.weight"))
    save_file({n: t.contiguous() + (n == name) for n, t in inner.items()}, tmp_path / "encoder.safetensors")
    with pytest.raises(BundleError, match="the head was trained on another encoder"):
        load_bundle(str(tmp_path / "clip.yaml"), cache_dir=tmp_path)


def test_an_encoder_of_another_family_serves_the_same_heads(tmp_path: Path) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=64, patch_size=16
    )
    SiglipVisionModel(config).save_pretrained(tmp_path / "encoder")
    standardisation = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "encoder" / "preprocessor_config.json").write_text(json.dumps(standardisation))
    sizes = {"out_indices": [0, 2], "hidden_dim": 16, "num_bins": 8}
    spec = EncoderSpec("siglip", "r", 32, 3, 2, 16, 0)
    save_file(DepthDecoder(spec, **sizes).state_dict(), tmp_path / "depth.safetensors")
    content = {
        "name": "siglip",
        "encoder": {"weights": "encoder", "adapter": "transformers"},
        "geometry": {"height": 64, "width": 96},
        "default_tasks": ["depth", "embedding"],
        "tasks": {
            "depth": {"decoder": "depth", "weights": "depth.safetensors", "settings": sizes},
            "embedding": {"decoder": "embedding", "settings": {"pooling": "mean"}},
        },
    }
    (tmp_path / "siglip.yaml").write_text(yaml.safe_dump(content))
    engine = Engine(load_bundle(str(tmp_path / "siglip.yaml"), cache_dir=tmp_path))
    [prediction] = engine.predict(Image.new("RGB", (90, 60), (90, 120, 60)))
    assert prediction.errors == {}
    assert prediction.timing.encoder_passes == 1
    assert prediction.results["embedding"].vector.shape == (32,)
