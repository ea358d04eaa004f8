"""Photos on the playground: how they come in, what is asked, what goes wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
from playground_driver import PATIENCE_MS, answer_with, card, wait_for
from playground_results import answer_of, panoptic, photo_of_cats, png
from playwright.sync_api import Page, Route, expect


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


def test_a_photo_that_is_dropped_or_pasted_is_asked(address: str, page: Page, problems: list[str]) -> None:
    asked: list[str] = []
    answer_with(page, {"panoptic": panoptic()})
    page.on("request", lambda it: asked.append(it.headers["content-type"]) if "/segment?" in it.url else None)
    page.goto(address)
    expect(page.locator("#server")).to_have_attribute("data-state", "ready", timeout=PATIENCE_MS)
    give = """([bytes, kind]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], "cats.png", { type: "image/png" }));
      if (kind === "drop") {
        window.dispatchEvent(new DragEvent("dragover", { dataTransfer: data, cancelable: true }));
        if (document.getElementById("drop-veil").hidden) throw new Error("not shown where it can be dropped");
        window.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
      } else {
        document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
      }
    }"""
    for count, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(give, [list(png()), kind])
        wait_for(page, lambda count=count: len(asked) == count)
        expect(card(page, "Panoptic")).to_be_visible()
        expect(page.locator("#drop-veil")).to_be_hidden()
    assert asked == ["image/png", "image/png"]
    assert problems == []


def test_while_a_photo_is_looked_at_the_page_says_so(address: str, page: Page, tmp_path: Path) -> None:
    held: list[Route] = []
    answer_with(page, {"panoptic": panoptic()})
    page.unroute("**/segment?*")
    page.route("**/segment?*", lambda route: held.append(route))
    page.goto(address)
    expect(page.locator("#server")).to_have_attribute("data-state", "ready", timeout=PATIENCE_MS)
    photo_of_cats().save(tmp_path / "cats.png")
    page.locator("#file-input").set_input_files(tmp_path / "cats.png")
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator("#waiting")).to_have_text(re.compile(r"^Looking… \d\.\d s$"))
    expect(page.locator(".skeleton")).to_be_visible()
    expect(page.locator("#panes canvas.base")).to_be_visible()  # the photo is there already
    wait_for(page, lambda: held)
    held[0].fulfill(json=answer_of({"panoptic": panoptic()}))
    expect(card(page, "Panoptic")).to_be_visible()
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator(".skeleton")).to_have_count(0)


def test_a_refused_photo_counts_down_retry_after_and_then_can_be_tried_again(
    address: str, page: Page, tmp_path: Path
) -> None:
    refusal = {"title": "Overloaded", "detail": "64 pictures wait", "remedy": "try again after Retry-After seconds"}
    answer_with(page, {"panoptic": panoptic()})
    page.unroute("**/segment?*")
    page.route("**/segment?*", lambda route: route.fulfill(status=429, headers={"Retry-After": "30"}, json=refusal))
    page.clock.install()
    page.goto(address)
    expect(page.locator("#server")).to_have_attribute("data-state", "ready", timeout=PATIENCE_MS)
    photo_of_cats().save(tmp_path / "cats.png")
    page.locator("#file-input").set_input_files(tmp_path / "cats.png")
    notice = page.locator("#notice")
    expect(notice.get_by_role("alert")).to_contain_text("64 pictures wait")
    expect(notice.get_by_role("alert")).to_contain_text("room in 30 seconds")
    button = notice.get_by_role("button")
    expect(button).to_be_disabled()
    expect(button).to_have_text(re.compile(r"^Try again in (30|2\d) s$"))
    page.clock.run_for(15_000)
    expect(button).to_have_text(re.compile(r"^Try again in 1?\d s$"))
    expect(notice.get_by_role("alert").get_by_role("button")).to_have_count(0)  # the countdown is not spoken
    page.clock.run_for(15_000)
    expect(button).to_have_text("Try again")
    page.unroute("**/segment?*")
    page.route("**/segment?*", lambda route: route.fulfill(json=answer_of({"panoptic": panoptic()})))
    button.click()
    expect(card(page, "Panoptic")).to_be_visible()
    expect(notice).to_be_empty()
