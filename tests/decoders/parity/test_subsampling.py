"""Which part of a result an expected tensor holds: told in words, or found by its shape."""

from __future__ import annotations

import pytest
import torch

from decoders.parity.subsampling import matching_part


def test_a_whole_result_is_taken_as_it_is_without_a_batch_of_one() -> None:
    ours = torch.randn(1, 6, 8)
    for expected in (ours, ours[0]):
        part, index = matching_part(ours, expected) or (None, "none")
        assert part is not None and torch.equal(part, expected)
        assert index == ""


@pytest.mark.parametrize(
    ("text", "slices"),
    [
        ("mask_logits[:, ::5, 1::8, 2::8]", (slice(None), slice(None, None, 5), slice(1, None, 8), slice(2, None, 8))),
        ("scores of image i, [:, ::3, 1:20:4]", (..., slice(None), slice(None, None, 3), slice(1, 20, 4))),
        ("the map, [::4, ::4]; void = -1", (..., slice(None, None, 4), slice(None, None, 4))),
    ],
)
def test_slices_in_a_description_are_heeded(text: str, slices: tuple[slice, ...]) -> None:
    ours = torch.randn(1, 20, 32, 40)
    part, _ = matching_part(ours, ours[slices], [text]) or (None, "")
    assert part is not None and torch.equal(part, ours[slices])


@pytest.mark.parametrize("text", ["token rows 0,3,7,last", "tokens, rows 0, 3, 7, last", "rows 0, 3, 7 and last"])
def test_rows_in_a_description_are_heeded(text: str) -> None:
    tokens = torch.randn(1, 12, 5)
    part, _ = matching_part(tokens, torch.empty(4, 5), [text]) or (None, "")
    assert part is not None and torch.equal(part, tokens[0, [0, 3, 7, 11]])


def test_a_stated_stride_goes_over_the_last_two_dimensions() -> None:
    ours = torch.randn(7, 45, 33)
    part, _ = matching_part(ours, torch.empty(7, 12, 9), [], [8, 4]) or (None, "")
    assert part is not None and torch.equal(part, ours[:, ::4, ::4])


def test_without_a_word_strides_follow_from_the_shapes_and_the_numbers() -> None:
    ours = torch.randn(10, 100, 90)
    for step in (2, 3, 7, 40):
        expected = ours[:, ::step, ::step] + 1e-6
        part, index = matching_part(ours, expected) or (None, "")
        assert part is not None and torch.equal(part, ours[:, ::step, ::step])
        assert index.endswith("found")


def test_without_a_word_rows_are_found_by_what_they_hold() -> None:
    tokens = torch.randn(1, 50, 8)
    rows = [0, 17, 3, 49]
    part, index = matching_part(tokens, tokens[0, rows] + 1e-5) or (None, "")
    assert part is not None and torch.equal(part, tokens[0, rows])
    assert "17" in index


def test_words_that_do_not_fit_the_shape_are_passed_over() -> None:
    ours = torch.randn(3, 16, 16)
    expected = ours[:, ::2, ::2]
    texts = ["[:, ::5, ::5]", "rows 1,2,99", "a [weird: one]", "[::::]"]
    part, _ = matching_part(ours, expected, texts) or (None, "")
    assert part is not None and torch.equal(part, expected)


@pytest.mark.parametrize("shape", [(4, 16, 16), (3, 17, 16), (2, 3, 16, 16), (3, 16)])
def test_a_shape_that_no_part_has_is_refused(shape: tuple[int, ...]) -> None:
    assert matching_part(torch.randn(3, 16, 16), torch.randn(shape)) is None
