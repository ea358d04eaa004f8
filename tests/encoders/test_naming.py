"""Published names: the same weights under each of them give the features that transformers gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from encoders.checkpoints import build_encoder, load_encoder
from encoders.key_map import CheckpointError
from encoders.vit import IMAGENET_MEAN, IMAGENET_STD

Weights = dict[str, Tensor]
WIDTH, DEPTH, HEADS = 32, 3, 4
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
DINOV2 = SIZES | {"patch_size": 14, "image_size": 70, "mlp_ratio": 2}
DINOV3 = SIZES | {"patch_size": 16, "intermediate_size": 40, "num_register_tokens": 4}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
WITHOUT_BIAS = {"query_bias": False, "value_bias": False}
MODELS: dict[str, Callable[[], Any]] = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINOV2)),
    "dinov2_swiglu": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**DINOV2, use_swiglu_ffn=True)),
    "dinov2_registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=4)
    ),
    "dinov2_registers_swiglu": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**DINOV2, num_register_tokens=4, use_swiglu_ffn=True)
    ),
    "dinov3": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**DINOV3)),
    "dinov3_gated": lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**DINOV3, **GATED)),
    "dinov3_gated_without_bias": lambda: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**DINOV3, **GATED, **WITHOUT_BIAS)
    ),
}
GRIDS = [(5, 5), (1, 1), (4, 6), (9, 2), (3, 7), (11, 8)]
"""(grid_h, grid_w): that of the learned positions, one patch, and odd and even ones on both sides of it."""


def layers(weights: Weights, names: dict[str, str]) -> Weights:
    """Weight and bias of some layers under new names."""
    return {f"{new}.{kind}": weights[f"{old}.{kind}"] for old, new in names.items() for kind in ("weight", "bias")}


def dinov2_blocks(weights: Weights, mlp: dict[str, str]) -> Weights:
    """What Meta and timm have in common."""
    renamed = layers(weights, {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"})
    for i in range(DEPTH):
        old, new = f"encoder.layer.{i}", f"blocks.{i}"
        same = {f"{old}.{name}": f"{new}.{name}" for name in ("norm1", "norm2")}
        same |= {f"{old}.attention.output.dense": f"{new}.attn.proj"}
        renamed |= layers(weights, same | {f"{old}.{name}": f"{new}.{name_of}" for name, name_of in mlp.items()})
        for kind in ("weight", "bias"):
            parts = [weights[f"{old}.attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            renamed[f"{new}.attn.qkv.{kind}"] = torch.cat(parts)
        for number in (1, 2):
            renamed[f"{new}.ls{number}.gamma"] = weights[f"{old}.layer_scale{number}.lambda1"]
    return renamed


def is_gated(weights: Weights) -> bool:
    return any("weights_in" in name or "gate_proj" in name for name in weights)


def dinov2_as_meta(weights: Weights) -> Weights:
    """Names of dinov2/models/vision_transformer.py, the giant's MLP those of dinov2/layers/swiglu_ffn.py."""
    gated = {"mlp.weights_in": "mlp.w12", "mlp.weights_out": "mlp.w3"}
    plain = {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    renamed = dinov2_blocks(weights, gated if is_gated(weights) else plain)
    renamed["cls_token"] = weights["embeddings.cls_token"]
    renamed["mask_token"] = weights["embeddings.mask_token"]
    renamed["pos_embed"] = weights["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in weights:
        renamed["register_tokens"] = weights["embeddings.register_tokens"]
    return renamed


def dinov2_as_timm(weights: Weights) -> Weights:
    """What `_convert_dinov2` of timm/models/vision_transformer.py makes of Meta's files."""
    gated = {"mlp.weights_in": "mlp.fc1", "mlp.weights_out": "mlp.fc2"}
    plain = {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    renamed = dinov2_blocks(weights, gated if is_gated(weights) else plain)
    cls_token, positions = weights["embeddings.cls_token"], weights["embeddings.position_embeddings"]
    if "embeddings.register_tokens" not in weights:
        return renamed | {"cls_token": cls_token, "pos_embed": positions}
    renamed["reg_token"] = weights["embeddings.register_tokens"]
    return renamed | {"cls_token": cls_token + positions[:, 0], "pos_embed": positions[:, 1:]}


def dinov3_blocks(weights: Weights, mlp: dict[str, str]) -> Weights:
    """What Meta and timm have in common, all but the biases of query, key and value."""
    renamed = layers(weights, {"embeddings.patch_embeddings": "patch_embed.proj", "norm": "norm"})
    renamed["cls_token"] = weights["embeddings.cls_token"]
    for i in range(DEPTH):
        old, new = f"layer.{i}", f"blocks.{i}"
        same = {f"{old}.norm1": f"{new}.norm1", f"{old}.norm2": f"{new}.norm2"}
        same |= {f"{old}.attention.o_proj": f"{new}.attn.proj", f"{old}.mlp.down_proj": f"{new}.mlp.{mlp['down']}"}
        same |= {f"{old}.mlp.up_proj": f"{new}.mlp.{mlp['up']}"}
        if "gate" in mlp:
            same |= {f"{old}.mlp.gate_proj": f"{new}.mlp.{mlp['gate']}"}
        renamed |= layers(weights, same)
        parts = [weights[f"{old}.attention.{name}_proj.weight"] for name in "qkv"]
        renamed[f"{new}.attn.qkv.weight"] = torch.cat(parts)
    return renamed


def dinov3_as_meta(weights: Weights) -> Weights:
    """Names of dinov3/models/vision_transformer.py; the key's bias is not zero, but its mask is."""
    gated = {"gate": "w1", "up": "w2", "down": "w3"}
    renamed = dinov3_blocks(weights, gated if is_gated(weights) else {"up": "fc1", "down": "fc2"})
    renamed["storage_tokens"] = weights["embeddings.register_tokens"]
    renamed["mask_token"] = weights["embeddings.mask_token"][0]
    renamed["rope_embed.periods"] = (100 ** (2 * torch.arange(WIDTH // HEADS // 4) / (WIDTH // HEADS // 2))).bfloat16()
    renamed |= {f"local_cls_norm.{kind}": torch.randn(WIDTH) for kind in ("weight", "bias")}
    for i in range(DEPTH):
        for number in (1, 2):
            renamed[f"blocks.{i}.ls{number}.gamma"] = weights[f"layer.{i}.layer_scale{number}.lambda1"]
        if f"layer.{i}.attention.q_proj.bias" in weights:
            query_bias, value_bias = (weights[f"layer.{i}.attention.{name}_proj.bias"] for name in "qv")
            ones, zeros = torch.ones(WIDTH), torch.zeros(WIDTH)
            renamed[f"blocks.{i}.attn.qkv.bias"] = torch.cat((query_bias, 1e3 * ones, value_bias))
            renamed[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat((ones, zeros, ones))
    return renamed


def dinov3_as_timm(weights: Weights) -> Weights:
    """Names of timm/models/eva.py, as its `checkpoint_filter_fn` makes them of Meta's."""
    gated = {"gate": "fc1_g", "up": "fc1_x", "down": "fc2"}
    renamed = dinov3_blocks(weights, gated if is_gated(weights) else {"up": "fc1", "down": "fc2"})
    renamed["reg_token"] = weights["embeddings.register_tokens"]
    for i in range(DEPTH):
        for number in (1, 2):
            renamed[f"blocks.{i}.gamma_{number}"] = weights[f"layer.{i}.layer_scale{number}.lambda1"]
        if f"layer.{i}.attention.q_proj.bias" in weights:
            for name in "qv":
                renamed[f"blocks.{i}.attn.{name}_bias"] = weights[f"layer.{i}.attention.{name}_proj.bias"]
    return renamed


NAMINGS: dict[str, Callable[[Weights], Weights]] = {
    "dinov2_hugging_face": dict,
    "dinov2_meta": dinov2_as_meta,
    "dinov2_timm": dinov2_as_timm,
    "dinov3_hugging_face": dict,
    "dinov3_meta": dinov3_as_meta,
    "dinov3_timm": dinov3_as_timm,
}


@dataclass(frozen=True)
class Model:
    """A transformers model with random weights, the directory that it saved, and its weights as named there."""

    family: str
    oracle: Any
    directory: Path
    weights: Weights

    def namings(self) -> dict[str, Weights]:
        """The weights under every name of the family."""
        return {naming: rename(self.weights) for naming, rename in NAMINGS.items() if naming.startswith(self.family)}


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Makes one of `MODELS`, once."""
    transformers.utils.logging.disable_progress_bar()

    @cache
    def make(name: str) -> Model:
        oracle = MODELS[name]().eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter_name, parameter in oracle.named_parameters():
                gain = "lambda1" in parameter_name or ("norm" in parameter_name and parameter_name.endswith("weight"))
                parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator) + gain)
        directory = tmp_path_factory.mktemp(name)
        oracle.save_pretrained(directory)
        return Model(name.split("_")[0], oracle, directory, load_file(directory / "model.safetensors"))

    return make


def constant(channels: tuple[float, float, float]) -> Tensor:
    """A value per colour channel, to be applied to [B, 3, H, W]."""
    return torch.tensor(channels).view(1, 3, 1, 1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
@torch.no_grad()
def test_every_block_equals_transformers_under_every_naming(
    make_model: Callable[[str], Model], name: str, grid: tuple[int, int]
) -> None:
    model = make_model(name)
    patch = model.oracle.config.patch_size
    images = torch.rand(2, 3, grid[0] * patch, grid[1] * patch)
    expected = model.oracle((images - constant(IMAGENET_MEAN)) / constant(IMAGENET_STD), output_hidden_states=True)
    assert len(expected.hidden_states) == DEPTH + 1
    final_norm = model.oracle.norm if hasattr(model.oracle, "norm") else model.oracle.layernorm
    for naming, weights in model.namings().items():
        features = build_encoder(weights, revision="r", num_heads=HEADS)(images, range(DEPTH), range(DEPTH))
        assert features.grid_size == grid
        for index in range(DEPTH):
            hidden = expected.hidden_states[index + 1]
            torch.testing.assert_close(features.hidden_state(index), hidden, atol=1e-4, rtol=0, msg=naming)
            torch.testing.assert_close(features.tokens(index), final_norm(hidden), atol=1e-4, rtol=0, msg=naming)
        last = features.tokens(DEPTH - 1)
        torch.testing.assert_close(last, expected.last_hidden_state, atol=1e-4, rtol=0, msg=naming)


@pytest.mark.parametrize("name", MODELS)
def test_every_naming_gives_one_encoder_to_the_bit(make_model: Callable[[str], Model], name: str) -> None:
    model = make_model(name)
    published = load_encoder(model.directory, num_heads=HEADS)
    for weights in model.namings().values():
        encoder = build_encoder(weights, revision=published.spec.revision, num_heads=HEADS)
        assert encoder.config == published.config
        assert encoder.spec == published.spec
        for ours, theirs in zip(encoder.parameters(), published.parameters(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_spec_is_read_off_the_saved_model(make_model: Callable[[str], Model], name: str) -> None:
    model = make_model(name)
    encoder, config = load_encoder(model.directory, num_heads=HEADS), model.oracle.config
    assert (encoder.spec.embed_dim, encoder.spec.depth, encoder.spec.num_heads) == (WIDTH, DEPTH, HEADS)
    assert encoder.spec.patch_size == config.patch_size
    assert encoder.spec.num_prefix_tokens == 1 + getattr(config, "num_register_tokens", 0)
    assert encoder.config.gated_mlp == ("swiglu" in name or "gated" in name)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("dinov3")])
def test_meta_tells_the_heads_by_the_periods(make_model: Callable[[str], Model], name: str) -> None:
    weights = dinov3_as_meta(make_model(name).weights)
    assert build_encoder(weights, revision="r").spec.num_heads == HEADS


@pytest.fixture
def meta(make_model: Callable[[str], Model]) -> Weights:
    """DINOv3 of the plainest kind under Meta's names."""
    return dinov3_as_meta(make_model("dinov3").weights)


def test_periods_of_another_base_are_refused(meta: Weights) -> None:
    meta["rope_embed.periods"] = 10000 ** (torch.arange(2) / 2)
    with pytest.raises(CheckpointError, match="not the powers of 100 that DINOv3 uses"):
        build_encoder(meta, revision="r")


def test_periods_that_contradict_the_heads_are_refused(meta: Weights) -> None:
    with pytest.raises(CheckpointError, match=r"periods has 2 entries, but 2 heads of dinov3_.* need 4"):
        build_encoder(meta, revision="r", num_heads=2)


def test_a_bias_mask_that_was_never_initialised_is_refused(meta: Weights) -> None:
    meta["blocks.1.attn.qkv.bias_mask"] = torch.full((3 * WIDTH,), torch.nan)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.qkv\.bias times its mask is not finite"):
        build_encoder(meta, revision="r")


def test_a_bias_mask_of_another_length_is_refused(meta: Weights) -> None:
    meta["blocks.1.attn.qkv.bias_mask"] = torch.ones(WIDTH)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.qkv\.bias_mask is \[32\]"):
        build_encoder(meta, revision="r")


def test_a_norm_for_cls_alone_is_refused_since_it_acts_at_inference(meta: Weights) -> None:
    with pytest.raises(CheckpointError, match=r"left over: cls_norm\.weight"):
        build_encoder(meta | {"cls_norm.weight": torch.ones(WIDTH)}, revision="r")
