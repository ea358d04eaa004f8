"""Photos on the playground: how they come in, what is asked, what goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
from playground_driver import PATIENCE_MS
from playwright.sync_api import Page, expect


def test_photo_dropped_on_the_page_shows_segments_depth_and_the_one_pass_they_shared(
    address: str, page: Page, problems: list[str], encode_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    photo = tmp_path / "photo.png"
    photo.write_bytes(encode_picture(120, 160))

    answer = httpx.post(
        f"{address}/segment", content=photo.read_bytes(), headers={"Content-Type": "image/png"}, timeout=60
    ).json()
    segments = answer["results"]["panoptic"]["segments"]

    page.goto(address)
    page.locator("#file-input").set_input_files(photo)

    assert segments
    expect(page.locator("#timing-body")).to_contain_text("1 encoder pass for 2 tasks", timeout=PATIENCE_MS)
    for segment in segments:
        expect(page.locator("#findings")).to_contain_text(segment["label"])
    expect(page.locator("#panes canvas").first).to_be_visible()
    assert problems == []
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []


def test_file_that_is_no_photo_is_refused_with_the_servers_remedy(address: str, page: Page, tmp_path: Path) -> None:
    text = tmp_path / "photo.jpg"
    text.write_bytes(b"this is no photo")

    page.goto(address)
    page.locator("#file-input").set_input_files(text)

    expect(page.locator("#notice")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#notice")).not_to_be_empty()
