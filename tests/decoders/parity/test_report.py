"""Comparisons: what passes lies within the tolerance, and nothing that is no number passes."""

from __future__ import annotations

import json
import math

import pytest
import torch

from decoders.parity.report import (
    TOLERANCES,
    CaseReport,
    Tolerance,
    as_json,
    as_markdown,
    compare_lists,
    compare_tensors,
)

CLOSE = Tolerance(1e-3, 1e-2)


def report_of(*comparisons, problems=()) -> CaseReport:  # type: ignore[no-untyped-def]
    return CaseReport("case", ("kind",), tuple(comparisons), ("absent",), tuple(problems), 1.0)


def test_the_tolerance_grows_with_the_expected_value() -> None:
    expected = torch.tensor([0.0, 10.0])
    within = compare_tensors("x", expected + torch.tensor([0.0009, 0.1009]), expected, CLOSE)
    beyond = compare_tensors("x", expected + torch.tensor([0.0011, 0.0]), expected, CLOSE)
    assert within.passed
    assert within.difference == pytest.approx(0.1009, abs=1e-5)
    assert not beyond.passed
    assert beyond.excess == pytest.approx(1.1, abs=1e-3)


def test_a_map_may_differ_in_a_share_of_its_pixels_by_any_amount() -> None:
    expected = torch.zeros(100, 100, dtype=torch.int32)
    ours = expected.clone()
    ours[0, 0] = 100
    assert compare_tensors("x", ours, expected, TOLERANCES["map"]).passed
    ours[0, 1] = 1
    comparison = compare_tensors("x", ours, expected, TOLERANCES["map"])
    assert not comparison.passed
    assert comparison.difference == pytest.approx(2e-4)


def test_dtypes_do_not_matter_and_uint8_does_not_wrap_around() -> None:
    ours, expected = torch.tensor([-1, 255], dtype=torch.int32), torch.tensor([-1, -1], dtype=torch.int8)
    assert not compare_tensors("x", ours, expected, TOLERANCES["exact"]).passed
    assert compare_tensors("x", torch.tensor([3, 0]), torch.tensor([0, 3], dtype=torch.uint8), CLOSE).difference == 3


def test_exact_means_equal() -> None:
    ones = torch.ones(4, dtype=torch.uint8)
    assert compare_tensors("x", ones, ones, TOLERANCES["exact"]).passed
    assert not compare_tensors("x", ones, ones * 2, TOLERANCES["exact"]).passed


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_fails(value: float) -> None:
    comparison = compare_tensors("x", torch.tensor([1.0, value]), torch.tensor([1.0, 1.0]), CLOSE)
    assert not comparison.passed
    assert not report_of(comparison).passed
    assert not compare_tensors("x", torch.tensor([1.0]), torch.tensor([value]), CLOSE).passed


def test_another_shape_fails_and_is_told() -> None:
    comparison = compare_tensors("x", torch.ones(1, 4), torch.ones(4), CLOSE)
    assert not comparison.passed
    assert "shape [1, 4], not [4]" in str(comparison)


@pytest.mark.parametrize("ours", [[1, 2], [1, 2, 4], [3, 2, 1]])
def test_lists_must_be_equal_in_order(ours: list[int]) -> None:
    assert compare_lists("x", [1, 2, 3], [1, 2, 3]).passed
    assert not compare_lists("x", ours, [1, 2, 3]).passed


def test_a_case_fails_with_one_comparison_with_a_problem_and_without_any_comparison() -> None:
    good = compare_lists("x", [1], [1])
    bad = compare_lists("y", [1], [2])
    assert report_of(good).passed
    assert not report_of(good, bad).passed
    assert not report_of(good, problems=["broken"]).passed
    assert not report_of().passed


def test_the_worst_comparison_is_the_one_nearest_to_its_own_tolerance() -> None:
    expected = torch.zeros(1)
    large = compare_tensors("large", torch.tensor([0.5]), expected, Tolerance(1.0))
    small = compare_tensors("small", torch.tensor([0.009]), expected, Tolerance(0.01))
    assert report_of(large, small).worst is small
    nothing = compare_tensors("nothing", torch.tensor([math.nan]), expected, Tolerance(1.0))
    assert report_of(large, nothing, small).worst is nothing
    assert report_of().worst is None


def test_figures_list_every_comparison_and_are_json_whatever_they_hold() -> None:
    broken = compare_tensors("shape", torch.ones(2), torch.ones(3), CLOSE)
    report = report_of(compare_lists("list", [1], [1]), broken, problems=["a problem"])
    (figures,) = json.loads(json.dumps(as_json([report]), allow_nan=False))
    assert [(c["name"], c["difference"], c["passed"]) for c in figures["comparisons"]] == [
        ("list", 0.0, True),
        ("shape", None, False),
    ]
    assert (figures["passed"], figures["skipped"], figures["problems"]) == (False, ["absent"], ["a problem"])


def test_the_table_has_a_row_for_every_comparison() -> None:
    table = as_markdown(
        [report_of(compare_lists("one", [1], [1]), compare_tensors("two", torch.ones(2), torch.ones(2), CLOSE))]
    )
    assert table.startswith("## case: pass")
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[1].strip() for row in rows] == ["one", "two"]
    assert {row.count("|") for row in rows} == {5}
    assert "Not in this case: absent." in table
