"""The playground in a real Chromium, on the HTTP application with a tiny bundle (no Ray)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from playwright.sync_api import Page, expect, sync_playwright

from serving.http_gateway import create_app
from serving.service import SegmentationService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_MS = 60_000


@pytest.fixture
def address(make_service: Callable[..., SegmentationService]) -> Iterator[str]:
    """Where the application answers, on a port of the system's choice."""
    server = uvicorn.Server(uvicorn.Config(create_app(make_service()), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it was ready"
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a headless browser with an empty profile."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*quiet, "--disable-sync"])
        yield browser.new_page(viewport={"width": 1280, "height": 900})
        browser.close()


def test_photo_dropped_on_the_page_shows_segments_depth_and_the_one_pass_they_shared(
    address: str, page: Page, encode_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    problems: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
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
