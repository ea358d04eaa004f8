"""What changes a head's weights: Muon for the matrices of its Transformer blocks, AdamW for all the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from encoders.transformer import Block, Mlp

MUON_FACTOR = 3
"""Muon's learning rate over AdamW's."""


class HeadOptimizer:
    """Two optimisers that step together.

    A mask decoder learns faster with Muon (Jordan et al., 2024, as in torch), which is meant for matrices between
    layers; queries, class layers, convolutions and vectors are AdamW's.

    Args:
        head: the module.
        weight_decay: of everything that has more than one dimension.
    """

    def __init__(self, head: nn.Module, weight_decay: float) -> None:
        inner = [m for m in head.modules() if isinstance(m, Block | Mlp)]
        matrices = {layer.weight for module in inner for layer in module.modules() if isinstance(layer, nn.Linear)}
        others = [p for p in head.parameters() if p not in matrices]
        ordered = [p for p in head.parameters() if p in matrices]
        self._adamw = torch.optim.AdamW(
            [
                {"params": [p for p in others if p.ndim > 1], "weight_decay": weight_decay},
                {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            ]
        )
        self._muon = (
            torch.optim.Muon(ordered, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw") if ordered else None
        )

    def step(self, learning_rate: float) -> None:
        """Change the weights by their gradients. `learning_rate` is AdamW's; Muon's follows from it."""
        _step(self._adamw, learning_rate)
        if self._muon is not None:
            _step(self._muon, MUON_FACTOR * learning_rate)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self._adamw.zero_grad(set_to_none=True)
        if self._muon is not None:
            self._muon.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on."""
        muon = None if self._muon is None else self._muon.state_dict()
        return {"adamw": self._adamw.state_dict(), "muon": muon}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave for such a head."""
        self._adamw.load_state_dict(state["adamw"])
        if self._muon is not None:
            self._muon.load_state_dict(state["muon"])


def _step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
