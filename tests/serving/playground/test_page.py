"""The playground's page itself: theme, shortcuts, small screens, calm motion."""

from __future__ import annotations

from pathlib import Path

import pytest
from playground_driver import PATIENCE_MS, play, show
from playground_results import every_kind
from playground_streams import FakeStreams
from playwright.sync_api import Page, expect

DARK, LIGHT = "rgb(17, 19, 21)", "rgb(246, 246, 243)"


def test_the_theme_follows_the_system_until_another_is_chosen_which_is_remembered(address: str, page: Page) -> None:
    body = page.locator("body")
    page.emulate_media(color_scheme="dark")
    page.goto(address)
    button = page.get_by_role("button", name="Dark theme")
    expect(body).to_have_css("background-color", DARK)
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    expect(body).to_have_css("background-color", LIGHT)
    page.reload()
    expect(body).to_have_css("background-color", LIGHT)
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()  # the system's again, so that it is followed again
    page.emulate_media(color_scheme="light")
    expect(body).to_have_css("background-color", LIGHT)
    page.emulate_media(color_scheme="dark")
    expect(body).to_have_css("background-color", DARK)
    expect(button).to_have_attribute("aria-pressed", "true")


def test_shortcuts_are_listed_work_and_can_be_switched_off_for_good(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, {kind: every_kind()[kind] for kind in ("panoptic", "depth")}, tmp_path)
    shown = page.locator("#panes h3")

    page.keyboard.press("3")
    expect(shown).to_have_text(["Depth"])
    page.keyboard.press("1")
    expect(shown).to_have_text(["Photo"])
    page.keyboard.press("9")  # there is none
    expect(shown).to_have_text(["Photo"])
    page.keyboard.press("Control+3")  # the browser's
    expect(shown).to_have_text(["Photo"])
    page.get_by_label("Result as").focus()
    page.keyboard.press("a")  # goes to an option that begins so
    expect(page.locator("#options")).to_be_hidden()
    page.get_by_label("Result as").blur()
    page.keyboard.press("a")
    expect(page.locator("#options")).to_be_visible()

    page.keyboard.press("?")
    help_dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
    for key in ("o", "c", "p", "1", "9", "a", "t", "Esc", "?"):
        expect(help_dialog.locator("kbd", has_text=key).first).to_be_visible()
    help_dialog.get_by_label("Single-key shortcuts are on").uncheck()
    page.keyboard.press("Escape")
    expect(help_dialog).to_be_hidden()
    page.keyboard.press("3")
    expect(shown).to_have_text(["Photo"])
    page.reload()
    page.keyboard.press("?")
    expect(help_dialog).to_be_hidden()
    page.get_by_role("button", name="Keyboard shortcuts").click()
    expect(help_dialog).to_be_visible()
    assert problems == []


def test_play_and_pause_by_shortcut(address: str, page: Page, streams: FakeStreams, long_clip: Path) -> None:
    play(page, address, long_clip)
    expect(page.locator("#play")).to_have_text("Pause", timeout=PATIENCE_MS)
    page.keyboard.press("p")
    expect(page.locator("#play")).to_have_text("Play")
    page.keyboard.press("p")
    expect(page.locator("#play")).to_have_text("Pause")


SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_a_screen_of_360_pixels_needs_no_scrolling_sideways(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    page.goto(address)
    assert page.evaluate(SIDEWAYS) == 0
    show(page, address, every_kind(), tmp_path)
    page.get_by_role("button", name="Options").click()
    assert page.evaluate(SIDEWAYS) == 0
    for button in page.get_by_role("button").all():
        if box := button.bounding_box():
            assert box["x"] >= 0 and box["x"] + box["width"] <= 360, button
    page.get_by_role("button", name="Keyboard shortcuts").click()
    assert page.evaluate(SIDEWAYS) == 0
    assert problems == []


def test_a_video_on_a_small_screen_needs_no_scrolling_sideways(
    address: str, page: Page, streams: FakeStreams, long_clip: Path
) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    play(page, address, long_clip)
    expect(page.locator("#take-away")).to_be_visible(timeout=PATIENCE_MS)
    assert page.evaluate(SIDEWAYS) == 0


@pytest.mark.parametrize(("wish", "moves"), [("no-preference", True), ("reduce", False)])
def test_nothing_glides_for_who_wants_calm(address: str, page: Page, wish: str, moves: bool) -> None:
    page.emulate_media(reduced_motion=wish)  # type: ignore[arg-type]
    page.goto(address)
    glides = """[...document.querySelectorAll("*")].some(
      (node) => getComputedStyle(node).transitionDuration.split(", ").some((time) => parseFloat(time) > 0))"""
    expect(page.locator("#chips label").first).to_be_visible(timeout=PATIENCE_MS)
    assert page.evaluate(glides) is moves


def test_a_server_that_is_away_is_told_and_its_tasks_come_with_it(address: str, page: Page) -> None:
    page.route("**/tasks", lambda route: route.abort())
    page.clock.install()
    page.goto(address)
    server = page.get_by_role("status").filter(has_text="can’t be reached")
    expect(server).to_have_text("The server can’t be reached. Trying again…")
    expect(page.locator("#chips label")).to_have_count(0)
    page.unroute("**/tasks")
    page.clock.run_for(5_000)
    expect(page.locator("#chips label")).to_have_count(2, timeout=PATIENCE_MS)
    expect(page.locator("#server")).to_have_attribute("data-state", "ready")
