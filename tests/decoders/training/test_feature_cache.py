"""The feature cache: what is on disk is what the encoder said, and it is computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from decoders.training.feature_cache import FeatureCache
from encoders.geometry import FitGeometry
from encoders.vit import VisionTransformer

GEOMETRY = FitGeometry(16, 24)


class Pictures:
    """Ten seeded network inputs that remember which were asked for, and can break off."""

    def __init__(self, break_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.break_at = break_at

    def __call__(self, index: int) -> Tensor:
        if index == self.break_at:
            raise KeyboardInterrupt
        self.asked.append(index)
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8, generator=generator)


def test_cached_features_are_those_of_the_encoder_in_half_precision(
    tmp_path: Path, tiny_encoder: VisionTransformer
) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (3, 1))
    pictures = Pictures()
    array = cache.encode("key", 10, pictures)
    assert (array.shape, array.dtype) == ((10, 2, 3 + 6, 16), np.float16)
    rows = [7, 0, 7]
    features = cache.features(array, rows)
    expected = tiny_encoder(torch.stack([pictures(row) for row in rows]), (1, 3))
    assert features.spec == tiny_encoder.spec
    assert features.grid_size == expected.grid_size == (2, 3)
    for index in (1, 3):
        assert features.tokens(index).dtype == torch.float32
        torch.testing.assert_close(features.tokens(index), expected.tokens(index).half().float(), atol=2e-2, rtol=2e-3)


def test_every_picture_is_encoded_once_and_never_again(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    pictures = Pictures()
    first = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1, 3)).encode("key", 10, pictures)
    assert pictures.asked == list(range(10))
    again = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1, 3)).encode("key", 10, pictures)
    assert pictures.asked == list(range(10))
    np.testing.assert_array_equal(first, again)


def test_a_run_that_broke_off_is_resumed_at_its_last_whole_batch(
    tmp_path: Path, tiny_encoder: VisionTransformer
) -> None:
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(tmp_path / "broken", tiny_encoder, GEOMETRY, (1,)).encode("key", 10, Pictures(break_at=6))
    pictures, told = Pictures(), []
    resumed = FeatureCache(tmp_path / "broken", tiny_encoder, GEOMETRY, (1,)).encode(
        "key", 10, pictures, progress=told.append
    )
    whole = FeatureCache(tmp_path / "whole", tiny_encoder, GEOMETRY, (1,)).encode("key", 10, Pictures())
    assert pictures.asked == [4, 5, 6, 7, 8, 9]
    assert told == [8, 10]
    np.testing.assert_array_equal(resumed, whole)


@pytest.mark.parametrize("difference", ["revision", "key", "views", "levels", "geometry"])
def test_whatever_changes_the_features_is_another_entry(
    tmp_path: Path, make_encoder: Callable[..., VisionTransformer], difference: str
) -> None:
    def encode(changed: str | None) -> list[int]:
        encoder = make_encoder(revision="other" if changed == "revision" else "random")
        geometry = FitGeometry(24, 16) if changed == "geometry" else GEOMETRY
        pictures = Pictures()

        def load(index: int) -> Tensor:
            picture = pictures(index)
            return picture.transpose(1, 2) if changed == "geometry" else picture

        cache = FeatureCache(tmp_path, encoder, geometry, (2,) if changed == "levels" else (1,))
        cache.encode("other" if changed == "key" else "key", 5 if changed == "views" else 4, load)
        return pictures.asked

    assert encode(None) == [0, 1, 2, 3]
    assert len(encode(difference)) >= 4
    assert encode(None) == []


def test_what_is_returned_can_not_be_written(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    array = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1,)).encode("key", 2, Pictures())
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def test_writing_to_a_batch_does_not_reach_the_disk(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    cache = FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (1,))
    array = cache.encode("key", 2, Pictures())
    before = np.array(array)
    cache.features(array, [0, 1]).tokens(1).zero_()
    np.testing.assert_array_equal(array, before)


def test_a_level_outside_the_encoder_is_refused(tmp_path: Path, tiny_encoder: VisionTransformer) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.3 of tiny"):
        FeatureCache(tmp_path, tiny_encoder, GEOMETRY, (4,))
