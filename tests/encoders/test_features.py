"""What decoders see of an encoder pass: taps, rows, and the guard against writing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from encoders.features import EncoderFeatures, EncoderSpec

SPEC = EncoderSpec("tiny", "r1", embed_dim=4, depth=6, num_heads=2, patch_size=8, num_prefix_tokens=3)


@pytest.fixture
def features() -> EncoderFeatures:
    """Five pictures on a grid of 2 x 3, blocks 1 and 4 tapped."""
    return EncoderFeatures(SPEC, (2, 3), {index: torch.randn(5, 3 + 6, 4) for index in (1, 4)})


def test_prefix_and_patches_make_up_the_tokens(features: EncoderFeatures) -> None:
    assert features.batch_size == 5
    assert features.prefix_tokens(4).shape == (5, 3, 4)
    assert features.patch_tokens(4).shape == (5, 6, 4)
    assert torch.equal(torch.cat((features.prefix_tokens(4), features.patch_tokens(4)), dim=1), features.tokens(4))


def test_patch_map_is_row_major(features: EncoderFeatures) -> None:
    patch_map = features.patch_map(1)
    assert patch_map.shape == (5, 4, 2, 3)
    assert torch.equal(patch_map[:, :, 1, 2], features.patch_tokens(1)[:, 1 * 3 + 2])


def test_a_block_that_was_not_tapped_is_named_with_those_that_were(features: EncoderFeatures) -> None:
    with pytest.raises(KeyError, match=r"block 2 was not tapped in this pass; tapped: \[1, 4\]"):
        features.tokens(2)


def test_lateral_features_can_not_be_replaced(features: EncoderFeatures) -> None:
    mapping: Any = features.lateral_features
    with pytest.raises(TypeError):
        mapping[1] = torch.zeros(1)
    with pytest.raises(AttributeError):
        features.lateral_features = {}  # type: ignore[misc]


def test_features_do_not_follow_the_dictionary_they_were_made_from() -> None:
    source = {1: torch.zeros(1, 9, 4)}
    features = EncoderFeatures(SPEC, (2, 3), source)
    source[2] = torch.ones(1, 9, 4)
    assert list(features.lateral_features) == [1]


def test_all_rows_are_the_features_themselves(features: EncoderFeatures) -> None:
    assert features.rows([0, 1, 2, 3, 4]) is features


@pytest.mark.parametrize("rows", [[1, 2, 3], [0], [4], [0, 1]])
def test_consecutive_rows_are_views(features: EncoderFeatures, rows: list[int]) -> None:
    picked = features.rows(rows)
    for index in (1, 4):
        assert torch.equal(picked.tokens(index), features.tokens(index)[rows])
        assert picked.tokens(index).untyped_storage().data_ptr() == features.tokens(index).untyped_storage().data_ptr()


@pytest.mark.parametrize("rows", [[0, 2], [3, 1], [2, 2], [4, 3, 2, 1, 0]])
def test_scattered_rows_are_copies_in_the_order_asked(features: EncoderFeatures, rows: list[int]) -> None:
    picked = features.rows(rows)
    assert picked.batch_size == len(rows)
    for index in (1, 4):
        assert torch.equal(picked.tokens(index), features.tokens(index)[rows])
        assert picked.tokens(index).untyped_storage().data_ptr() != features.tokens(index).untyped_storage().data_ptr()


def test_write_count_rises_when_a_tensor_is_written(features: EncoderFeatures) -> None:
    before = features.write_count()
    features.tokens(4).add_(1)
    assert features.write_count() > before


def test_write_count_rises_when_a_view_is_written(features: EncoderFeatures) -> None:
    for write in (
        lambda: features.patch_map(1).mul_(2),
        lambda: features.prefix_tokens(1).zero_(),
        lambda: features.rows([1, 2]).tokens(4).add_(1),
    ):
        before = features.write_count()
        write()
        assert features.write_count() > before


def test_write_count_stays_when_features_are_only_read(features: EncoderFeatures) -> None:
    before = features.write_count()
    features.patch_map(1).mean()
    features.rows([0, 3]).tokens(1).add_(1)
    _ = features.tokens(4) * 2
    assert features.write_count() == before


def test_out_indices_are_sorted_and_without_repeats() -> None:
    assert SPEC.check_out_indices(iter([5, 0, 5, 2])) == (0, 2, 5)


def test_empty_out_indices_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="name at least one encoder block"):
        SPEC.check_out_indices([])


@pytest.mark.parametrize("indices", [[6], [-1, 2], [0, 99]])
def test_out_indices_outside_the_encoder_are_named_with_its_range(indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.5 of tiny") as error:
        SPEC.check_out_indices(indices)
    assert str(indices) in str(error.value)
