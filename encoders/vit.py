"""The Vision Transformer forward that every supported encoder runs through: one code, sized by a `ViTConfig`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encoders.cache import remember
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.pixels import standardise
from encoders.resample import resample_positions
from encoders.rope import Rope, patch_rope
from encoders.transformer import Block

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViTConfig:
    """Everything that sets one ViT apart from another.

    Attributes:
        name: family and size.
        embed_dim, depth, num_heads, patch_size: the usual sizes.
        mlp_dim: hidden width of the MLP (for a gated one: of each half).
        num_registers: register tokens after CLS.
        norm_eps: epsilon of every LayerNorm (DINOv2 1e-6, DINOv3 1e-5).
        gated_mlp: SwiGLU instead of GELU.
        position_grid: (grid_h, grid_w) of the learned positions; None: RoPE instead.
        position_antialias: how the learned positions are resized.
        rope_theta: base of RoPE's frequencies, where it is used.
        pixel_mean, pixel_std: standardisation of RGB in [0, 1].
    """

    name: str
    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    mlp_dim: int
    num_registers: int = 0
    norm_eps: float = 1e-6
    gated_mlp: bool = False
    position_grid: tuple[int, int] | None = None
    position_antialias: bool = False
    rope_theta: float = 100.0
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD


class VisionTransformer(nn.Module):
    """A frozen ViT that returns its tokens after any of its blocks.

    Weights arrive in our names (`encoders.checkpoints` translates the published ones). A CLS position, where a
    checkpoint has one, is already added to the CLS token.
    """

    def __init__(self, config: ViTConfig, revision: str = "unset") -> None:
        super().__init__()
        self.config = config
        self.spec = EncoderSpec(
            name=config.name,
            revision=revision,
            embed_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            patch_size=config.patch_size,
            num_prefix_tokens=1 + config.num_registers,
        )
        dim, patch = config.embed_dim, config.patch_size
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.prefix_tokens = nn.Parameter(torch.zeros(1, 1 + config.num_registers, dim))
        self.positions: nn.Parameter | None = (
            nn.Parameter(torch.zeros(1, math.prod(config.position_grid), dim)) if config.position_grid else None
        )
        self.blocks = nn.ModuleList(
            Block(dim, config.num_heads, config.mlp_dim, norm_eps=config.norm_eps, gated_mlp=config.gated_mlp)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self._rope_cache: dict[tuple[int, int], Rope] = {}
        self._position_cache: dict[tuple[int, int], Tensor] = {}

    @property
    def pixel_mean(self) -> tuple[float, float, float]:
        """Subtracted from RGB in [0, 1]."""
        return self.config.pixel_mean

    @property
    def pixel_std(self) -> tuple[float, float, float]:
        """What RGB in [0, 1] is divided by after that."""
        return self.config.pixel_std

    def forward(
        self, images: Tensor, out_indices: Iterable[int], hidden_indices: Iterable[int] = ()
    ) -> EncoderFeatures:
        """Encode pictures once, keeping the tokens after each asked block; blocks past the last one asked don't run.

        Args:
            images: [B, 3, H, W] RGB, uint8 in [0, 255] or float in [0, 1], not standardised; H and W are multiples
                of `patch_size`.
            out_indices: 0-based blocks whose tokens are kept, after the final LayerNorm.
            hidden_indices: blocks whose tokens are kept without it.

        Raises:
            ValueError: wrong shape, an index outside the encoder, or none at all.
        """
        normed, bare = frozenset(out_indices), frozenset(hidden_indices)
        last = self.spec.check_out_indices(normed | bare)[-1]
        tokens, grid_size, rope = self.embed(images)
        lateral_features: dict[int, Tensor] = {}
        hidden_states: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks[: last + 1]):
            tokens = block(tokens, rope)
            if index in normed:
                lateral_features[index] = self.norm(tokens)
            if index in bare:
                hidden_states[index] = tokens
        return EncoderFeatures(self.spec, grid_size, lateral_features, hidden_states)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Rope | None]:
        """What enters the first block: ([B, P + N, C], the patches' grid, their rotation if they have one)."""
        pixels = standardise(images, self.config.patch_size, (self.pixel_mean, self.pixel_std))
        patches = self.patch_embed(pixels.to(self.patch_embed.weight.dtype))
        grid_size = (patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)
        if self.positions is not None:
            tokens = tokens + self._grid_positions(grid_size)
        rope = self._rope(grid_size, tokens.device) if self.positions is None else None
        return torch.cat((self.prefix_tokens.expand(len(tokens), -1, -1), tokens), dim=1), grid_size, rope

    def _grid_positions(self, grid_size: tuple[int, int]) -> Tensor:
        source = self.config.position_grid
        assert self.positions is not None and source is not None
        cached = self._position_cache.get(grid_size)
        if cached is None or cached.device != self.positions.device or cached.dtype != self.positions.dtype:
            cached = resample_positions(self.positions, source, grid_size, antialias=self.config.position_antialias)
            remember(self._position_cache, grid_size, cached)
        return cached

    def _rope(self, grid_size: tuple[int, int], device: torch.device) -> Rope:
        cached = self._rope_cache.get(grid_size)
        if cached is None or cached[0].device != device:
            head_dim = self.config.embed_dim // self.config.num_heads
            cached = patch_rope(grid_size, head_dim, self.config.rope_theta, device)
            remember(self._rope_cache, grid_size, cached)
        return cached
