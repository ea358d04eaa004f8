"""Reading encoder weights: every published naming, and files that are something else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders.checkpoints import build_encoder, load_encoder, sha256_of
from encoders.key_map import CheckpointError

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


def dinov2_timm(width: int = WIDTH) -> Weights:
    """Two random blocks under timm's names."""
    weights = {
        "cls_token": torch.randn(1, 1, width),
        "reg_token": torch.randn(1, 4, width),
        "pos_embed": torch.randn(1, POSITIONS, width),
        "patch_embed.proj.weight": torch.randn(width, 3, 14, 14),
        "patch_embed.proj.bias": torch.randn(width),
        "norm.weight": torch.randn(width),
        "norm.bias": torch.randn(width),
    }
    linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linears |= {"mlp.fc1": (MLP, width), "mlp.fc2": (width, MLP)}
    for i in range(2):
        weights |= block_tensors(f"blocks.{i}.", width, linears, ("ls1.gamma", "ls2.gamma"))
    return weights


def dinov3_hugging_face(width: int = WIDTH, stem: str = "layer.") -> Weights:
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
    for i in range(2):
        block = block_tensors(f"{stem}{i}.", width, linears, SCALES)
        del block[f"{stem}{i}.attention.k_proj.bias"]
        weights |= block
    return weights


FORMATS: dict[str, Callable[[], Weights]] = {
    "dinov2_hugging_face": dinov2_hugging_face,
    "dinov2_registers_hugging_face": lambda: dinov2_hugging_face(registers=4),
    "dinov2_timm": dinov2_timm,
    "dinov3_hugging_face": dinov3_hugging_face,
    "dinov3_hugging_face_prefixed": lambda: dinov3_hugging_face(stem="model.layer."),
}


@pytest.mark.parametrize("name", FORMATS)
def test_family_and_sizes_are_told_by_names_and_shapes(name: str) -> None:
    encoder = build_encoder(FORMATS[name](), revision="r", num_heads=2)
    family = name.split("_")[0]
    assert encoder.spec.name.startswith(family)
    assert (encoder.spec.embed_dim, encoder.spec.depth, encoder.config.mlp_dim) == (WIDTH, 2, MLP)
    assert encoder.spec.patch_size == (16 if family == "dinov3" else 14)
    assert encoder.spec.num_prefix_tokens == (1 if name == "dinov2_hugging_face" else 5)
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


PREFIX_TOKENS = {"embeddings.cls_token", "embeddings.register_tokens", "embeddings.position_embeddings", "cls_token"}
"""Joined while reading, so the test after the next one has them."""
NOT_NEEDED = {"embeddings.mask_token"}


def is_named(missing: str, error: CheckpointError) -> bool:
    """Whether a message leads to the missing name; without its first norm, the rest of a block is what is left over."""
    return missing in str(error) or "no known encoder" in str(error) or missing.endswith("norm1.weight")


@pytest.mark.parametrize("name", FORMATS)
def test_every_missing_name_is_an_error_that_names_it(name: str) -> None:
    complete = FORMATS[name]()
    key_biases = {key for key in complete if key.endswith("attention.key.bias")}  # see the test below
    for missing in sorted(complete.keys() - NOT_NEEDED - PREFIX_TOKENS - key_biases):
        weights = {key: tensor for key, tensor in complete.items() if key != missing}
        with pytest.raises(CheckpointError) as error:
            build_encoder(weights, revision="r", num_heads=2)
        assert is_named(missing, error.value)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("dinov2_registers_hugging_face", "embeddings.cls_token"),
        ("dinov2_registers_hugging_face", "embeddings.position_embeddings"),
        ("dinov2_timm", "cls_token"),
        ("dinov3_hugging_face", "embeddings.cls_token"),
        ("dinov3_hugging_face", "embeddings.register_tokens"),
    ],
)
def test_missing_prefix_tokens_are_an_error_that_names_them(name: str, missing: str) -> None:
    weights = FORMATS[name]()
    del weights[missing]
    with pytest.raises(CheckpointError, match=missing):
        build_encoder(weights, revision="r", num_heads=2)


def test_a_missing_key_bias_of_dinov2_is_an_error() -> None:
    weights = dinov2_hugging_face()
    del weights["encoder.layer.0.attention.attention.key.bias"]
    with pytest.raises(CheckpointError, match=r"key\.bias"):
        build_encoder(weights, revision="r", num_heads=2)


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


def test_dinov3_refuses_a_position_grid() -> None:
    with pytest.raises(CheckpointError, match="no learned positions"):
        build_encoder(dinov3_hugging_face(), revision="r", num_heads=2, position_grid=(3, 3))


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16)])
def test_published_widths_know_their_heads(width: int, heads: int) -> None:
    for make in (dinov2_timm, dinov3_hugging_face):
        assert build_encoder(make(width), revision="r").spec.num_heads == heads


def test_an_encoder_narrower_than_one_usual_head_has_one_head() -> None:
    for make in (dinov2_timm, dinov3_hugging_face):
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


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_an_absent_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no encoder weights at .*\.safetensors"):
        load_encoder(tmp_path / name)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not safetensors" * 9])
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / "cut.safetensors"
    save_file(dinov2_timm(), file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match="fetch it again"):
        load_encoder(file)
