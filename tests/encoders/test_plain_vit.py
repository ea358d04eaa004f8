"""A plain ViT's forward equals `transformers`' on weights in timm's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import ViTConfig as HuggingFaceConfig
from transformers import ViTModel

from encoders.checkpoints import build_encoder, load_encoder
from encoders.key_map import CheckpointError

DIM, DEPTH, SIDE = 64, 3, 4


@pytest.fixture
def oracle() -> ViTModel:
    torch.manual_seed(0)
    config = HuggingFaceConfig(
        hidden_size=DIM,
        num_hidden_layers=DEPTH,
        num_attention_heads=1,
        intermediate_size=96,
        image_size=16 * SIDE,
        patch_size=16,
        layer_norm_eps=1e-6,
    )
    model = ViTModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def in_timm_names(model: ViTModel) -> dict[str, Tensor]:
    theirs = model.state_dict()
    ours = {
        "cls_token": theirs["embeddings.cls_token"],
        "pos_embed": theirs["embeddings.position_embeddings"],
        "head.weight": torch.zeros(5, DIM),
        "head.bias": torch.zeros(5),
    }
    for end in ("weight", "bias"):
        ours[f"patch_embed.proj.{end}"] = theirs[f"embeddings.patch_embeddings.projection.{end}"]
        ours[f"norm.{end}"] = theirs[f"layernorm.{end}"]
        for i in range(DEPTH):
            layer = next(name for name in theirs if f"layer.{i}." in name or f"layers.{i}." in name).split(f"{i}.")[0]
            their, our = f"{layer}{i}.", f"blocks.{i}."
            found = {name.removeprefix(their): value for name, value in theirs.items() if name.startswith(their)}

            def pick(*parts: str, end: str = end, found: dict[str, Tensor] = found) -> Tensor:
                [value] = [v for name, v in found.items() if name.endswith(end) and any(p in name for p in parts)]
                return value

            ours[f"{our}norm1.{end}"] = pick("layernorm_before")
            ours[f"{our}norm2.{end}"] = pick("layernorm_after")
            ours[f"{our}attn.qkv.{end}"] = torch.cat(
                [pick("query.", "q_proj."), pick("key.", "k_proj."), pick("value.", "v_proj.")]
            )
            ours[f"{our}attn.proj.{end}"] = pick("attention.output.dense", "o_proj.")
            ours[f"{our}mlp.fc1.{end}"] = pick("intermediate.dense", "mlp.fc1")
            rest = [
                value
                for name, value in found.items()
                if name.endswith(end) and (name.startswith("output.dense") or "mlp.fc2" in name)
            ]
            [ours[f"{our}mlp.fc2.{end}"]] = rest
    return {name: value.contiguous() for name, value in ours.items()}


def test_its_tokens_are_those_of_the_published_forward(oracle: ViTModel, tmp_path: Path) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(in_timm_names(oracle), file)
    encoder = load_encoder(file)
    images = torch.randint(0, 256, (2, 3, 16 * SIDE, 16 * SIDE), dtype=torch.uint8)
    with torch.no_grad():
        expected = oracle((images.float() / 255 - 0.5) / 0.5).last_hidden_state
        found = encoder(images, [DEPTH - 1]).tokens(DEPTH - 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_missing_weight_is_named(oracle: ViTModel) -> None:
    weights = in_timm_names(oracle)
    del weights["blocks.1.attn.qkv.bias"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.qkv\.bias"):
        build_encoder(weights, revision="r")


@pytest.mark.parametrize("asked", [{"patch_size": 14}, {"resample_grid": (4, 4)}, {"position_grid": (2, 8)}])
def test_another_patch_size_or_grid_is_refused(oracle: ViTModel, asked: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="its own patch size and grid"):
        build_encoder(in_timm_names(oracle), revision="r", **asked)
