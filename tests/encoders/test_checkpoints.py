"""Reading encoder weights: every published naming, and files that are something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders.checkpoints import build_encoder, load_encoder, sha256_of
from encoders.key_map import CheckpointError
from encoders.published import published_shapes
from encoders.resample import resample_patch_kernel, resample_positions
from encoders.vit import IMAGENET_MEAN

Weights = dict[str, Tensor]
WIDTH, MLP, POSITIONS = 16, 32, 9
SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")


def block_tensors(prefix: str, width: int, linears: dict[str, tuple[int, int]], vectors: tuple[str, ...]) -> Weights:
    tensors = {f"{prefix}{name}": torch.randn(width) for name in vectors}
    for name, shape in linears.items():
        tensors |= {f"{prefix}{name}.weight": torch.randn(shape), f"{prefix}{name}.bias": torch.randn(shape[0])}
    for norm in ("norm1", "norm2"):
        tensors |= {f"{prefix}{norm}.{kind}": torch.randn(width) for kind in ("weight", "bias")}
    return tensors


def dinov2_hugging_face(width: int = WIDTH, registers: int = 0) -> Weights:
    """Two random blocks under the names of `transformers`' DINOv2."""
    weights = {
        "embeddings.cls_token": torch.randn(1, 1, width),
        "embeddings.mask_token": torch.randn(1, width),
        "embeddings.position_embeddings": torch.randn(1, 1 + POSITIONS, width),
        "embeddings.patch_embeddings.projection.weight": torch.randn(width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": torch.randn(width),
        "layernorm.weight": torch.randn(width),
        "layernorm.bias": torch.randn(width),
    }
    if registers:
        weights["embeddings.register_tokens"] = torch.randn(1, registers, width)
    linears = {f"attention.attention.{name}": (width, width) for name in ("query", "key", "value")}
    linears |= {"attention.output.dense": (width, width), "mlp.fc1": (MLP, width), "mlp.fc2": (width, MLP)}
    for i in range(2):
        weights |= block_tensors(
            f"encoder.layer.{i}.", width, linears, ("layer_scale1.lambda1", "layer_scale2.lambda1")
        )
    return weights


def original(width: int, patch: int, linears: dict[str, tuple[int, int]], scales: tuple[str, str]) -> Weights:
    """Two random blocks under the names that Meta and timm have in common."""
    weights = {
        "cls_token": torch.randn(1, 1, width),
        "patch_embed.proj.weight": torch.randn(width, 3, patch, patch),
        "patch_embed.proj.bias": torch.randn(width),
        "norm.weight": torch.randn(width),
        "norm.bias": torch.randn(width),
    }
    linears |= {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    for i in range(2):
        weights |= block_tensors(f"blocks.{i}.", width, linears, scales)
    return weights


def dinov2_timm(width: int = WIDTH, registers: bool = True) -> Weights:
    """The names of timm."""
    linears = {"mlp.fc1": (MLP, width), "mlp.fc2": (width, MLP)}
    weights = original(width, 14, linears, ("ls1.gamma", "ls2.gamma"))
    if not registers:
        return weights | {"pos_embed": torch.randn(1, 1 + POSITIONS, width)}
    return weights | {"reg_token": torch.randn(1, 4, width), "pos_embed": torch.randn(1, POSITIONS, width)}


def dinov2_meta_giant(width: int = WIDTH) -> Weights:
    """The names of Meta, with registers and the giant's gated MLP."""
    linears = {"mlp.w12": (2 * MLP, width), "mlp.w3": (width, MLP)}
    weights = original(width, 14, linears, ("ls1.gamma", "ls2.gamma"))
    weights |= {"register_tokens": torch.randn(1, 4, width), "mask_token": torch.randn(1, width)}
    return weights | {"pos_embed": torch.randn(1, 1 + POSITIONS, width)}


def dinov3_meta(width: int = WIDTH, *, gated: bool = False) -> Weights:
    """The names of Meta; two heads."""
    linears = {"mlp.fc1": (MLP, width), "mlp.fc2": (width, MLP)}
    if gated:
        linears = {"mlp.w1": (MLP, width), "mlp.w2": (MLP, width), "mlp.w3": (width, MLP)}
    weights = original(width, 16, linears, ("ls1.gamma", "ls2.gamma"))
    weights |= {"storage_tokens": torch.randn(1, 4, width), "mask_token": torch.randn(1, width)}
    for i in range(2):
        weights[f"blocks.{i}.attn.qkv.bias_mask"] = torch.ones(3 * width)
    return weights | {"rope_embed.periods": 100 ** (torch.arange(width // 8) * 8 / width)}


def dinov3_timm(width: int = WIDTH, *, gated: bool = False) -> Weights:
    """The names of timm, with biases of query and value."""
    linears = {"mlp.fc1": (MLP, width), "mlp.fc2": (width, MLP)}
    if gated:
        linears = {"mlp.fc1_g": (MLP, width), "mlp.fc1_x": (MLP, width), "mlp.fc2": (width, MLP)}
    weights = original(width, 16, linears, ("gamma_1", "gamma_2")) | {"reg_token": torch.randn(1, 4, width)}
    for i in range(2):
        del weights[f"blocks.{i}.attn.qkv.bias"]
        weights |= {f"blocks.{i}.attn.{name}_bias": torch.randn(width) for name in "qv"}
    return weights


def dinov3_hugging_face(width: int = WIDTH, stem: str = "layer.", *, gated: bool = False) -> Weights:
    """Two random blocks under the names of `transformers`' DINOv3 (no key bias)."""
    weights = {
        "embeddings.cls_token": torch.randn(1, 1, width),
        "embeddings.mask_token": torch.randn(1, 1, width),
        "embeddings.register_tokens": torch.randn(1, 4, width),
        "embeddings.patch_embeddings.weight": torch.randn(width, 3, 16, 16),
        "embeddings.patch_embeddings.bias": torch.randn(width),
        "norm.weight": torch.randn(width),
        "norm.bias": torch.randn(width),
    }
    linears = {f"attention.{name}_proj": (width, width) for name in "qkvo"}
    linears |= {"mlp.up_proj": (MLP, width), "mlp.down_proj": (width, MLP)}
    linears |= {"mlp.gate_proj": (MLP, width)} if gated else {}
    for i in range(2):
        block = block_tensors(f"{stem}{i}.", width, linears, SCALES)
        del block[f"{stem}{i}.attention.k_proj.bias"]
        weights |= block
    return weights


FORMATS: dict[str, Callable[[], Weights]] = {
    "dinov2_hugging_face": dinov2_hugging_face,
    "dinov2_registers_hugging_face": lambda: dinov2_hugging_face(registers=4),
    "dinov2_timm": lambda: dinov2_timm(registers=False),
    "dinov2_registers_timm": dinov2_timm,
    "dinov2_registers_meta_giant": dinov2_meta_giant,
    "dinov3_hugging_face": dinov3_hugging_face,
    "dinov3_hugging_face_prefixed": lambda: dinov3_hugging_face(stem="model.layer."),
    "dinov3_hugging_face_gated": lambda: dinov3_hugging_face(gated=True),
    "dinov3_meta": dinov3_meta,
    "dinov3_meta_gated": lambda: dinov3_meta(gated=True),
    "dinov3_timm": dinov3_timm,
    "dinov3_timm_gated": lambda: dinov3_timm(gated=True),
}


@pytest.mark.parametrize("name", FORMATS)
def test_family_and_sizes_are_told_by_names_and_shapes(name: str) -> None:
    encoder = build_encoder(FORMATS[name](), revision="r", num_heads=2)
    family = name.split("_")[0]
    assert encoder.spec.name.startswith(family)
    assert (encoder.spec.embed_dim, encoder.spec.depth, encoder.config.mlp_dim) == (WIDTH, 2, MLP)
    assert encoder.spec.patch_size == (16 if family == "dinov3" else 14)
    assert encoder.spec.num_prefix_tokens == (1 if name in ("dinov2_hugging_face", "dinov2_timm") else 5)
    assert encoder.config.gated_mlp == name.endswith(("_gated", "_giant"))
    assert encoder.config.norm_eps == (1e-5 if family == "dinov3" else 1e-6)
    assert encoder.config.position_grid == (None if family == "dinov3" else (3, 3))


@pytest.mark.parametrize("name", FORMATS)
def test_a_loaded_encoder_is_frozen_and_in_eval_mode(name: str) -> None:
    encoder = build_encoder(FORMATS[name](), revision="r", num_heads=2)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_query_key_and_value_are_stacked_and_an_absent_key_bias_is_zero() -> None:
    weights = dinov3_hugging_face()
    attention = build_encoder(weights, revision="r", num_heads=2).blocks[1].attention
    parts = [weights[f"layer.1.attention.{name}_proj.weight"] for name in "qkv"]
    query_bias, value_bias = (weights[f"layer.1.attention.{name}_proj.bias"] for name in "qv")
    assert torch.equal(attention.qkv.weight, torch.cat(parts))
    assert torch.equal(attention.qkv.bias, torch.cat((query_bias, torch.zeros(WIDTH), value_bias)))


def test_the_position_of_cls_is_added_once_and_registers_get_none() -> None:
    weights = dinov2_hugging_face(registers=4)
    encoder = build_encoder(weights, revision="r", num_heads=2)
    cls_token = weights["embeddings.cls_token"] + weights["embeddings.position_embeddings"][:, :1]
    assert torch.equal(encoder.prefix_tokens, torch.cat((cls_token, weights["embeddings.register_tokens"]), dim=1))
    assert encoder.positions is not None
    assert torch.equal(encoder.positions, weights["embeddings.position_embeddings"][:, 1:])


def test_dinov3_with_and_without_the_model_prefix_gives_equal_features() -> None:
    plain = dinov3_hugging_face()
    prefixed = {f"model.{key}" if key.startswith("layer.") else key: tensor for key, tensor in plain.items()}
    images = torch.rand(1, 3, 32, 48)
    first, second = (build_encoder(w, revision="r", num_heads=2)(images, [1]) for w in (plain, prefixed))
    assert torch.equal(first.tokens(1), second.tokens(1))


NOT_NEEDED = {"embeddings.mask_token", "mask_token"}
TELLS_REGISTERS = {"embeddings.register_tokens", "register_tokens"}
"""Without these a DINOv2 checkpoint is a whole one of the model that has no registers."""


def is_named(missing: str, error: CheckpointError) -> bool:
    """Whether a message leads to the missing name; without its first norm, the rest of a block is what is left over."""
    return missing in str(error) or "no known encoder" in str(error) or missing.endswith("norm1.weight")


@pytest.mark.parametrize("name", FORMATS)
def test_every_missing_name_is_an_error_that_names_it(name: str) -> None:
    complete = FORMATS[name]()
    optional = NOT_NEEDED | (TELLS_REGISTERS if name.startswith("dinov2") else set())
    for missing in sorted(complete.keys() - optional):
        weights = {key: tensor for key, tensor in complete.items() if key != missing}
        with pytest.raises(CheckpointError) as error:
            build_encoder(weights, revision="r", num_heads=2)
        assert is_named(missing, error.value)


def test_periods_may_be_rounded_to_bfloat16_and_no_more() -> None:
    weights = dinov3_meta(width=64)
    exact = weights["rope_embed.periods"]
    rounded = exact.bfloat16()
    assert not torch.equal(rounded.float(), exact)
    assert build_encoder(weights | {"rope_embed.periods": rounded}, revision="r").spec.num_heads == 2
    with pytest.raises(CheckpointError, match="not the powers of 100"):
        build_encoder(weights | {"rope_embed.periods": exact * 1.01}, revision="r")


def test_mask_token_may_be_absent() -> None:
    weights = dinov2_hugging_face()
    images = torch.rand(1, 3, 28, 28)
    with_mask_token = build_encoder(weights, revision="r", num_heads=2)(images, [1])
    del weights["embeddings.mask_token"]
    without = build_encoder(weights, revision="r", num_heads=2)(images, [1])
    assert torch.equal(with_mask_token.tokens(1), without.tokens(1))


@pytest.mark.parametrize("name", FORMATS)
def test_a_name_left_over_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"left over: classifier\.weight"):
        build_encoder(FORMATS[name]() | {"classifier.weight": torch.zeros(1)}, revision="r", num_heads=2)


def test_a_gap_in_the_blocks_is_an_error() -> None:
    weights = {k.replace("blocks.1.", "blocks.2."): t for k, t in dinov2_timm().items()}
    with pytest.raises(CheckpointError, match=r"left over: blocks\.2\."):
        build_encoder(weights, revision="r", num_heads=2)


def test_unknown_weights_are_refused_with_some_of_their_names() -> None:
    with pytest.raises(CheckpointError, match=r"conv1\.weight"):
        build_encoder({"conv1.weight": torch.zeros(1)}, revision="r", source="resnet.safetensors")


def test_a_wrong_shape_is_an_error_with_both_shapes() -> None:
    weights = dinov2_timm()
    weights["blocks.1.attn.proj.weight"] = torch.zeros(WIDTH, WIDTH + 1)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attention\.proj\.weight is \[16, 17\], not \[16, 16\]"):
        build_encoder(weights, revision="r", num_heads=2)


def test_positions_that_form_no_square_need_their_grid() -> None:
    weights = dinov2_timm()
    weights["pos_embed"] = torch.randn(1, 10, WIDTH)
    with pytest.raises(CheckpointError, match="10 position embeddings do not form a 3 x 3 grid"):
        build_encoder(weights, revision="r", num_heads=2)
    assert build_encoder(weights, revision="r", num_heads=2, position_grid=(2, 5)).config.position_grid == (2, 5)


@pytest.mark.parametrize("grid", ["position_grid", "resample_grid"])
def test_dinov3_refuses_a_grid_of_positions(grid: str) -> None:
    with pytest.raises(CheckpointError, match="no learned positions"):
        build_encoder(dinov3_hugging_face(), revision="r", num_heads=2, **{grid: (3, 3)})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", FORMATS)
def test_no_shape_but_the_right_one_is_taken(name: str) -> None:
    complete = FORMATS[name]()
    for wrong in sorted(complete.keys() - NOT_NEEDED):
        for change in (lambda t: t[None], lambda t: t[..., :-1], lambda t: t.flatten()[0], lambda t: t[:0]):
            tensor = change(complete[wrong])
            if tensor.shape == complete[wrong].shape:
                continue
            with pytest.raises(CheckpointError):
                build_encoder(complete | {wrong: tensor}, revision="r", num_heads=2)


@pytest.mark.parametrize("name", FORMATS)
def test_whole_numbers_are_not_taken_for_weights(name: str) -> None:
    weights = FORMATS[name]()
    last = next(key for key in weights if "1.norm2.weight" in key)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm2\.weight is torch\.int8"):
        build_encoder(weights | {last: weights[last].to(torch.int8)}, revision="r", num_heads=2)


@pytest.mark.parametrize(
    ("weights", "name", "heads"),
    [
        (dinov2_timm(384), "dinov2_vits14_reg4", 6),
        (dinov2_timm(768), "dinov2_vitb14_reg4", 12),
        (dinov2_timm(1024, registers=False), "dinov2_vitl14", 16),
        (dinov2_meta_giant(1536), "dinov2_vitg14_reg4", 24),
        (dinov3_hugging_face(384), "dinov3_vits16", 6),
        (dinov3_timm(384, gated=True), "dinov3_vits16plus", 6),
        (dinov3_hugging_face(768), "dinov3_vitb16", 12),
        (dinov3_timm(1024), "dinov3_vitl16", 16),
        (dinov3_hugging_face(1280, gated=True), "dinov3_vith16plus", 20),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_published_widths_know_their_name_and_heads(weights: Weights, name: str, heads: int) -> None:
    spec = build_encoder(weights, revision="r").spec
    assert (spec.name, spec.num_heads) == (name, heads)


def test_an_encoder_narrower_than_one_usual_head_has_one_head() -> None:
    for make in (dinov2_timm, dinov3_hugging_face, dinov3_timm):
        assert build_encoder(make(WIDTH), revision="r").spec.num_heads == 1


def test_revision_is_the_digest_of_the_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_file(dinov2_timm(), first)
    save_file(dinov2_timm(), second)
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert sha256_of(first) == digest
    assert load_encoder(first, num_heads=2).spec.revision == digest[:12]
    assert load_encoder(second, num_heads=2).spec.revision != digest[:12]


def test_a_directory_is_read_through_its_model_file(tmp_path: Path) -> None:
    weights = dinov2_timm()
    save_file(weights, tmp_path / "model.safetensors")
    encoder = load_encoder(tmp_path, num_heads=2)
    assert torch.equal(encoder.norm.weight, weights["norm.weight"])


@pytest.mark.parametrize("name", ["dinov2_registers_meta_giant", "dinov3_meta"])
def test_a_file_of_metas_kind_is_loaded_as_it_is(tmp_path: Path, name: str) -> None:
    weights = FORMATS[name]()
    torch.save(weights, tmp_path / "pretrain.pth")
    encoder = load_encoder(tmp_path / "pretrain.pth", num_heads=2)
    expected = build_encoder(weights, revision=encoder.spec.revision, num_heads=2)
    assert encoder.config == expected.config
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), expected.parameters(), strict=True))


def test_half_precision_files_become_float32_without_a_second_rounding() -> None:
    weights = {name: tensor.bfloat16() for name, tensor in dinov2_hugging_face(registers=4).items()}
    encoder = build_encoder(weights, revision="r", num_heads=2)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    cls_token, positions = weights["embeddings.cls_token"].float(), weights["embeddings.position_embeddings"].float()
    assert torch.equal(encoder.prefix_tokens[:, :1], cls_token + positions[:, :1])


def test_weights_on_the_meta_device_give_an_encoder_there() -> None:
    weights = {name: tensor.to("meta") for name, tensor in dinov3_meta(gated=True).items()}
    encoder = build_encoder(weights, revision="r")
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert encoder.spec == build_encoder(dinov3_meta(gated=True), revision="r").spec


def test_a_directory_brings_its_standardisation(tmp_path: Path) -> None:
    save_file(dinov3_hugging_face(), tmp_path / "model.safetensors")
    assert load_encoder(tmp_path).pixel_mean == IMAGENET_MEAN
    satellite = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(satellite))
    encoder = load_encoder(tmp_path)
    assert (encoder.pixel_mean, encoder.pixel_std) == ((0.43, 0.411, 0.296), (0.213, 0.156, 0.143))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(satellite | {"do_normalize": False}))
    encoder = load_encoder(tmp_path)
    assert (encoder.pixel_mean, encoder.pixel_std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"image_mean": 0.5, "image_std": 0.5}', '{"image_mean": ["a"]}'])
def test_a_standardisation_that_can_not_be_read_is_refused(tmp_path: Path, text: str) -> None:
    save_file(dinov3_hugging_face(), tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json names no image_mean"):
        load_encoder(tmp_path)


def test_another_patch_size_resamples_the_kernel_and_is_told_by_the_name() -> None:
    weights = dinov2_timm(384)
    encoder = build_encoder(weights, revision="r", patch_size=16)
    assert encoder.spec.name == "dinov2_vits16_reg4"
    assert encoder.spec.patch_size == 16
    assert torch.equal(encoder.patch_embed.weight, resample_patch_kernel(weights["patch_embed.proj.weight"], 16))
    assert build_encoder(dinov3_timm(384), revision="r", patch_size=14).spec.name == "dinov3_vits14"


def test_positions_are_resampled_first_to_the_grid_asked_for_and_then_to_the_picture() -> None:
    weights = dinov2_timm(384)
    encoder = build_encoder(weights, revision="r", patch_size=16, resample_grid=(4, 5))
    assert encoder.spec.name == "dinov2_vits16_reg4_grid4x5"
    assert encoder.config.position_grid == (4, 5)
    once = resample_positions(weights["pos_embed"], (3, 3), (4, 5), antialias=True)
    assert torch.equal(encoder.positions, once)
    twice = resample_positions(once, (4, 5), (2, 6), antialias=True)
    prepared = dinov2_timm(384) | weights | {"pos_embed": twice}
    at_once = build_encoder(prepared, revision="r", patch_size=16, position_grid=(2, 6))
    images = torch.rand(1, 3, 32, 96)
    assert torch.equal(encoder(images, [1]).tokens(1), at_once(images, [1]).tokens(1))


@pytest.mark.parametrize(("registers", "antialias"), [(True, True), (False, False)])
def test_positions_are_antialiased_where_there_are_registers(registers: bool, antialias: bool) -> None:
    weights = dinov2_timm(384, registers=registers)
    encoder = build_encoder(weights, revision="r", resample_grid=(2, 2))
    positions = weights["pos_embed"] if registers else weights["pos_embed"][:, 1:]
    assert torch.equal(encoder.positions, resample_positions(positions, (3, 3), (2, 2), antialias=antialias))
    assert encoder.config.position_antialias == antialias


def test_pmt_at_patch_16_and_640_has_as_many_parameters_as_published() -> None:
    shapes = published_shapes("facebook/dinov2-with-registers-large")
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    encoder = build_encoder(weights, revision="r", patch_size=16, resample_grid=(40, 40))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 304_791_552
    assert encoder.spec.name == "dinov2_vitl16_reg4_grid40x40"
