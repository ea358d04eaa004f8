"""The pre-norm Transformer block that the encoders and PMT's decoder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.rope import Rope, apply_rope


class Attention(nn.Module):
    """Multi-head self-attention with one fused matrix for query, key and value (stacked in that order)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {dim}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, rope: Rope | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """Attend; [B, T, C] to [B, T, C].

        Args:
            tokens: [B, T, C].
            rope: rotation of the last N tokens.
            attn_mask: bool, broadcastable to [B, heads, T, T]; True = may attend.
        """
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)  # each [B, heads, T, head_dim]
        if rope is not None:
            query, key = apply_rope(query, rope), apply_rope(key, rope)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class GatedMlp(nn.Module):
    """SwiGLU: Linear(silu(gate) * up), gate and up from one fused matrix (stacked in that order)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        gate, up = self.fc1(tokens).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * up)


class Block(nn.Module):
    """x + scale1 * attention(norm1(x)), then x + scale2 * mlp(norm2(x)); the scales are LayerScale vectors."""

    def __init__(
        self, dim: int, num_heads: int, mlp_dim: int, *, norm_eps: float = 1e-5, gated_mlp: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, num_heads)
        self.scale1 = nn.Parameter(torch.ones(dim))
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp: Mlp | GatedMlp = (GatedMlp if gated_mlp else Mlp)(dim, mlp_dim)
        self.scale2 = nn.Parameter(torch.ones(dim))

    def forward(self, tokens: Tensor, rope: Rope | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """[B, T, C] to [B, T, C]; `rope` and `attn_mask` as in `Attention`."""
        return self.transform(self.attend(tokens, rope, attn_mask))

    def attend(self, tokens: Tensor, rope: Rope | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """The first half."""
        return tokens + self.scale1 * self.attention(self.norm1(tokens), rope, attn_mask)

    def transform(self, tokens: Tensor) -> Tensor:
        """The second half."""
        return tokens + self.scale2 * self.mlp(self.norm2(tokens))
