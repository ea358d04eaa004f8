"""In which precision heads are trained."""

from __future__ import annotations

import pytest
import torch

from decoders.training.recipes.recipe import mixed_precision
from encoders.vit import VisionTransformer


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"architecture": "aarch64"}, torch.float32),
    ],
)
def test_a_cpu_multiplies_in_bfloat16_only_where_it_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch,
    tiny_encoder: VisionTransformer,
    capabilities: dict[str, object],
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    features = tiny_encoder(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [1])
    with mixed_precision(features):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
