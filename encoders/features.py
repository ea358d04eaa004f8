"""What a decoder may know about an encoder: `EncoderSpec` before the first picture, `EncoderFeatures` after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor


@dataclass(frozen=True)
class EncoderSpec:
    """The shape of an encoder's output; a decoder is built from this and never from the encoder itself.

    Attributes:
        name: family and size, e.g. ``"dinov2_vits14"``.
        revision: identifies the weights (a digest); features of different revisions never mix.
        embed_dim: C, the width of a token.
        depth: number of blocks; valid `out_indices` are 0 .. depth - 1.
        num_heads: attention heads of the encoder (PMT's decoder uses the same number).
        patch_size: side of a patch in network pixels.
        num_prefix_tokens: CLS and register tokens that stand before the patch tokens.
    """

    name: str
    revision: str
    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    num_prefix_tokens: int

    def check_out_indices(self, out_indices: Iterable[int]) -> tuple[int, ...]:
        """Return `out_indices` as a sorted tuple without repeats.

        Raises:
            ValueError: an index lies outside 0 .. depth - 1, or there is none.
        """
        indices = tuple(sorted(set(out_indices)))
        if not indices:
            raise ValueError("out_indices is empty; name at least one encoder block")
        if indices[0] < 0 or indices[-1] >= self.depth:
            raise ValueError(f"out_indices {list(indices)} outside 0..{self.depth - 1} of {self.name}")
        return indices


@dataclass(frozen=True)
class EncoderFeatures:
    """The result of one encoder pass over B pictures, which every decoder reads.

    Attributes:
        spec: the encoder that made it.
        grid_size: (grid_h, grid_w), patches along height and width; N = grid_h * grid_w.
        lateral_features: ``{block index: [B, P + N, C]}``, the token sequence *after* that block, passed through the
            encoder's final LayerNorm; P prefix tokens first, then the patches in row-major order.
        hidden_states: the same without the LayerNorm, for heads that were trained on the bare residual stream.
    """

    spec: EncoderSpec
    grid_size: tuple[int, int]
    lateral_features: Mapping[int, Tensor]
    hidden_states: Mapping[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lateral_features", MappingProxyType(dict(self.lateral_features)))
        object.__setattr__(self, "hidden_states", MappingProxyType(dict(self.hidden_states)))

    @property
    def batch_size(self) -> int:
        """B, the number of pictures."""
        return self._any.shape[0]

    @property
    def device_type(self) -> str:
        """Where the features lie, e.g. ``"cuda"``."""
        return self._any.device.type

    @property
    def num_bytes(self) -> int:
        """Memory of all blocks."""
        return sum(tokens.nbytes for tokens in (*self.lateral_features.values(), *self.hidden_states.values()))

    @property
    def _any(self) -> Tensor:
        return next(iter((*self.lateral_features.values(), *self.hidden_states.values())))

    def tokens(self, index: int) -> Tensor:
        """All tokens after block `index`: [B, P + N, C].

        Raises:
            KeyError: the pass did not tap that block.
        """
        try:
            return self.lateral_features[index]
        except KeyError:
            tapped = sorted(self.lateral_features)
            raise KeyError(f"block {index} was not tapped in this pass; tapped: {tapped}") from None

    def hidden_state(self, index: int) -> Tensor:
        """All tokens after block `index` before the final LayerNorm: [B, P + N, C].

        Raises:
            KeyError: the pass did not keep that block's.
        """
        try:
            return self.hidden_states[index]
        except KeyError:
            kept = sorted(self.hidden_states)
            raise KeyError(f"the hidden state after block {index} was not kept in this pass; kept: {kept}") from None

    def prefix_tokens(self, index: int) -> Tensor:
        """CLS and register tokens after block `index`: [B, P, C]."""
        return self.tokens(index)[:, : self.spec.num_prefix_tokens]

    def patch_tokens(self, index: int) -> Tensor:
        """Patch tokens after block `index`: [B, N, C], row-major."""
        return self.tokens(index)[:, self.spec.num_prefix_tokens :]

    def patch_map(self, index: int) -> Tensor:
        """Patch tokens after block `index` as a map: [B, C, grid_h, grid_w] (a view, channels last in memory)."""
        return self.patch_tokens(index).transpose(1, 2).unflatten(2, self.grid_size)

    def rows(
        self, rows: Sequence[int], out_indices: Iterable[int], hidden_indices: Iterable[int] = (), *, copy: bool
    ) -> EncoderFeatures:
        """Some pictures' features after some blocks, as one head reads them.

        Args:
            rows: of the batch, in the order wanted.
            out_indices: blocks wanted.
            hidden_indices: blocks wanted without the LayerNorm.
            copy: whether the tensors must be the reader's own; otherwise they may share memory with these.

        Raises:
            IndexError: a row is not in the batch.
            KeyError: a block was not tapped.
        """
        if not rows or min(rows) < 0 or max(rows) >= self.batch_size:
            raise IndexError(f"rows {list(rows)} are not among the {self.batch_size} pictures of this pass")
        everything = list(rows) == list(range(self.batch_size))

        def pick(tokens: Tensor) -> Tensor:
            if not everything:
                return tokens.index_select(0, torch.tensor(rows, device=tokens.device))
            return tokens.clone() if copy else tokens

        return EncoderFeatures(
            self.spec,
            self.grid_size,
            {index: pick(self.tokens(index)) for index in out_indices},
            {index: pick(self.hidden_state(index)) for index in hidden_indices},
        )
