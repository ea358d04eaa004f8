"""Pooling: CLS, the mean over the patches that lie on the picture, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from decoders.pooling import patches_on_picture, pool, pooled_dim, tokens_to_pool
from encoders.geometry import FitGeometry
from encoders.vit import VisionTransformer

FULL = FitGeometry(16, 24).place((16, 24))


@pytest.mark.parametrize(("pooling", "num_blocks", "dim"), [("cls", 1, 16), ("mean", 4, 16), ("cls+mean", 4, 80)])
def test_length_of_the_vector(tiny_encoder: VisionTransformer, pooling: str, num_blocks: int, dim: int) -> None:
    assert pooled_dim(tiny_encoder.spec, pooling, num_blocks) == dim


def test_an_unknown_pooling_is_refused_and_the_known_ones_are_named(tiny_encoder: VisionTransformer) -> None:
    with pytest.raises(ValueError, match=r"no pooling 'max'; there are: cls, mean, cls\+mean"):
        pooled_dim(tiny_encoder.spec, "max")


@pytest.mark.parametrize("pooling", ["cls", "cls+mean"])
def test_cls_of_an_encoder_without_one_is_refused(tiny_encoder: VisionTransformer, pooling: str) -> None:
    spec = replace(tiny_encoder.spec, num_prefix_tokens=0)
    assert pooled_dim(spec, "mean") == 16
    with pytest.raises(ValueError, match="the head reads the CLS token, and tiny has none"):
        pooled_dim(spec, pooling)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("num_registers", [0, 2])
def test_a_picture_that_fills_the_input_is_pooled_over_all_its_patches_and_no_register(
    make_encoder: Callable[..., VisionTransformer], pooling: str, num_registers: int
) -> None:
    encoder = make_encoder(num_registers=num_registers)
    features = encoder(torch.rand(2, 3, 16, 24), (1, 3))
    tokens = tokens_to_pool(features, pooling, (1, 3))
    for row in range(2):
        cls = [features.tokens(1)[row, 0], features.tokens(3)[row, 0]]
        mean = features.tokens(3)[row, 1 + num_registers :].mean(dim=0)
        expected = torch.cat({"cls": cls, "mean": [mean], "cls+mean": [*cls, mean]}[pooling])
        found = pool({name: tensor[row] for name, tensor in tokens.items()}, FULL)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("image_size", "rows", "columns"),
    [((16, 24), 2, 3), ((16, 8), 2, 1), ((16, 9), 2, 2), ((8, 24), 1, 3), ((2, 24), 1, 3), ((160, 1), 2, 1)],
)
def test_a_patch_counts_if_any_of_it_is_on_the_picture(image_size: tuple[int, int], rows: int, columns: int) -> None:
    patch_map = torch.arange(6.0).view(2, 3, 1)
    geometry = FitGeometry(16, 24).place(image_size)
    assert torch.equal(patches_on_picture(patch_map, geometry), patch_map[:rows, :columns])
    torch.testing.assert_close(pool({"patch_map": patch_map}, geometry), patch_map[:rows, :columns].mean().view(1))


def test_half_precision_is_averaged_in_float32() -> None:
    patch_map = torch.full((40, 60, 1), 100.0, dtype=torch.float16)  # their sum is beyond float16
    vector = pool({"patch_map": patch_map}, FitGeometry(320, 480).place((320, 480)))
    assert vector.dtype == torch.float32
    assert vector.item() == 100
