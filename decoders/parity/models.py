"""The encoder and decoder of a case, from its files of weights or from its formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from decoders.parity import seeded
from decoders.parity.cases import Case, CaseError
from decoders.plain_mask_decoder import PlainMaskDecoder
from decoders.pmt_checkpoints import load_pmt_decoder
from encoders.checkpoints import build_encoder
from encoders.embedded import embedded_encoder
from encoders.vit import VisionTransformer


@dataclass(frozen=True)
class Model:
    """A frozen encoder and the decoder on it (its laterals not folded)."""

    encoder: VisionTransformer
    decoder: PlainMaskDecoder


def read_model(case: Case) -> Model:
    """Build a case's model; sizes that no shape tells (heads, levels, the grid of positions) come from its "config".

    Raises:
        CaseError: weights or facts are missing.
        CheckpointError: the weights fit no model.
    """
    if seeded.has_formula(case):
        weights = seeded.weights(case)
        encoder_weights = {n.removeprefix("encoder:"): t for n, t in weights.items() if n.startswith("encoder:")}
        decoder_weights = {n: t for n, t in weights.items() if not n.startswith("encoder:")}
    else:
        found = case.weights("ckpt")
        if found is None:
            raise CaseError(f"no file of decoder weights, such as {case.name.partition('.')[0]}.ckpt.safetensors")
        decoder_weights, encoder_weights = found, case.weights("encoder") or {}
    encoder_weights = encoder_weights or dict(embedded_encoder(decoder_weights) or {})
    if not encoder_weights:
        raise CaseError("no encoder weights: neither X.encoder.safetensors nor an encoder inside X.ckpt.safetensors")
    encoder = build_encoder(
        encoder_weights,
        revision="recorded",
        num_heads=case.fact("config.heads", "config.num_heads", default=None),
        position_grid=_position_grid(case, encoder_weights),
    )
    taps = case.fact("config.interaction", "config.interaction_indices")
    return Model(encoder, load_pmt_decoder(decoder_weights, encoder.spec, taps))


def _position_grid(case: Case, weights: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(grid_h, grid_w) of learned positions; None if there are none, or if they form the square of their number."""
    if "pos_embed" not in weights:
        return None
    patch = weights["patch_embed.proj.weight"].shape[-1]
    stated = case.fact("config.img_size", default=None)
    if stated is None:
        return None
    height, width = case.size("config.img_size")
    grid = (height // patch, width // patch)
    return grid if math.prod(grid) == weights["pos_embed"].shape[1] else None
