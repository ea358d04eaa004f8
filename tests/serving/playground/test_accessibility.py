"""The playground against axe-core's rules and WCAG's contrast, and by keyboard alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playground_driver import PATIENCE_MS, card, play, show
from playground_results import every_kind
from playground_streams import FakeStreams
from playwright.sync_api import Page, expect

Scheme = Literal["light", "dark"]
STILL = "* { transition: none !important; animation: none !important }"


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with what is on the screen, once nothing moves."""
    page.evaluate(
        """(css) => {
          document.adoptedStyleSheets = [new CSSStyleSheet()];
          document.adoptedStyleSheets[0].replaceSync(css);
        }""",
        STILL,
    )
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{rule['id']}: {node['html'][:120]}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_rule_of_axe_is_broken_from_the_empty_page_to_a_refused_request(
    address: str, page: Page, tmp_path: Path, scheme: Scheme
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    expect(page.locator("#chips label").first).to_be_visible(timeout=PATIENCE_MS)
    assert violations(page) == []

    shown = ("panoptic", "depth", "classification", "embedding")
    show(page, address, {kind: every_kind()[kind] for kind in shown}, tmp_path)
    page.get_by_role("button", name="Options").click()
    card(page, "Panoptic").get_by_role("button", name="Show sky").click()
    card(page, "Panoptic").locator(".segment").first.click()
    assert violations(page) == []

    page.get_by_role("button", name="Keyboard shortcuts").click()
    assert violations(page) == []
    page.keyboard.press("Escape")

    page.unroute("**/segment?*")
    refusal = {"title": "Overloaded", "detail": "64 pictures wait", "remedy": "wait"}
    page.route("**/segment?*", lambda route: route.fulfill(status=429, headers={"Retry-After": "60"}, json=refusal))
    page.locator("#chips label").first.click()
    expect(page.locator("#notice")).to_contain_text("64 pictures wait", timeout=PATIENCE_MS)
    assert violations(page) == []


def test_no_rule_of_axe_is_broken_by_a_video(address: str, page: Page, streams: FakeStreams, long_clip: Path) -> None:
    play(page, address, long_clip)
    expect(page.locator("#take-away")).to_be_visible(timeout=PATIENCE_MS)
    page.locator("#play").click()
    assert violations(page) == []


def luminance(rgb: list[int]) -> float:
    """WCAG's relative luminance of sRGB bytes."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in rgb))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: list[int], other: list[int]) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_themes_colours_are_far_enough_apart(address: str, page: Page, scheme: Scheme) -> None:
    texts = [
        (ink, ground) for ink in ("ink", "muted") for ground in ("page", "surface", "sunken", "lit", "accent-soft")
    ]
    texts += [("on-accent", "accent"), ("accent", "accent-soft"), ("ink", "danger-soft"), ("muted", "danger-soft")]
    bars = ("encoder", "stage", "head-0", "head-1", "head-2", "head-3")
    shapes = [(bar, "sunken") for bar in bars] + [("accent", "surface"), ("danger", "danger-soft")]
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    names = {name for pair in texts + shapes for name in pair}
    rgb = page.evaluate(
        """(names) => Object.fromEntries(names.map((name) => {
          document.body.style.color = `var(--${name})`;
          return [name, getComputedStyle(document.body).color.match(/\\d+/g).map(Number)];
        }))""",
        sorted(names),
    )
    least = dict.fromkeys(texts, 4.5) | dict.fromkeys(shapes, 3.0)  # WCAG 2.2, 1.4.3 and 1.4.11
    too_close = {pair: round(contrast(rgb[pair[0]], rgb[pair[1]]), 2) for pair in least}
    assert {pair: ratio for pair, ratio in too_close.items() if ratio < least[pair]} == {}


def test_every_control_is_reached_by_tab_and_shows_that_it_has_the_focus(
    address: str, page: Page, tmp_path: Path
) -> None:
    show(page, address, {kind: every_kind()[kind] for kind in ("panoptic", "depth")}, tmp_path)
    page.get_by_role("button", name="Options").click()
    reached = []
    rounds = 0
    while rounds < 2:  # from the slider that has the focus to the end, and once around
        assert len(reached) < 200, "the focus goes in circles"
        page.keyboard.press("Tab")
        told = page.evaluate(
            """() => {
              const node = document.activeElement;
              if (node === document.body) return null;
              node.dataset.reached = "";
              const shown = [node, node.closest(".chip, .view")].filter(Boolean);
              return [node.outerHTML.slice(0, 90), shown.some((one) => getComputedStyle(one).outlineStyle !== "none")];
            }"""
        )
        if told is None:
            rounds += 1
        else:
            reached.append(told)
    assert [html for html, is_seen in reached if not is_seen] == []
    missed = page.evaluate(
        """() => [...document.querySelectorAll("a, button, input, select, [tabindex='0']")]
          .filter((node) => node.checkVisibility() && !node.disabled && !("reached" in node.dataset))
          .filter((node) => node.type !== "radio" || node.checked)
          .map((node) => node.outerHTML.slice(0, 90))"""
    )
    assert missed == []
