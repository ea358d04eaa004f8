"""PMT's online video decoder: the queries of a frame are carried into the next, as state that belongs to the stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decoders.plain_mask_decoder import PlainMaskDecoder
from encoders.features import EncoderFeatures, EncoderSpec


class OnlineMaskDecoder(PlainMaskDecoder):
    """A Plain Mask Decoder whose queries come from the frame before. Nothing of a stream is kept on the module.

    Args:
        spec, sizes: as in `PlainMaskDecoder`.
        propagates: whether queries are carried on. A decoder trained on still pictures has learned no way to; with
            False every frame begins with the learned queries, and an object keeps its identity only as far as its
            query keeps to it.
    """

    def __init__(self, spec: EncoderSpec, *, propagates: bool = True, **sizes: Any) -> None:
        super().__init__(spec, **sizes)
        self.query_updater = nn.Linear(spec.embed_dim, spec.embed_dim) if propagates else None

    def step(self, features: EncoderFeatures, queries: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One frame of each of B streams.

        Args:
            features: of the frames.
            queries: [B, Q, C], what `step` returned for each stream's frame before; None: every stream begins.

        Returns:
            (mask_logits, class_logits as in `PlainMaskDecoder.forward`; queries for the next frame, [B, Q, C]).
        """
        tokens = self.decode(features, queries)
        return *self.predict(tokens, features.grid_size), self._next_queries(tokens)

    def step_masked(
        self, features: EncoderFeatures, attn_mask_probs: Sequence[float], queries: Tensor | None = None
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """The training-time form of `step`: (predictions as of `forward_masked`, queries for the next frame)."""
        predictions, tokens = self.decode_masked(features, attn_mask_probs, queries)
        return predictions, self._next_queries(tokens)

    def _next_queries(self, tokens: Tensor) -> Tensor:
        if self.query_updater is None:
            return self.queries.expand(len(tokens), -1, -1)
        return self.query_updater(tokens[:, : self.num_queries]) + self.queries


@dataclass(frozen=True)
class StreamState:
    """What one stream carries from frame to frame.

    Attributes:
        queries: [Q, C], they replace the learned ones in the next frame.
        class_logits: [Q, K + 1] float32, the mean over the frames so far.
        num_frames: seen so far.
    """

    queries: Tensor
    class_logits: Tensor
    num_frames: int

    @property
    def num_bytes(self) -> int:
        """Memory that the state holds."""
        return self.queries.nbytes + self.class_logits.nbytes


def stack_queries(states: Sequence[StreamState | None], learned: Tensor) -> Tensor | None:
    """The queries of several streams as a batch [B, Q, C]; the learned ones for streams that begin (None)."""
    if all(state is None for state in states):
        return None
    return torch.stack([learned if state is None else state.queries for state in states])


def advance(
    states: Sequence[StreamState | None], queries: Tensor, class_logits: Tensor, window: int | None
) -> list[StreamState]:
    """The states after a frame.

    Args:
        states: before it; None: the stream began with it.
        queries: [B, Q, C] from `OnlineMaskDecoder.step`.
        class_logits: [B, Q, K + 1] of this frame.
        window: frames that the running mean remembers about; None: the whole stream, as PMT's evaluation of a clip.
    """
    after = []
    for state, row, logits in zip(states, queries, class_logits.float(), strict=True):
        seen = 1 if state is None else state.num_frames + 1
        mean = logits if state is None else torch.lerp(state.class_logits, logits, 1 / min(seen, window or seen))
        # Copies: a row of a batch would keep the whole batch alive for as long as the stream lives.
        after.append(StreamState(row.clone(), mean.clone(), seen))
    return after
