"""What can be taken along from the playground: downloads in every form, and the command that gets the same."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from playground_driver import PATIENCE_MS, play, show, wait_for
from playground_results import HEIGHT, WIDTH, panoptic
from playground_streams import FakeStreams
from playwright.sync_api import Page, expect


@pytest.fixture
def photo(page: Page, address: str, encode_picture: Callable[..., bytes], tmp_path: Path) -> Path:
    """A photo that the tiny bundle has answered and the page shows."""
    path = tmp_path / "it's a photo.png"
    path.write_bytes(encode_picture(60, 90))
    page.goto(address)
    page.locator("#file-input").set_input_files(path)
    expect(page.locator("#take-away")).to_be_visible(timeout=PATIENCE_MS)
    return path


def download(page: Page, form: str | None = None, button: str = "Download") -> tuple[str, bytes]:
    """Choose a form of the result, press the button; the file's name and content."""
    if form is not None:
        page.get_by_label("Result as").select_option(label=form)
    with page.expect_download() as coming:
        page.get_by_role("button", name=button, exact=True).click()
    return coming.value.suggested_filename, Path(coming.value.path()).read_bytes()


def test_the_answer_is_downloaded_as_it_came_without_asking_again(page: Page, photo: Path) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/segment?" in request.url else None)
    name, content = download(page)
    assert name == "it's a photo.polyhead.json"
    assert set(json.loads(content)["results"]) == {"panoptic", "depth"}
    assert asked == []


@pytest.mark.parametrize(
    ("form", "query", "ending"),
    [
        ("All arrays (NumPy npz)", "tasks=panoptic,depth&format=npz", ".npz"),
        ("Depth: map (PNG)", "tasks=depth&format=png", ".depth.png"),
        ("Panoptic: map (PNG)", "tasks=panoptic&format=png", ".panoptic.png"),
        ("Panoptic: overlay (PNG)", "tasks=panoptic&format=overlay", ".panoptic.overlay.png"),
    ],
)
def test_every_form_of_the_api_is_downloaded_as_the_server_gives_it(
    address: str, page: Page, photo: Path, form: str, query: str, ending: str
) -> None:
    headers = {"Content-Type": "image/png"}
    told = httpx.post(f"{address}/segment?{query}", content=photo.read_bytes(), headers=headers, timeout=60).content
    name, content = download(page, form)
    assert name == f"it's a photo.polyhead{ending}"
    expect(page.locator("#asks-again")).to_be_visible()
    if ending == ".npz":
        ours, theirs = np.load(io.BytesIO(content)), np.load(io.BytesIO(told))
        assert sorted(ours) == sorted(theirs) and ours
    else:
        assert content == told


def test_the_command_on_show_gets_the_very_same_file(page: Page, photo: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    name, content = download(page, "Depth: map (PNG)")
    command = page.locator("#command").inner_text()
    subprocess.run(["bash", "-c", command], cwd=photo.parent, check=True, capture_output=True, timeout=60)
    assert (photo.parent / name).read_bytes() == content


def test_the_command_is_copied(page: Page, photo: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator("#copy-command")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#command").inner_text()


def test_the_picture_as_shown_has_the_photos_size_and_the_overlays_colours(
    address: str, page: Page, tmp_path: Path
) -> None:
    show(page, address, {"panoptic": panoptic()}, tmp_path)
    name, content = download(page, button="As shown")
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    assert name == "cats.polyhead.shown.png"
    assert picture.size == (WIDTH, HEIGHT)
    red, green, blue = picture.getpixel((140, 150))  # the cat, red over its dark red
    assert red > green + 60 and red > blue + 60


def test_a_download_that_is_refused_is_told_and_can_be_tried_again(page: Page, photo: Path) -> None:
    refusal = {"title": "Overloaded", "detail": "64 pictures wait", "remedy": "wait"}
    page.route("**/segment?*", lambda route: route.fulfill(status=429, json=refusal))
    page.get_by_label("Result as").select_option(label="All arrays (NumPy npz)")
    page.get_by_role("button", name="Download", exact=True).click()
    expect(page.locator("#notice")).to_contain_text("64 pictures wait")
    expect(page.locator("#download-form")).to_be_enabled()
    page.unroute_all()
    with page.expect_download() as coming:
        page.get_by_role("button", name="Try again").click()
    assert coming.value.suggested_filename.endswith(".npz")
    expect(page.locator("#notice")).to_be_empty()


def test_of_a_clip_the_frame_and_the_command_for_the_whole_are_offered(
    address: str, page: Page, streams: FakeStreams, long_clip: Path
) -> None:
    play(page, address, long_clip)
    expect(page.locator("#take-away")).to_be_visible(timeout=PATIENCE_MS)
    expect(page.locator("#command")).to_have_text(
        f"polyhead video 'long.webm' \\\n  --tasks tracks \\\n  --url '{address}' \\\n  --out annotated.mp4"
    )
    page.locator("#play").click()
    wait_for(page, lambda: page.locator("#play").inner_text() == "Play")
    name, content = download(page)
    assert name == "long.polyhead.json"
    assert json.loads(content)["results"]["tracks"]["instances"][0]["track_id"] == 1
    name, content = download(page, button="As shown")
    assert Image.open(io.BytesIO(content)).width >= WIDTH
