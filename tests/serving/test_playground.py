"""The playground in a real Chromium, on the HTTP application with a tiny bundle (no Ray)."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from decoders.masks import encode
from decoders.results import (
    ClassificationResult,
    ClassScore,
    DenseEmbeddingResult,
    DepthResult,
    EmbeddingResult,
    InstanceResult,
    PanopticResult,
    Result,
    Segment,
    SemanticResult,
)
from serving.http_gateway import create_app
from serving.render import kind_of, prediction_json
from serving.service import SegmentationService
from serving.types import Prediction, Timing

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


@pytest.fixture
def problems(page: Page) -> list[str]:
    """What the page's console complains of, while the test runs."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    return said


HEIGHT, WIDTH = 240, 320
COLORS = {"cat": [220, 60, 60], "sky": [110, 180, 250], "road": [150, 140, 130]}
CATS = ((150, 140, 50), (150, 200, 60), (150, 200, 20), (190, 40, 30))
"""(row, column, radius) of round cats, best first; the second covers the third, the first a part of the second."""


def disc(row: int, column: int, radius: int) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def cats(track_id: int | None = None) -> InstanceResult:
    """Overlapping instances of one label; the first has the given track, the next the next one."""
    masks = tuple(encode(disc(*cat)) for cat in CATS)
    instances = (
        Segment(rank, 0, "cat", True, 1 - 0.2 * rank, mask.area(), mask.bbox(), track_id and track_id + rank - 1)
        for rank, mask in enumerate(masks, 1)
    )
    return InstanceResult((HEIGHT, WIDTH), tuple(instances), masks)


def scenery() -> SemanticResult:
    """Sky over road, without a score that is sure."""
    segment_map = np.repeat([[2], [3]], (100, 140), axis=0) * np.ones((1, WIDTH), int)
    sky = Segment(2, 1, "sky", False, 0.9, 100 * WIDTH, (0, 0, WIDTH, 100))
    road = Segment(3, 2, "road", False, 0.6, 140 * WIDTH, (0, 100, WIDTH, 140))
    return SemanticResult(segment_map.astype(np.int32), (road, sky))


def panoptic() -> PanopticResult:
    """A cat (1) before sky and road."""
    segment_map = scenery().segment_map.copy()
    segment_map[disc(*CATS[0])] = 1
    segments = [cats().instances[0], *scenery().segments]
    return PanopticResult(
        segment_map, tuple(replace(x, area=int((segment_map == x.segment_id).sum())) for x in segments)
    )


def features() -> DenseEmbeddingResult:
    """12 x 16 vectors: those of the left half alike, those of the right half alike, with a little noise."""
    random = np.random.default_rng(0)
    halves = random.standard_normal((2, 24))
    vectors = np.repeat(np.repeat(halves[None], (8, 8), axis=1), 12, axis=0)
    return DenseEmbeddingResult((vectors + 0.05 * random.standard_normal(vectors.shape)).astype(np.float32))


def every_kind() -> dict[str, Result]:
    """One result of each kind, under the kind's name, and a tracked one."""
    depth_m = np.linspace(9, 1, HEIGHT, dtype=np.float32)[:, None] * np.ones((1, WIDTH), np.float32)
    vector = np.random.default_rng(1).standard_normal(384).astype(np.float32)
    results = (
        panoptic(),
        scenery(),
        cats(),
        DepthResult(depth_m),
        ClassificationResult((ClassScore(281, "tabby", 0.875), ClassScore(282, "tiger cat", 0.0625))),
        EmbeddingResult(vector / np.linalg.norm(vector)),
        features(),
    )
    return {kind_of(result): result for result in results} | {"tracks": cats(track_id=7)}


def photo_of_cats() -> Image.Image:
    pixels = np.array([(0, 0, 0), COLORS["cat"], COLORS["sky"], COLORS["road"]], np.uint8)[panoptic().segment_map]
    return Image.fromarray(pixels // 2 + 60)


def answer_with(page: Page, results: Mapping[str, Result]) -> None:
    """Let a server that has these tasks and these results answer the page."""
    labels = [
        {"label_id": i, "name": name, "is_thing": name == "cat", "color": color}
        for i, (name, color) in enumerate(COLORS.items())
    ]
    tasks: list[dict[str, Any]] = [
        {"name": task, "kind": kind_of(result), "description": f"What {task} is.", "labels": labels}
        for task, result in results.items()
    ]
    told = {"bundle": "all", "encoder": {"name": "tiny"}, "default_tasks": list(results), "tasks": tasks}
    timing = Timing(1, 2, 3, 40, dict.fromkeys(results, 5.0), 6, 90, 1, 1)
    prediction = Prediction((HEIGHT, WIDTH), (HEIGHT, WIDTH), results, {}, timing)
    page.route("**/tasks", lambda route: route.fulfill(json=told))
    page.route(
        "**/segment?*",
        lambda route: route.fulfill(json=prediction_json(prediction, request_id="r1", bundle="all", masks="rle")),
    )


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


def card(page: Page, title: str) -> Any:
    """The card beside the picture with this heading."""
    return page.locator("#findings section").filter(has=page.get_by_role("heading", name=title, exact=True))


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
          const { fromHalf } = await import("/static/feature_layer.js");
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
    expect(page.locator("#download-png")).to_be_disabled()
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
