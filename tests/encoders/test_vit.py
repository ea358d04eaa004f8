"""The encoder's forward: equal to PMT's, and sparing with blocks (`test_naming` holds it to transformers)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.checkpoints import build_encoder
from encoders.vit import VisionTransformer

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]


@pytest.mark.parametrize("case", ["image_dinov2_tiny", "image_dinov3_tiny"])
@torch.no_grad()
def test_normed_features_equal_pmt(read_golden: ReadGolden, case: str) -> None:
    facts, expected = read_golden(f"{case}.io")
    config = facts["config"]
    _, weights = read_golden(f"{case}.encoder")
    height, width = config["img_size"]
    grid = (height // 16, width // 16) if config["family"] == "dinov2" else None
    encoder = build_encoder(weights, revision="golden", num_heads=config["heads"], position_grid=grid)
    features = encoder(expected["image_u8"], config["interaction"])
    for level, index in enumerate(config["interaction"]):
        torch.testing.assert_close(features.tokens(index), expected[f"feature_norm.{level}"], atol=5e-5, rtol=0)


@contextmanager
def watched_blocks(encoder: VisionTransformer) -> Iterator[list[int]]:
    """A list that grows by a block's index whenever that block runs."""
    ran: list[int] = []
    with ExitStack() as hooks:
        for index, block in enumerate(encoder.blocks):
            hooks.enter_context(block.register_forward_hook(lambda *_, index=index: ran.append(index)))
        yield ran


def test_blocks_after_the_last_tap_do_not_run(tiny_encoder: VisionTransformer) -> None:
    with watched_blocks(tiny_encoder) as ran:
        tiny_encoder(torch.rand(1, 3, 16, 16), [2, 0])
    assert ran == [0, 1, 2]


def test_only_asked_blocks_are_tapped(tiny_encoder: VisionTransformer) -> None:
    features = tiny_encoder(torch.rand(1, 3, 16, 24), [3, 1, 3])
    assert list(features.lateral_features) == [1, 3]
    assert features.tokens(1).shape == (1, 3 + 2 * 3, 16)


def test_a_tap_does_not_depend_on_the_other_taps(tiny_encoder: VisionTransformer) -> None:
    images = torch.rand(1, 3, 16, 24)
    alone, together = tiny_encoder(images, [2]), tiny_encoder(images, range(4))
    torch.testing.assert_close(alone.tokens(2), together.tokens(2), atol=0, rtol=0)
    assert not torch.equal(together.tokens(2), together.tokens(3))


def test_bytes_and_unit_floats_of_one_picture_give_equal_features(tiny_encoder: VisionTransformer) -> None:
    images = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    from_bytes, from_floats = tiny_encoder(images, [3]), tiny_encoder(images.float() / 255, [3])
    torch.testing.assert_close(from_bytes.tokens(3), from_floats.tokens(3))


def test_standardisation_is_public(make_encoder: Callable[..., VisionTransformer]) -> None:
    constants = {"pixel_mean": (0.1, 0.2, 0.3), "pixel_std": (0.4, 0.5, 0.6)}
    encoder = make_encoder(**constants)
    assert {"pixel_mean": encoder.pixel_mean, "pixel_std": encoder.pixel_std} == constants


EVERY_BYTE = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
HALVES = [torch.bfloat16, torch.float16]


def standardised_input(encoder: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """(what the patch embedding gets, what it should be: standardised in float32 by the configured constants)."""
    seen: list[Tensor] = []
    with encoder.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        encoder(images, [0])
    pixels = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (encoder.config.pixel_mean, encoder.config.pixel_std))
    return seen[0], (pixels - mean) / std


@pytest.mark.parametrize("images", [EVERY_BYTE, EVERY_BYTE / 255], ids=["bytes", "floats"])
def test_a_float32_encoder_sees_standardised_pictures(tiny_encoder: VisionTransformer, images: Tensor) -> None:
    seen, wanted = standardised_input(tiny_encoder, images)
    torch.testing.assert_close(seen, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("images", [EVERY_BYTE, EVERY_BYTE / 255], ids=["bytes", "floats"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_half_precision_encoder_sees_every_byte_within_one_step_of_its_type(
    make_encoder: Callable[..., VisionTransformer], dtype: torch.dtype, images: Tensor
) -> None:
    seen, wanted = standardised_input(make_encoder().to(dtype), images)
    assert seen.dtype == dtype
    step = 2 * torch.finfo(dtype).eps  # between values from 2 to 4, where the brightest pixels lie
    torch.testing.assert_close(seen.float(), wanted, atol=step, rtol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_pictures_are_rounded_once_after_standardising(
    make_encoder: Callable[..., VisionTransformer], dtype: torch.dtype
) -> None:
    seen, wanted = standardised_input(make_encoder().to(dtype), EVERY_BYTE)
    assert torch.equal(seen, wanted.to(dtype))


@pytest.mark.parametrize("position_grid", [None, (4, 4)], ids=["rope", "learned"])
@pytest.mark.parametrize("from_bytes", [True, False], ids=["bytes", "floats"])
def test_tokens_of_a_bfloat16_encoder_are_those_of_float32_within_its_precision(
    make_encoder: Callable[..., VisionTransformer], position_grid: tuple[int, int] | None, from_bytes: bool
) -> None:
    images = torch.randint(0, 256, (2, 3, 32, 24), dtype=torch.uint8)
    pixels = images if from_bytes else images.float() / 255
    exact = make_encoder(position_grid=position_grid)(pixels, range(4))
    rounded = make_encoder(position_grid=position_grid).to(torch.bfloat16)(pixels, range(4))
    for index in range(4):
        assert rounded.tokens(index).dtype == torch.bfloat16
        error = rounded.tokens(index).float() - exact.tokens(index)
        assert error.norm() <= 2 * torch.finfo(torch.bfloat16).eps * exact.tokens(index).norm()


def test_bytes_and_unit_floats_of_one_picture_give_equal_bfloat16_features(
    make_encoder: Callable[..., VisionTransformer],
) -> None:
    encoder = make_encoder().to(torch.bfloat16)
    from_bytes, from_floats = encoder(EVERY_BYTE, [3]), encoder(EVERY_BYTE.float() / 255, [3])
    torch.testing.assert_close(from_bytes.tokens(3), from_floats.tokens(3), atol=0, rtol=0)


def test_a_picture_in_a_batch_gets_the_features_it_gets_alone(tiny_encoder: VisionTransformer) -> None:
    images = torch.rand(3, 3, 24, 16)
    batched = tiny_encoder(images, [1, 3])
    for row in range(3):
        alone = tiny_encoder(images[row : row + 1], [1, 3])
        for index in (1, 3):
            torch.testing.assert_close(batched.tokens(index)[row : row + 1], alone.tokens(index))


@pytest.mark.parametrize("position_grid", [None, (4, 4)], ids=["rope", "learned"])
def test_grids_of_different_sizes_do_not_disturb_each_other(
    make_encoder: Callable[..., VisionTransformer], position_grid: tuple[int, int] | None
) -> None:
    encoder, fresh = (make_encoder(position_grid=position_grid) for _ in range(2))
    images = torch.rand(1, 3, 16, 24)
    encoder(torch.rand(1, 3, 24, 16), [3])
    encoder(images, [3])
    torch.testing.assert_close(encoder(images, [3]).tokens(3), fresh(images, [3]).tokens(3), atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 17, 16), (1, 3, 16, 20)])
def test_images_of_a_wrong_shape_are_refused_with_shape_and_rule(
    tiny_encoder: VisionTransformer, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"multiples of 8") as error:
        tiny_encoder(torch.rand(shape), [0])
    assert str(list(shape)) in str(error.value)


@pytest.mark.parametrize("indices", [[4], [-1], [0, 7]])
def test_taps_outside_the_encoder_are_refused_before_any_block_runs(
    tiny_encoder: VisionTransformer, indices: list[int]
) -> None:
    with watched_blocks(tiny_encoder) as ran, pytest.raises(ValueError, match=r"outside 0\.\.3 of tiny"):
        tiny_encoder(torch.rand(1, 3, 16, 16), indices)
    assert ran == []
