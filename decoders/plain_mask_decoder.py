"""The Plain Mask Decoder of PMT (arXiv 2603.25398, section 3): queries and frozen features through plain blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.cache import remember
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.rope import Rope, patch_rope
from encoders.transformer import Block, Mlp


class LateralProjection(nn.Module):
    """One level's way into the decoder: batch norm, a residual MLP, and a scale per channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.mlp = Mlp(dim, dim // 2)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, C] to [B, T, C]; the norm counts prefix tokens as well, and the scale covers the residual."""
        normed = self.norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return self.scale * (normed + self.mlp(normed))


class FoldedLateralProjection(nn.Module):
    """`LateralProjection` at inference: the norm and the scale have gone into the MLP and into one affine residual."""

    def __init__(self, lateral: LateralProjection) -> None:
        super().__init__()
        norm, mlp, scale = lateral.norm, lateral.mlp, lateral.scale.double()
        assert norm.running_mean is not None and norm.running_var is not None
        gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - gain * norm.running_mean.double()
        fc1, fc2 = mlp.fc1.weight.double(), mlp.fc2.weight.double()
        self.mlp = Mlp(fc1.shape[1], fc1.shape[0]).to(scale.device)
        with torch.no_grad():
            self.mlp.fc1.weight.copy_(fc1 * gain)
            self.mlp.fc1.bias.copy_(mlp.fc1.bias.double() + fc1 @ shift)
            self.mlp.fc2.weight.copy_(scale[:, None] * fc2)
            self.mlp.fc2.bias.copy_(scale * (mlp.fc2.bias.double() + shift))
        self.scale = nn.Parameter((scale * gain).to(lateral.scale.dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        """As `LateralProjection.forward`."""
        return torch.addcmul(self.mlp(tokens), self.scale, tokens)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of a [B, C, H, W] map."""

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UpscaleBlock(nn.Module):
    """Doubles a map: transposed convolution, GELU, depthwise 3x3, LayerNorm over the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)
        self.norm = ChannelLayerNorm(dim, eps=1e-6)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, h, w] to [B, C, 2h, 2w]."""
        return self.norm(self.conv2(F.gelu(self.conv1(maps))))


class PlainMaskDecoder(nn.Module):
    """Predicts Q masks and their classes from the tokens of several encoder blocks.

    Sequence: [Q queries, P prefix tokens, N patches]; the lateral sum feeds the last two. RoPE turns the patches only.

    Args:
        spec: of the encoder.
        out_indices: blocks to read.
        num_queries: Q.
        num_classes: K, without "no object".
        num_blocks: decoder blocks.
        mlp_dim: hidden width of the blocks' MLP; the published models use C.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        out_indices: Iterable[int],
        num_queries: int,
        num_classes: int,
        num_blocks: int = 6,
        mlp_dim: int | None = None,
    ) -> None:
        super().__init__()
        dim = spec.embed_dim
        self.out_indices = spec.check_out_indices(out_indices)
        self.num_prefix_tokens = spec.num_prefix_tokens
        self.head_dim = dim // spec.num_heads
        self.num_queries = num_queries
        self.laterals = nn.ModuleList(LateralProjection(dim) for _ in self.out_indices)
        self.queries = nn.Parameter(torch.randn(num_queries, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, spec.num_heads, mlp_dim or dim) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(dim)
        num_upscales = max(1, math.floor(math.log2(spec.patch_size)) - 2)
        self.upscale = nn.Sequential(*(UpscaleBlock(dim) for _ in range(num_upscales)))
        self.mask_head = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)
        )
        self.class_head = nn.Linear(dim, num_classes + 1)
        self._rope_cache: dict[tuple[int, int], Rope] = {}

    def forward(self, features: EncoderFeatures) -> tuple[Tensor, Tensor]:
        """Masks and classes of every query.

        Returns:
            (mask_logits [B, Q, s*h, s*w] with s = 4 for patch 16 and 2 for patch 14; class_logits [B, Q, K + 1], the
            last being "no object").
        """
        return self.predict(self.decode(features), features.grid_size)

    def decode(self, features: EncoderFeatures, queries: Tensor | None = None) -> Tensor:
        """What leaves the last block: [B, Q + P + N, C].

        Args:
            features: of the encoder.
            queries: [B, Q, C], instead of the learned ones.
        """
        tokens, rope = self.embed(features, queries)
        for block in self.blocks:
            tokens = block(tokens, rope)
        return tokens

    def forward_masked(
        self, features: EncoderFeatures, attn_mask_probs: Sequence[float]
    ) -> list[tuple[Tensor, Tensor]]:
        """The training-time form: a prediction before every block and one after the last, with masked attention.

        Before block i, a query may attend to the patches where its mask so far is positive; with probability
        1 - attn_mask_probs[i] a query may attend everywhere.

        Returns:
            num_blocks + 1 pairs as `forward` returns them; the last one is the decoder's answer.
        """
        return self.decode_masked(features, attn_mask_probs)[0]

    def decode_masked(
        self, features: EncoderFeatures, attn_mask_probs: Sequence[float], queries: Tensor | None = None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """As `forward_masked`, and what leaves the last block; `queries` as in `decode`."""
        tokens, rope = self.embed(features, queries)
        predictions = []
        for block, probability in zip(self.blocks, attn_mask_probs, strict=True):
            predictions.append(self.predict(tokens, features.grid_size))
            mask = self._attention_mask(predictions[-1][0], features.grid_size, tokens.shape[1], probability)
            tokens = block(tokens, rope, mask)
        return [*predictions, self.predict(tokens, features.grid_size)], tokens

    def embed(self, features: EncoderFeatures, queries: Tensor | None = None) -> tuple[Tensor, Rope]:
        """What enters the first block: ([B, Q + P + N, C], the patches' rotation); `queries` as in `decode`."""
        levels = (
            lateral(features.tokens(index)) for lateral, index in zip(self.laterals, self.out_indices, strict=True)
        )
        summed = sum(levels, start=torch.zeros((), device=self.queries.device, dtype=self.queries.dtype))
        if queries is None:
            queries = self.queries.expand(len(summed), -1, -1)
        return torch.cat((queries, summed), dim=1), self._rope(features.grid_size, summed.device)

    def fold_laterals(self) -> None:
        """Fold each level's batch norm and scale into its projection, for inference; computed in float64.

        The answers stay the same within rounding, and training is over: the statistics are gone.
        """
        self.laterals = nn.ModuleList(
            FoldedLateralProjection(lateral) if isinstance(lateral, LateralProjection) else lateral
            for lateral in self.laterals
        )

    def predict(self, tokens: Tensor, grid_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(mask_logits, class_logits) from a token sequence [B, Q + P + N, C]; prefix tokens are dropped here."""
        normed = self.norm(tokens)
        queries = normed[:, : self.num_queries]
        patches = normed[:, self.num_queries + self.num_prefix_tokens :]
        maps = self.upscale(patches.transpose(1, 2).unflatten(2, grid_size))
        mask_logits = torch.einsum("bqc,bchw->bqhw", self.mask_head(queries), maps)
        return mask_logits, self.class_head(queries)

    def _attention_mask(
        self, mask_logits: Tensor, grid_size: tuple[int, int], num_tokens: int, probability: float
    ) -> Tensor:
        on_grid = F.interpolate(mask_logits.detach().float(), size=grid_size, mode="bilinear", align_corners=False)
        may_attend = on_grid.flatten(2) > 0  # [B, Q, N]
        opened = torch.rand(may_attend.shape[:2], device=may_attend.device) >= probability
        may_attend |= opened[..., None]
        mask = may_attend.new_ones(len(may_attend), 1, num_tokens, num_tokens)
        mask[:, 0, : self.num_queries, -may_attend.shape[2] :] = may_attend
        return mask

    def _rope(self, grid_size: tuple[int, int], device: torch.device) -> Rope:
        cached = self._rope_cache.get(grid_size)
        if cached is None or cached[0].device != device:
            cached = patch_rope(grid_size, self.head_dim, device=device)
            remember(self._rope_cache, grid_size, cached)
        return cached
