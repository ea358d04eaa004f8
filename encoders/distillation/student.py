"""`polyhead-tiny`: DINOv3's shape (RoPE, four registers, no key bias) at ViT-Ti's size, from random weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from encoders.transformer import Block, Mlp
from encoders.vit import VisionTransformer, ViTConfig

TINY = ViTConfig(
    name="polyhead_tiny16",
    embed_dim=192,
    depth=12,
    num_heads=3,
    patch_size=16,
    mlp_dim=768,
    num_registers=4,
    norm_eps=1e-5,
)


def new_student(config: ViTConfig = TINY) -> VisionTransformer:
    """A student with random weights, as torch's generator gives them: never a copy of anybody's.

    Both halves of every block add nothing at first: their last matrices are 0.
    """
    student = VisionTransformer(config)
    for module in student.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.7 / math.sqrt(module.weight[0].numel()))
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(student.prefix_tokens, std=0.02)
    for block in student.blocks:
        assert isinstance(block, Block) and isinstance(block.mlp, Mlp)
        nn.init.zeros_(block.attention.proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)
        block.attention.qkv.bias.register_hook(_without_key)
    return student


def _without_key(gradient: Tensor) -> Tensor:
    """The gradient of a query, key and value bias whose key part stays 0."""
    dim = len(gradient) // 3
    return torch.cat((gradient[:dim], torch.zeros_like(gradient[:dim]), gradient[2 * dim :]))


def to_hugging_face(student: VisionTransformer) -> dict[str, Tensor]:
    """Weights in the names of `transformers`' DINOv3ViTModel, float16, contiguous."""
    theirs = {
        "embeddings.cls_token": student.prefix_tokens[:, :1],
        "embeddings.register_tokens": student.prefix_tokens[:, 1:],
        "embeddings.mask_token": torch.zeros(1, 1, student.config.embed_dim),
    }
    for end in ("weight", "bias"):
        theirs[f"embeddings.patch_embeddings.{end}"] = getattr(student.patch_embed, end)
        theirs[f"norm.{end}"] = getattr(student.norm, end)
    for i, block in enumerate(student.blocks):
        assert isinstance(block, Block)
        stem = f"layer.{i}."
        modules = {"norm1": block.norm1, "norm2": block.norm2, "attention.o_proj": block.attention.proj}
        modules |= {"mlp.up_proj": block.mlp.fc1, "mlp.down_proj": block.mlp.fc2}
        for end in ("weight", "bias"):
            theirs |= {f"{stem}{name}.{end}": getattr(module, end) for name, module in modules.items()}
            parts = getattr(block.attention.qkv, end).chunk(3)
            theirs |= {f"{stem}attention.{n}_proj.{end}": part for n, part in zip("qkv", parts, strict=True)}
        del theirs[f"{stem}attention.k_proj.bias"]  # zeros; see `new_student`
        theirs |= {f"{stem}layer_scale{n}.lambda1": getattr(block, f"scale{n}") for n in (1, 2)}
    return {name: tensor.detach().half().contiguous() for name, tensor in theirs.items()}
