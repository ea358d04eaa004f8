"""A real Chromium on the HTTP application with a tiny bundle (no Ray)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playground_driver import tell_tasks
from playground_results import cats
from playground_streams import FakeStreams, make_clip
from playwright.sync_api import Browser, Page, sync_playwright

from serving.bundles.loading import load_bundle
from serving.config import Settings
from serving.engine import Engine
from serving.gateways.http_gateway import create_app
from serving.service import SegmentationService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="package")
def address(bundle_file: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the application answers, on a port of the system's choice; one for all tests, which leave nothing on it."""
    bundle = load_bundle(str(bundle_file), cache_dir=tmp_path_factory.mktemp("cache"))
    service = SegmentationService(Engine(bundle), settings)
    server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it was ready"
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()
    service.drain()


@pytest.fixture(scope="package")  # not longer: while it is open, this thread has an event loop
def browser() -> Iterator[Browser]:
    """A headless browser with a camera that is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*quiet, *camera, "--disable-sync"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page with an empty profile."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})  # in a context of its own
    yield page
    page.close()


@pytest.fixture
def problems(page: Page) -> list[str]:
    """What the page's console complains of, while the test runs."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


@pytest.fixture(scope="package")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 seconds."""
    return make_clip(tmp_path_factory.mktemp("clips") / "square.webm")


@pytest.fixture(scope="package")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute, so that a test ends before it does."""
    return make_clip(tmp_path_factory.mktemp("clips") / "long.webm", frames=300)


@pytest.fixture
def streams(page: Page) -> FakeStreams:
    """The server's streams, played by the test; its only task is called "tracks"."""
    tell_tasks(page, {"tracks": cats(track_id=7)})
    return FakeStreams(page)
