"""Names and shapes of the encoders that Hugging Face publishes, made from their sizes, so that no file is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

Shapes = dict[str, torch.Size]


@dataclass(frozen=True)
class DINOv2Sizes:
    """What sets one DINOv2 apart.

    Attributes:
        width, depth: of the tokens, number of blocks.
        mlp_dim: hidden width of the MLP (for a gated one: of each half).
        gated: SwiGLU instead of GELU.
        num_registers: register tokens.
        num_positions: patches that have a learned position.
        patch_size: side of a patch in pixels.
    """

    width: int
    depth: int
    mlp_dim: int
    gated: bool = False
    num_registers: int = 0
    num_positions: int = 37 * 37
    patch_size: int = 14

    def shapes(self) -> Shapes:
        """Name to shape, as in the saved file."""
        width = self.width
        shapes = {
            "embeddings.cls_token": (1, 1, width),
            "embeddings.mask_token": (1, width),
            "embeddings.position_embeddings": (1, 1 + self.num_positions, width),
            "embeddings.patch_embeddings.projection.weight": (width, 3, self.patch_size, self.patch_size),
            "embeddings.patch_embeddings.projection.bias": (width,),
            **_norm("layernorm", width),
        }
        if self.num_registers:
            shapes["embeddings.register_tokens"] = (1, self.num_registers, width)
        for i in range(self.depth):
            block = f"encoder.layer.{i}."
            for name in ("query", "key", "value"):
                shapes |= _linear(f"{block}attention.attention.{name}", width, width)
            shapes |= _linear(f"{block}attention.output.dense", width, width)
            if self.gated:
                shapes |= _linear(f"{block}mlp.weights_in", width, 2 * self.mlp_dim)
                shapes |= _linear(f"{block}mlp.weights_out", self.mlp_dim, width)
            else:
                shapes |= _linear(f"{block}mlp.fc1", width, self.mlp_dim)
                shapes |= _linear(f"{block}mlp.fc2", self.mlp_dim, width)
            shapes |= _norms_and_scales(block, width)
        return {name: torch.Size(shape) for name, shape in shapes.items()}


@dataclass(frozen=True)
class DINOv3Sizes:
    """What sets one DINOv3 ViT apart.

    Attributes:
        width, depth: of the tokens, number of blocks.
        mlp_dim: hidden width of the MLP.
        gated: SwiGLU instead of GELU.
        has_bias: whether query and value have a bias.
        num_registers: register tokens.
        patch_size: side of a patch in pixels.
    """

    width: int
    depth: int
    mlp_dim: int
    gated: bool = False
    has_bias: bool = True
    num_registers: int = 4
    patch_size: int = 16

    def shapes(self) -> Shapes:
        """Name to shape, as in the saved file."""
        width = self.width
        shapes = {
            "embeddings.cls_token": (1, 1, width),
            "embeddings.mask_token": (1, 1, width),
            "embeddings.register_tokens": (1, self.num_registers, width),
            "embeddings.patch_embeddings.weight": (width, 3, self.patch_size, self.patch_size),
            "embeddings.patch_embeddings.bias": (width,),
            **_norm("norm", width),
        }
        for i in range(self.depth):
            block = f"layer.{i}."
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                has_bias = name == "o_proj" or (self.has_bias and name != "k_proj")
                shapes |= _linear(f"{block}attention.{name}", width, width, has_bias=has_bias)
            for name in ("gate_proj", "up_proj") if self.gated else ("up_proj",):
                shapes |= _linear(f"{block}mlp.{name}", width, self.mlp_dim)
            shapes |= _linear(f"{block}mlp.down_proj", self.mlp_dim, width)
            shapes |= _norms_and_scales(block, width)
        return {name: torch.Size(shape) for name, shape in shapes.items()}


PUBLISHED: Mapping[str, DINOv2Sizes | DINOv3Sizes] = MappingProxyType(
    {
        "facebook/dinov2-small": DINOv2Sizes(384, 12, 1536),
        "facebook/dinov2-base": DINOv2Sizes(768, 12, 3072),
        "facebook/dinov2-large": DINOv2Sizes(1024, 24, 4096),
        "facebook/dinov2-giant": DINOv2Sizes(1536, 40, 4096, gated=True),
        "facebook/dinov2-with-registers-small": DINOv2Sizes(384, 12, 1536, num_registers=4),
        "facebook/dinov2-with-registers-base": DINOv2Sizes(768, 12, 3072, num_registers=4),
        "facebook/dinov2-with-registers-large": DINOv2Sizes(1024, 24, 4096, num_registers=4),
        "facebook/dinov2-with-registers-giant": DINOv2Sizes(1536, 40, 4096, gated=True, num_registers=4),
        "facebook/dinov3-vits16-pretrain-lvd1689m": DINOv3Sizes(384, 12, 1536),
        "facebook/dinov3-vits16plus-pretrain-lvd1689m": DINOv3Sizes(384, 12, 1536, gated=True),
        "facebook/dinov3-vitb16-pretrain-lvd1689m": DINOv3Sizes(768, 12, 3072),
        "facebook/dinov3-vitl16-pretrain-lvd1689m": DINOv3Sizes(1024, 24, 4096),
        "facebook/dinov3-vith16plus-pretrain-lvd1689m": DINOv3Sizes(1280, 32, 5120, gated=True),
        "facebook/dinov3-vit7b16-pretrain-lvd1689m": DINOv3Sizes(4096, 40, 8192, gated=True, has_bias=False),
    }
)
"""Repository on the Hugging Face Hub to sizes."""


def published_shapes(model: str) -> Shapes:
    """Name to shape of every tensor in a published encoder's file.

    Args:
        model: repository on the Hugging Face Hub, e.g. ``"facebook/dinov3-vitl16-pretrain-lvd1689m"``.

    Raises:
        ValueError: none of `PUBLISHED`.
    """
    if model not in PUBLISHED:
        raise ValueError(f"no sizes are known of '{model}'; known: {', '.join(PUBLISHED)}")
    return PUBLISHED[model].shapes()


def _linear(name: str, inputs: int, outputs: int, *, has_bias: bool = True) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if has_bias else weight


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _norms_and_scales(block: str, width: int) -> dict[str, tuple[int, ...]]:
    scales: dict[str, tuple[int, ...]] = {f"{block}layer_scale{i}.lambda1": (width,) for i in (1, 2)}
    return _norm(f"{block}norm1", width) | _norm(f"{block}norm2", width) | scales
