"""Each kind of result on the playground: layers, cards, colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playground_driver import card, color_at, point_at, show
from playground_results import COLORS, HEIGHT, WIDTH, cats, every_kind, features, scenery
from playwright.sync_api import Page, expect

from decoders.results import DepthResult, InstanceResult, Result, SemanticResult
from serving.answers.render import result_json


def test_each_kind_of_result_has_its_own_card_or_layer(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, every_kind(), tmp_path)

    expect(card(page, "Panoptic")).to_contain_text("3 segments")
    expect(card(page, "Semantic")).to_contain_text("2 classes")
    expect(card(page, "Instance")).to_contain_text("4 instances")
    expect(card(page, "Classification").locator("li")).to_have_text(["tabby88%", "tiger cat6.3%"])
    expect(card(page, "Embedding")).to_contain_text("384 numbers")
    expect(card(page, "Embedding")).to_contain_text("length 1.00")
    assert card(page, "Embedding").locator("path").get_attribute("d").count("M") == 384
    expect(card(page, "Dense embedding")).to_contain_text("12 × 16 × 24")
    views = ["Photo", "Panoptic", "Semantic", "Instance", "Depth", "Dense embedding", "Tracks", "Side by side"]
    expect(page.locator("#views label")).to_have_text(views)
    expect(page.locator("#announcer")).to_contain_text("Classification: tabby 88%")
    assert problems == []


def test_classes_of_a_semantic_result_have_their_labels_colours(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, {"semantic": scenery()}, tmp_path)

    assert color_at(page, "overlay", 30, 30) == [*COLORS["sky"], 255]
    assert color_at(page, "overlay", 200, 30) == [*COLORS["road"], 255]
    rows = card(page, "Semantic").locator(".segment .name")
    expect(rows).to_have_text(["road", "sky"])  # largest first
    assert problems == []


def test_of_overlapping_instances_the_best_is_on_top_and_listed_first(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, {"instance": cats()}, tmp_path)

    first, second = color_at(page, "overlay", 150, 100), color_at(page, "overlay", 150, 250)
    assert first == [*COLORS["cat"], 255]
    assert second[3] == 255 and second != first  # a shade of its own
    assert color_at(page, "overlay", 150, 170) == first  # in both
    assert color_at(page, "overlay", 150, 210) == second  # in the third as well, which is worse
    assert color_at(page, "overlay", 20, 20) == [0, 0, 0, 0]
    expect(card(page, "Instance").locator(".segment .name")).to_have_text(["cat 1", "cat 2", "cat 3", "cat 4"])
    assert problems == []


def test_an_instance_under_a_better_one_is_spotlit_whole(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, {"instance": cats()}, tmp_path)

    card(page, "Instance").locator(".segment").nth(2).hover()
    assert color_at(page, "spot", 150, 200) == [0, 0, 0, 0]  # clear
    assert color_at(page, "spot", 150, 250)[3] > 100  # shaded, though the second reaches there
    assert problems == []


def test_a_tracked_object_is_named_by_its_track_and_keeps_its_colour(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    frame = cats(track_id=7)
    show(page, address, {"tracks": frame}, tmp_path)
    expect(card(page, "Tracks").locator(".segment .name")).to_have_text(["cat #7", "cat #8", "cat #9", "cat #10"])
    before = color_at(page, "overlay", 190, 40)

    alone = (replace(frame.instances[3], segment_id=1),)
    page.unroute_all()
    show(page, address, {"tracks": InstanceResult(frame.image_size, alone, frame.masks[3:])}, tmp_path)
    expect(card(page, "Tracks").locator(".segment .name")).to_have_text(["cat #10"])
    assert color_at(page, "overlay", 190, 40) == before
    assert problems == []


def test_like_vectors_of_a_dense_embedding_have_like_colours(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, {"features": features()}, tmp_path)

    left, left_too, right = (np.array(color_at(page, "overlay", *point)) for point in ((9, 9), (230, 9), (9, 310)))
    assert abs(int(left[0]) - int(right[0])) > 200  # the first direction is red
    assert abs(int(left[0]) - int(left_too[0])) < 30
    assert left[3] == right[3] == 255
    assert problems == []


def test_every_finite_half_precision_number_is_read_by_the_page_as_by_numpy(address: str, page: Page) -> None:
    numbers = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    finite = np.isfinite(numbers)
    page.goto(address)
    read = page.evaluate(
        """async (patterns) => {
          const { fromHalf } = await import("/static/layers/feature_layer.js");
          return patterns.map((bits) => fromHalf(bits));
        }""",
        np.flatnonzero(finite).tolist(),
    )
    np.testing.assert_array_equal(read, numbers[finite])


def test_an_answer_without_a_layer_leaves_the_photo_alone(
    address: str, page: Page, problems: list[str], tmp_path: Path
) -> None:
    show(page, address, {"classes": every_kind()["classification"]}, tmp_path)

    expect(card(page, "Classes")).to_contain_text("top 2")
    expect(page.locator("#panes canvas.base")).to_be_visible()
    expect(page.locator("#views")).to_be_hidden()
    expect(page.locator("#download-picture")).to_be_disabled()
    assert problems == []


@pytest.mark.parametrize(
    "nothing",
    [InstanceResult((HEIGHT, WIDTH), (), ()), SemanticResult(np.zeros((HEIGHT, WIDTH), np.int32), ())],
)
def test_a_result_that_found_nothing_says_so(
    address: str, page: Page, problems: list[str], tmp_path: Path, nothing: Result
) -> None:
    show(page, address, {"task": nothing}, tmp_path)

    expect(card(page, "Task")).to_contain_text("Nothing was found")
    assert problems == []


def test_depth_colours_follow_a_new_range_slowly(address: str, page: Page) -> None:
    page.goto(address)
    low, high = page.evaluate(
        """async (png16) => {
          const { DepthLayer } = await import("/static/layers/depth_layer.js");
          const first = new DepthLayer({ unit: "m", min: 1, max: 2, scale: 0.001 }, 1, 1, new Uint16Array([1500]));
          const next = await DepthLayer.fromResult({ unit: "m", min: 3, max: 9, scale: 0.001, png16 }, first);
          return [next.min, next.max];
        }""",
        result_json(DepthResult(np.full((2, 2), 5, np.float32)), "rle")["png16"],
    )
    assert 1 <= low < 2 and 2 <= high < 5


def test_the_depth_under_the_pointer_is_marked_on_the_colour_bar(address: str, page: Page, tmp_path: Path) -> None:
    show(page, address, {"depth": every_kind()["depth"]}, tmp_path)  # 9 m at the top to 1 m at the bottom

    expect(page.locator(".tick.first")).to_have_text("1.00\u00a0m")
    expect(page.locator(".tick.last")).to_have_text("9.00\u00a0m")
    expect(page.locator(".marker")).to_be_hidden()
    point_at(page, 120, 160)
    expect(page.locator(".marker")).to_have_text("4.98\u00a0m")
    expect(page.locator(".readout")).to_have_text("4.98\u00a0m")
    bar, marker = page.locator(".ramp").bounding_box(), page.locator(".marker").bounding_box()
    place = (marker["x"] + marker["width"] / 2 - bar["x"]) / bar["width"]
    assert place == pytest.approx(np.log(4.98) / np.log(9), abs=0.01)
    page.mouse.move(5, 5)
    expect(page.locator(".marker")).to_be_hidden()


@pytest.mark.parametrize(
    ("near", "far", "ticks"),
    [
        (0.82, 1.85, [1, 1.2, 1.4, 1.6]),
        (0.5, 80, [2, 5, 10, 20]),
        (0.01, 100, [0.05, 0.2, 0.5, 2, 5, 20]),
        (4.0, 4.1, [4.02, 4.04, 4.06, 4.08]),
        (2.0, 2.0, []),
        (0.0, 5.0, []),
    ],
)
def test_the_depth_scale_has_round_numbers_that_keep_their_distance(
    address: str, page: Page, near: float, far: float, ticks: list[float]
) -> None:
    page.goto(address)
    made = page.evaluate(
        """async ([near, far]) => {
          const { depthTicks } = await import("/static/layers/depth_scale.js");
          const place = (depth) => Math.log(depth / near) / Math.log(far / near);
          return depthTicks(near, far, place).map(({ depth }) => depth);
        }""",
        [near, far],
    )
    assert made == ticks


def test_tracks_of_one_class_have_colours_that_can_be_told_apart(address: str, page: Page) -> None:
    page.goto(address)
    colors = page.evaluate(
        """async (base) => {
          const { trackColor } = await import("/static/layers/colors.js");
          return Array.from({ length: 20 }, (_, i) => trackColor(base, i + 1));
        }""",
        COLORS["cat"],
    )
    np.testing.assert_allclose(colors[0], COLORS["cat"], atol=1)
    rgb = np.array(colors, float)
    apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + 1000 * np.eye(len(rgb))
    assert apart.min() > 20
