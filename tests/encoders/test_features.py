"""What decoders see of an encoder pass: taps, and rows that no reader can change for another."""

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
        features.lateral_features = {}


def test_features_do_not_follow_the_dictionary_they_were_made_from() -> None:
    source = {1: torch.zeros(1, 9, 4)}
    features = EncoderFeatures(SPEC, (2, 3), source)
    source[2] = torch.ones(1, 9, 4)
    assert list(features.lateral_features) == [1]


def memory_of(features: EncoderFeatures) -> set[int]:
    """Where the tensors' storages begin."""
    return {tokens.untyped_storage().data_ptr() for tokens in features.lateral_features.values()}


def write_everywhere(features: EncoderFeatures) -> None:
    """Write in place to every tensor, as itself and through each of its views."""
    for index, tokens in features.lateral_features.items():
        features.prefix_tokens(index).zero_()
        features.patch_tokens(index).add_(1)
        features.patch_map(index).mul_(2)
        tokens.fill_(7)


SOME_ROWS = [[1, 2, 3], [0], [4], [0, 1], [0, 2], [3, 1], [2, 2], [4, 3, 2, 1, 0]]


def test_device_type_says_where_the_features_lie(features: EncoderFeatures) -> None:
    assert features.device_type == "cpu"
    elsewhere = {index: tokens.to("meta") for index, tokens in features.lateral_features.items()}
    assert EncoderFeatures(SPEC, (2, 3), elsewhere).device_type == "meta"


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("rows", [*SOME_ROWS, [0, 1, 2, 3, 4]], ids=str)
def test_rows_come_in_the_order_asked_whether_copied_or_not(
    features: EncoderFeatures, rows: list[int], copy: bool
) -> None:
    picked = features.rows(rows, (1, 4), copy=copy)
    assert (picked.spec, picked.grid_size, picked.batch_size) == (SPEC, (2, 3), len(rows))
    for index in (1, 4):
        assert torch.equal(picked.tokens(index), features.tokens(index)[rows])


def test_rows_may_be_any_sequence(features: EncoderFeatures) -> None:
    for rows in ((3, 1), range(1, 4), range(5)):
        picked = features.rows(rows, [4], copy=True)
        assert torch.equal(picked.tokens(4), features.tokens(4)[list(rows)])


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [2, 0]], ids=str)
def test_rows_hold_the_asked_blocks_only(features: EncoderFeatures, rows: list[int], copy: bool) -> None:
    assert list(features.rows(rows, (4,), copy=copy).lateral_features) == [4]
    assert list(features.rows(rows, iter([1, 4]), copy=copy).lateral_features) == [1, 4]
    assert list(features.lateral_features) == [1, 4]


def test_all_rows_without_a_copy_share_memory(features: EncoderFeatures) -> None:
    picked = features.rows([0, 1, 2, 3, 4], (1, 4), copy=False)
    for index in (1, 4):
        assert picked.tokens(index).untyped_storage().data_ptr() == features.tokens(index).untyped_storage().data_ptr()
        assert picked.tokens(index).shape == features.tokens(index).shape


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("rows", SOME_ROWS, ids=str)
def test_some_rows_are_always_copies(features: EncoderFeatures, rows: list[int], copy: bool) -> None:
    assert memory_of(features).isdisjoint(memory_of(features.rows(rows, (1, 4), copy=copy)))


@pytest.mark.parametrize(
    ("rows", "copy"),
    [([0, 1, 2, 3, 4], True), *((rows, copy) for rows in SOME_ROWS for copy in (False, True))],
    ids=str,
)
def test_writing_to_copied_rows_changes_no_other_reader_and_not_the_pass(
    features: EncoderFeatures, rows: list[int], copy: bool
) -> None:
    before = {index: tokens.clone() for index, tokens in features.lateral_features.items()}
    first, second = (features.rows(rows, (1, 4), copy=copy) for _ in range(2))
    assert memory_of(first).isdisjoint(memory_of(second) | memory_of(features))
    assert len(memory_of(first)) == 2
    write_everywhere(first)
    for index, tokens in before.items():
        assert torch.equal(first.tokens(index), torch.full((len(rows), 9, 4), 7.0))
        assert torch.equal(second.tokens(index), tokens[rows])
        assert torch.equal(features.tokens(index), tokens)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("rows", [[-1], [5], [0, 1, 2, 3, 4, 5], [0, -1], []], ids=str)
def test_rows_outside_the_batch_are_named_with_its_size(features: EncoderFeatures, rows: list[int], copy: bool) -> None:
    with pytest.raises(IndexError, match="are not among the 5 pictures of this pass") as error:
        features.rows(rows, (1, 4), copy=copy)
    assert str(rows) in str(error.value)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [2, 0]], ids=str)
def test_rows_of_a_block_that_was_not_tapped_are_refused_with_those_that_were(
    features: EncoderFeatures, rows: list[int], copy: bool
) -> None:
    with pytest.raises(KeyError, match=r"block 2 was not tapped in this pass; tapped: \[1, 4\]"):
        features.rows(rows, (1, 2), copy=copy)


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
