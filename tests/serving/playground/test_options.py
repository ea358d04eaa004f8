"""The thresholds under "Options" of the playground."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from playground_driver import PATIENCE_MS, play, show, wait_for
from playground_results import panoptic
from playground_streams import FakeStreams
from playwright.sync_api import Page, expect


def test_a_moved_slider_goes_with_the_request_and_the_command_until_it_is_put_back(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    asked: list[dict[str, list[str]]] = []
    page.on("request", lambda it: asked.append(parse_qs(urlsplit(it.url).query)) if "/segment?" in it.url else None)
    show(page, address, {"panoptic": panoptic()}, tmp_path)
    assert asked[-1] == {"tasks": ["panoptic"], "format": ["json"]}

    page.get_by_role("button", name="Options").click()
    score = page.get_by_role("slider", name="Score")
    expect(score).to_be_focused()
    assert score.get_attribute("aria-valuetext") == "as bundled"
    page.keyboard.press("ArrowRight")
    page.get_by_role("slider", name="Overlap").fill("0.8")
    wait_for(page, lambda: asked[-1].get("overlap_threshold") == ["0.8"])
    assert asked[-1]["score_threshold"] == ["0.51"] and "mask_threshold" not in asked[-1]
    expect(page.locator(".option output")).to_have_text(["0.51", "as bundled", "0.80"])
    expect(page.locator("#command")).to_contain_text("&score_threshold=0.51&overlap_threshold=0.8")

    page.get_by_role("button", name="Back to the bundle’s own").click()
    wait_for(page, lambda: "score_threshold" not in asked[-1])
    expect(page.locator("#command")).not_to_contain_text("threshold")
    page.get_by_role("slider", name="Score").focus()
    page.keyboard.press("Escape")
    expect(page.locator("#options")).to_be_hidden()
    expect(page.get_by_role("button", name="Options")).to_be_focused()
    assert problems == []


def test_other_thresholds_open_another_stream(address: str, page: Page, streams: FakeStreams, long_clip: Path) -> None:
    play(page, address, long_clip)
    expect(page.locator("#panes canvas.base").first).to_be_visible(timeout=PATIENCE_MS)
    wait_for(page, lambda: streams.configs)
    page.get_by_role("button", name="Options").click()
    page.get_by_role("slider", name="Mask").fill("0.3")
    wait_for(page, lambda: len(streams.configs) == 2 and streams.closed == 1)
    assert streams.configs[1] == streams.configs[0] | {"mask_threshold": 0.3}
