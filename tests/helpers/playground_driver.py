"""What a person does on the playground, and what they see there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from playground_results import COLORS, HEIGHT, WIDTH, answer_of, photo_of_cats
from playwright.sync_api import Page, expect

from decoders.results import Result
from serving.answers.render import kind_of

PATIENCE_MS = 60_000


def tell_tasks(page: Page, results: Mapping[str, Result]) -> None:
    """Let the page believe in a server whose tasks give these results."""
    labels = [
        {"label_id": i, "name": name, "is_thing": name == "cat", "color": color}
        for i, (name, color) in enumerate(COLORS.items())
    ]
    tasks: list[dict[str, Any]] = [
        {"name": task, "kind": kind_of(result), "description": f"What {task} is.", "labels": labels}
        for task, result in results.items()
    ]
    told = {"bundle": "all", "encoder": {"name": "tiny"}, "default_tasks": list(results), "tasks": tasks}
    page.route("**/tasks", lambda route: route.fulfill(json=told))


def answer_with(page: Page, results: Mapping[str, Result]) -> None:
    """Let a server that has these tasks and these results answer the page."""
    tell_tasks(page, results)
    page.route("**/segment?*", lambda route: route.fulfill(json=answer_of(results)))


def show(page: Page, address: str, results: Mapping[str, Result], folder: Path) -> None:
    """Give the page a photo and wait until it shows the results."""
    answer_with(page, results)
    photo = folder / "cats.png"
    photo_of_cats().save(photo)
    page.goto(address)
    expect(page.locator("#server")).to_contain_text("all · tiny", timeout=PATIENCE_MS)
    page.locator("#file-input").set_input_files(photo)
    expect(page.locator("#timing")).to_be_visible(timeout=PATIENCE_MS)


def look_at(page: Page, view: str) -> None:
    page.locator("#views label", has_text=view).click()


def color_at(page: Page, layer: str, row: int, column: int) -> list[int]:
    """RGBA of the only shown pane's canvas, `layer` being ``"overlay"`` or ``"spot"``, at a pixel of the photo."""
    rgba: list[int] = page.locator(f"canvas.{layer}").evaluate(
        f"(canvas) => [...canvas.getContext('2d').getImageData({column}, {row}, 1, 1).data]"
    )
    return rgba


def point_at(page: Page, row: int, column: int, *, click: bool = False) -> None:
    """Move the mouse to a pixel of the photo in the only shown pane."""
    box = page.locator("#panes .frame").bounding_box()
    assert box is not None
    point = (box["x"] + (column + 0.5) / WIDTH * box["width"], box["y"] + (row + 0.5) / HEIGHT * box["height"])
    page.mouse.move(*point)
    if click:
        page.mouse.click(*point)


def card(page: Page, title: str) -> Any:
    """The card beside the picture with this heading."""
    return page.locator("#findings section").filter(has=page.get_by_role("heading", name=title, exact=True))


def play(page: Page, address: str, file: Path | None) -> None:
    """Give the page a clip, or (None) let it use the camera."""
    page.goto(address)
    expect(page.locator("#server")).to_have_attribute("data-state", "ready", timeout=PATIENCE_MS)
    if file is None:
        page.locator(".dropzone [data-action=camera]").click()
    else:
        page.locator("#file-input").set_input_files(file)


def wait_for(page: Page, condition: Callable[[], object]) -> None:
    """Let the page go on until something is so."""
    until_s = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < until_s, "it never came"
        page.wait_for_timeout(20)


def hide(page: Page, hidden: bool) -> None:
    """As if another tab were looked at, or this one again."""
    page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )
