"""The timing panel of the playground: the waterfall, and what sharing saved in this very answer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from playwright.sync_api import Page, expect


def fill(page: Page, address: str, heads_ms: Mapping[str, float], **changed: float) -> None:
    """Put the panel of one answer into the page."""
    timing: dict[str, Any] = {
        "queue_ms": 1, "decode_ms": 2, "preprocess_ms": 3, "encoder_ms": 40, "heads_ms": heads_ms,
        "postprocess_ms": 6, "total_ms": 90, "encoder_passes": 1, "batch_size": 1,
    }  # fmt: skip
    page.goto(address)
    page.evaluate(
        """async (answer) => {
          const { timingPanel } = await import("/static/panels/timing.js");
          document.getElementById("main").replaceChildren(...timingPanel(answer, 100));
        }""",
        {"request_id": "r1", "timing": timing | changed, "results": {key: {} for key in heads_ms}},
    )


def test_sharing_is_told_as_milliseconds_saved_and_a_ratio_computed_from_the_requests_own_times(
    address: str, page: Page
) -> None:
    fill(page, address, {"panoptic": 6.0, "depth": 4.0, "embedding": 0.0})
    # together 40 + 10, apart 3 x 40 + 10
    expect(page.locator(".sharing-line")).to_have_text(
        "1 encoder pass for 3 tasks: 50\u00a0ms instead of 130\u00a0ms 2.60× · 80\u00a0ms saved"
    )
    expect(page.locator(".sharing .hint")).to_contain_text("Apart was not run: it is computed from this request’s own")
    widths = [
        sum(part.bounding_box()["width"] for part in bar.locator(".part").all())
        for bar in page.locator(".compare-row").all()
    ]
    assert widths[1] / widths[0] == pytest.approx(130 / 50, rel=0.02)


def test_tasks_with_a_pass_each_have_saved_nothing(address: str, page: Page) -> None:
    fill(page, address, {"panoptic": 6.0, "depth": 4.0}, encoder_ms=80, encoder_passes=2)
    expect(page.locator(".sharing-line")).to_contain_text(
        "2 encoder passes for 2 tasks: 90\u00a0ms instead of 90\u00a0ms"
    )
    expect(page.locator(".ratio")).to_have_text("1.00× · 0.0\u00a0ms saved")


def test_one_task_alone_is_told_how_to_see_what_sharing_saves(address: str, page: Page) -> None:
    fill(page, address, {"panoptic": 6.0})
    expect(page.locator(".sharing")).to_have_count(0)
    expect(page.locator("#main .hint")).to_contain_text("Choose two tasks or more")


def test_a_batch_shared_with_other_pictures_is_told(address: str, page: Page) -> None:
    fill(page, address, {"panoptic": 6.0, "depth": 4.0}, batch_size=5)
    expect(page.locator(".sharing .hint")).to_contain_text("5 pictures shared this pass")


def test_the_waterfall_names_every_stage_and_each_bar_begins_where_the_one_before_ended(
    address: str, page: Page
) -> None:
    fill(page, address, {"panoptic": 20.0, "depth": 14.0})
    names = ["Decode", "Preprocess", "Queue", "Encoder", "Panoptic", "Depth", "Postprocess", "Total"]
    expect(page.locator(".waterfall .stage-name")).to_have_text(names)
    boxes = [bar.bounding_box() for bar in page.locator(".waterfall .bar").all()]
    for before, after in itertools.pairwise(boxes[3:]):  # shorter ones are drawn wider, to be seen at all
        assert before["x"] + before["width"] == pytest.approx(after["x"], abs=1)
