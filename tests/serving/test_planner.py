"""Planning: tasks of one input geometry share a pass, and a pass taps what its tasks read."""

from __future__ import annotations

from typing import Any

import pytest

from encoders.geometry import FitGeometry
from serving.planner import EncoderPass, Head, Taps, plan, taps

COMMON, LARGE, WIDE = FitGeometry(56, 56), FitGeometry(112, 112), FitGeometry(56, 112)


@pytest.fixture
def heads(probe_head: Any) -> dict[str, Head]:
    where = {
        "panoptic": (COMMON, (0, 2)),
        "depth": (COMMON, (1, 2)),
        "fine": (LARGE, (2,)),
        "fine_depth": (LARGE, (0,)),
        "wide": (WIDE, (1,)),
    }
    return {task: Head(task, probe_head(indices), geometry) for task, (geometry, indices) in where.items()}


def test_tasks_of_one_geometry_share_a_pass(heads: dict[str, Head]) -> None:
    assert plan(["panoptic", "depth"], heads) == (EncoderPass(COMMON, ("panoptic", "depth")),)


def test_a_task_with_a_geometry_of_its_own_costs_a_pass(heads: dict[str, Head]) -> None:
    assert plan(["panoptic", "fine", "depth"], heads) == (
        EncoderPass(COMMON, ("panoptic", "depth")),
        EncoderPass(LARGE, ("fine",)),
    )


def test_geometries_of_equal_height_but_another_width_do_not_share(heads: dict[str, Head]) -> None:
    assert len(plan(["panoptic", "wide"], heads)) == 2


def test_passes_and_their_tasks_come_in_the_order_asked(heads: dict[str, Head]) -> None:
    assert plan(["fine_depth", "depth", "fine", "panoptic"], heads) == (
        EncoderPass(LARGE, ("fine_depth", "fine")),
        EncoderPass(COMMON, ("depth", "panoptic")),
    )


def test_no_tasks_need_no_pass(heads: dict[str, Head]) -> None:
    assert plan([], heads) == ()


def test_taps_are_the_ascending_union_of_what_the_tasks_read(heads: dict[str, Head]) -> None:
    assert taps(["fine"], heads) == Taps((2,), ())
    heads["depth"].decoder.hidden_indices = (2, 1)
    assert taps(["depth", "panoptic"], heads) == Taps((0, 1, 2), (1, 2))
