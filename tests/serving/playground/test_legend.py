"""The legend of a segment task on the playground: pointing at, holding and hiding segments, on either side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playground_driver import card, color_at, look_at, point_at, show
from playground_results import COLORS, cats, every_kind, panoptic
from playwright.sync_api import Page, expect


def row(page: Page, title: str, name: str) -> Any:
    return card(page, title).locator(".segment").filter(has_text=name)


def test_pointing_at_a_row_spotlights_its_segment_and_pointing_at_a_segment_lights_its_row(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, {"panoptic": panoptic()}, tmp_path)

    row(page, "Panoptic", "sky").hover()
    assert color_at(page, "spot", 30, 30) == [0, 0, 0, 0]  # the sky is clear
    assert color_at(page, "spot", 200, 300)[3] > 100  # the road is shaded

    point_at(page, 200, 300)
    expect(row(page, "Panoptic", "road")).to_have_class("segment is-lit")
    expect(row(page, "Panoptic", "sky")).to_have_class("segment")
    expect(page.locator(".readout")).to_have_text("road 60%")
    assert problems == []


def test_a_click_holds_a_segment_through_other_views_until_escape(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, {kind: every_kind()[kind] for kind in ("panoptic", "depth")}, tmp_path)

    look_at(page, "Panoptic")
    point_at(page, 150, 140, click=True)
    page.mouse.move(5, 5)
    held = row(page, "Panoptic", "cat")
    expect(held.get_by_role("button", name="cat").first).to_have_attribute("aria-pressed", "true")
    look_at(page, "Depth")
    expect(page.locator("canvas.spot")).to_have_class("spot is-on")
    assert color_at(page, "spot", 150, 140) == [0, 0, 0, 0]
    assert color_at(page, "spot", 30, 30)[3] > 100
    page.keyboard.press("Escape")
    expect(page.locator("canvas.spot")).to_have_class("spot")
    expect(held.get_by_role("button", name="cat").first).to_have_attribute("aria-pressed", "false")
    assert problems == []


def test_a_row_is_held_by_keyboard(address: str, page: Page, tmp_path: Path) -> None:
    show(page, address, {"panoptic": panoptic()}, tmp_path)

    button = row(page, "Panoptic", "sky").get_by_role("button", name="sky").first
    button.focus()
    expect(page.locator("canvas.spot")).to_have_class("spot is-on")
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")  # the eye, which holds nothing
    expect(button).to_have_attribute("aria-pressed", "false")  # what is hidden is not held
    assert color_at(page, "overlay", 30, 30) == [0, 0, 0, 0]


def test_a_hidden_segment_is_neither_painted_nor_pointed_at_until_it_is_shown_again(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, {"panoptic": panoptic()}, tmp_path)

    page.get_by_role("button", name="Show sky").click()
    assert color_at(page, "overlay", 30, 30) == [0, 0, 0, 0]
    assert color_at(page, "overlay", 200, 300) == [*COLORS["road"], 255]
    expect(row(page, "Panoptic", "sky")).to_contain_class("is-hidden")
    point_at(page, 30, 30)
    expect(page.locator(".readout")).to_be_hidden()
    page.get_by_role("button", name="Show all").click()
    assert color_at(page, "overlay", 30, 30) == [*COLORS["sky"], 255]
    page.get_by_role("button", name="Show all").click()  # none, so that one can be looked at alone
    assert color_at(page, "overlay", 200, 300) == [0, 0, 0, 0]
    page.get_by_role("button", name="Show road").click()
    assert color_at(page, "overlay", 200, 300) == [*COLORS["road"], 255]
    assert problems == []


def test_hiding_an_instance_uncovers_the_one_below(address: str, page: Page, tmp_path: Path) -> None:
    show(page, address, {"instance": cats()}, tmp_path)

    second = color_at(page, "overlay", 150, 250)
    assert color_at(page, "overlay", 150, 170) != second  # the first is on top
    page.get_by_role("button", name="Show cat 1").click()
    assert color_at(page, "overlay", 150, 170) == second


def test_the_legend_is_a_table_with_a_name_and_heads(address: str, page: Page, tmp_path: Path) -> None:
    show(page, address, {kind: every_kind()[kind] for kind in ("panoptic", "depth")}, tmp_path)

    table = page.get_by_role("table", name="Panoptic: 3 segments")
    expect(table.get_by_role("columnheader")).to_have_text(["Label", "Depth", "Area", "Score", ""])
    expect(table.get_by_role("rowheader")).to_have_text(["road", "sky", "cat"])
    cells = table.get_by_role("row").nth(1).get_by_role("cell")
    expect(cells).to_have_text(["3.04\u00a0m", "48%", "60%", ""])
