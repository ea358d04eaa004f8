"""The playground in a real Chromium, on the HTTP application with a tiny bundle (no Ray)."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, WebSocketRoute, expect, sync_playwright

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
from serving.answers.render import kind_of, prediction_json, result_json
from serving.gateways.http_gateway import create_app
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


@pytest.fixture(scope="module")  # not longer: while it is open, this thread has an event loop
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


def answer_of(results: Mapping[str, Result], size: tuple[int, int] = (HEIGHT, WIDTH)) -> dict[str, Any]:
    timing = Timing(1, 2, 3, 40, dict.fromkeys(results, 5.0), 6, 90, 1, 1)
    return prediction_json(Prediction(size, size, results, {}, timing), request_id="r1", bundle="all", masks="rle")


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


# Live video


def make_clip(path: Path, frames: int = 30, rate: int = 10, codec: str = "libvpx") -> Path:
    """A clip (VP8, which every Chromium plays) of a white square that wanders over black, 10 pixels a frame."""
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = 4_000_000
        stream.options = {"deadline": "realtime", "cpu-used": "8"}
        for number in range(frames):
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            left = 10 * number % (WIDTH - 60)
            pixels[90:150, left : left + 60] = 255
            clip.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        clip.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 seconds."""
    return make_clip(tmp_path_factory.mktemp("clips") / "square.webm")


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute, so that a test ends before it does."""
    return make_clip(tmp_path_factory.mktemp("clips") / "long.webm", frames=300)


def square_of(picture: Image.Image) -> InstanceResult:
    """What a perfect head finds in a frame of `make_clip`: the bright pixels, as one tracked cat."""
    mask = encode(np.asarray(picture.convert("L")) > 128)
    cat = Segment(1, 0, "cat", True, 0.9, mask.area(), mask.bbox(), track_id=1)
    return InstanceResult((picture.height, picture.width), (cat,), (mask,))


class FakeStreams:
    """Stands in for `WS /video`: answers each frame with the square in it, and notes what the page does.

    Attributes:
        configs: of the streams that were opened.
        sockets: of them.
        closed: how many the page has left.
        unanswered: the largest number of frames without an answer that there ever was.
        sizes: (width, height) of the frames.
        held: answers are kept in here while it is a list.
        refusal: the problem that new streams get, if any.
        broken: ids of the frames that fail.
    """

    def __init__(self, page: Page) -> None:
        self.configs: list[dict[str, Any]] = []
        self.sockets: list[WebSocketRoute] = []
        self.closed = 0
        self.unanswered = 0
        self.sizes: list[tuple[int, int]] = []
        self.held: list[tuple[WebSocketRoute, str]] | None = None
        self.refusal: dict[str, Any] | None = None
        self.broken: set[int] = set()
        page.route_web_socket("**/video", self._open)

    def release(self) -> None:
        """Send what is held; what comes from now on is held again."""
        held, self.held = self.held or [], []
        for socket, text in held:
            socket.send(text)

    def _open(self, socket: WebSocketRoute) -> None:
        self.sockets.append(socket)
        socket.on_message(lambda message: self._take(socket, message))
        socket.on_close(lambda code, reason: self._left())

    def _left(self) -> None:
        self.closed += 1

    def _take(self, socket: WebSocketRoute, message: str | bytes) -> None:
        if isinstance(message, str):
            self.configs.append(json.loads(message))
            if self.refusal is not None:
                socket.send(json.dumps({"problem": self.refusal}))
                socket.close(code=1008, reason=self.refusal["title"])
            else:
                socket.send(json.dumps({"started": {}}))
            return
        frame_id, captured_at_us = struct.unpack_from("<QQ", message)
        picture = Image.open(io.BytesIO(message[16:]))
        self.sizes.append(picture.size)
        told = {"frame_id": frame_id, "captured_at_us": captured_at_us, "dropped_since_last": 0, "age_ms": 1}
        if frame_id in self.broken:
            told["error"] = {"title": "Not a readable image", "detail": "frame broke", "remedy": "r"}
        else:
            told |= answer_of({"tracks": square_of(picture)}, (picture.height, picture.width))
        if self.held is None:
            socket.send(json.dumps(told))
        else:
            self.held.append((socket, json.dumps(told)))
            self.unanswered = max(self.unanswered, len(self.held))


@pytest.fixture
def streams(page: Page) -> FakeStreams:
    """The server's streams, played by the test; its only task is called "tracks"."""
    tell_tasks(page, {"tracks": cats(track_id=7)})
    return FakeStreams(page)


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


def frames_until_quiet(page: Page, streams: FakeStreams) -> int:
    """Let the page go on until it has sent no frame for half a second; how many it sent till then."""
    sent = -1
    until_s = time.monotonic() + PATIENCE_MS / 1000
    while sent != len(streams.sizes):
        assert time.monotonic() < until_s, "frames went on coming"
        sent = len(streams.sizes)
        page.wait_for_timeout(500)
    return sent


def rate(page: Page) -> Any:
    return page.locator("#live-rate")


def test_a_clip_is_played_with_what_the_heads_find_and_the_frame_rate(
    address: str, page: Page, problems: list[str], clip: Path
) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url.replace("ws:", "http:")))
    play(page, address, clip)

    expect(page.locator("#panes .summary").first).to_contain_text("segment", timeout=PATIENCE_MS)
    expect(page.locator("#panes .summary").last).to_contain_text("m")  # metres
    expect(rate(page)).to_have_text(re.compile(r"^\d"))
    expect(page.locator("#live-latency")).to_contain_text("ms")
    expect(page.locator("#timing-body")).to_contain_text("1 encoder pass for 2 tasks")
    expect(page.locator("#findings .segment").first).to_be_visible()
    for canvas in page.locator("#panes canvas.base").all():
        colors = canvas.evaluate(
            """(canvas) => new Set(
              new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)
            ).size"""
        )
        assert colors > 3
    expect(page.locator("#play")).to_have_text("Play again", timeout=PATIENCE_MS)
    expect(page.locator("#clock")).to_have_text("0:03 / 0:03")
    expect(page.locator("#announcer")).to_have_text("The clip is over")
    assert problems == []
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []
    assert f"{address}/video" in asked


def test_an_overlay_lies_on_the_frame_that_it_belongs_to(
    address: str, page: Page, problems: list[str], streams: FakeStreams, long_clip: Path
) -> None:
    streams.held = []
    play(page, address, long_clip)
    for _ in range(5):
        wait_for(page, lambda: streams.held)
        page.wait_for_timeout(600)  # the clip goes on meanwhile; what is shown must not
        streams.release()
    expect(page.locator("#findings .segment .name")).to_have_text(["cat #1"], timeout=PATIENCE_MS)
    page.locator("#play").click()
    counts = page.locator("#panes canvas.base").evaluate(
        """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let [right, astray, bare] = [0, 0, 0];
          for (let i = 0; i < data.length; i += 4) {
            const isTinted = data[i] - data[i + 1] > 60;
            if (isTinted && data[i] > 200) right++; // over white
            else if (isTinted && data[i] < 150) astray++; // over black
            else if (data[i + 1] > 250) bare++;
          }
          return [right, astray, bare];
        }"""
    )
    right, astray, bare = counts
    assert right > 1500, counts  # of 3600, less the label
    assert astray < 300 and bare < 300, counts  # edges, and the label's text
    assert streams.unanswered == 1  # of so slow a server, a second frame on its way would only grow old
    assert problems == []


def test_frames_are_sent_no_faster_than_answers_come_and_the_skipped_ones_are_told(
    address: str, page: Page, streams: FakeStreams, long_clip: Path
) -> None:
    play(page, address, long_clip)
    wait_for(page, lambda: len(streams.sizes) > 5)
    streams.held = []
    page.wait_for_timeout(1000)
    assert len(streams.held) == 2
    assert int(page.locator("#live-skipped").inner_text()) >= 5
    assert streams.configs == [{"tasks": ["tracks"], "drop_policy": "latest", "max_in_flight": 2}]
    assert set(streams.sizes) == {(WIDTH, HEIGHT)}


def test_larger_frames_are_scaled_down_before_they_are_sent(
    address: str, page: Page, streams: FakeStreams, long_clip: Path
) -> None:
    play(page, address, long_clip)
    wait_for(page, lambda: len(streams.sizes) > 2)
    assert streams.sizes[-1] == (320, 240)  # not up to 640
    page.locator("#sent-side").select_option("320")
    page.locator("[data-action=camera]").last.click()  # 1280 x 720
    wait_for(page, lambda: (320, 180) in streams.sizes)


def test_pause_and_stop_by_keyboard(address: str, page: Page, streams: FakeStreams, long_clip: Path) -> None:
    play(page, address, long_clip)
    expect(page.locator("#announcer")).to_have_text("Live: Tracks", timeout=PATIENCE_MS)
    page.locator("#play").focus()
    page.keyboard.press("Space")
    expect(page.locator("#play")).to_have_text("Play")
    expect(page.locator("#announcer")).to_have_text("Paused")
    sent = frames_until_quiet(page, streams)
    assert streams.closed == 0  # tracks go on after a short pause
    page.locator("#seek").focus()
    page.keyboard.press("End")
    wait_for(page, lambda: len(streams.sizes) > sent)  # the frame there is asked, though nothing plays
    page.locator("#play").focus()
    page.keyboard.press("Enter")
    page.locator("#stop").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_disabled()
    wait_for(page, lambda: streams.closed == 1)
    expect(page.locator("#clock")).to_contain_text("0:00 /")
    page.locator("#play").click()
    wait_for(page, lambda: len(streams.configs) == 2)


def test_what_is_spoken_does_not_change_with_each_frame(
    address: str, page: Page, streams: FakeStreams, long_clip: Path
) -> None:
    page.goto(address)
    page.evaluate(
        """() => {
          window.spoken = [];
          new MutationObserver(() => window.spoken.push(document.getElementById("announcer").textContent)).observe(
            document.getElementById("announcer"), { childList: true, characterData: true, subtree: true });
        }"""
    )
    expect(page.locator("#server")).to_have_attribute("data-state", "ready", timeout=PATIENCE_MS)
    page.locator("#file-input").set_input_files(long_clip)
    wait_for(page, lambda: len(streams.sizes) > 12)
    assert page.evaluate("window.spoken") == ["Playing", "Live: Tracks"]


def test_other_tasks_open_another_stream(
    address: str, page: Page, problems: list[str], streams: FakeStreams, long_clip: Path
) -> None:
    page.unroute("**/tasks")
    tell_tasks(page, {"tracks": cats(track_id=7), "depth": DepthResult(np.ones((HEIGHT, WIDTH), np.float32))})
    play(page, address, long_clip)
    wait_for(page, lambda: len(streams.sizes) > 2)
    page.locator("#chips label", has_text="Depth").dblclick()  # off and on again
    page.wait_for_timeout(500)
    assert len(streams.configs) == 1
    page.locator("#chips label", has_text="Depth").click()
    wait_for(page, lambda: len(streams.configs) == 2 and streams.closed == 1)
    assert [config["tasks"] for config in streams.configs] == [["tracks", "depth"], ["tracks"]]
    page.locator("#chips label", has_text="Tracks").click()
    expect(page.locator("#notice")).to_contain_text("Choose at least one task")
    wait_for(page, lambda: streams.closed == 2)
    page.locator("#chips label", has_text="Tracks").click()
    wait_for(page, lambda: len(streams.configs) == 3)
    expect(page.locator("#notice")).to_be_empty()
    assert problems == []


def test_a_stream_that_fails_is_told_and_can_be_tried_again(
    address: str, page: Page, streams: FakeStreams, long_clip: Path
) -> None:
    streams.refusal = {"title": "Overloaded", "detail": "64 streams are open", "remedy": "close one"}
    play(page, address, long_clip)
    expect(page.locator("#notice")).to_contain_text("64 streams are open", timeout=PATIENCE_MS)
    expect(page.locator("#play")).to_have_text("Play")
    expect(page.locator("#progress")).to_be_hidden()
    page.wait_for_timeout(300)
    assert len(streams.configs) == 1  # nobody tries by himself
    streams.refusal = None
    page.get_by_role("button", name="Try again").click()
    wait_for(page, lambda: len(streams.sizes) > 2)
    expect(page.locator("#notice")).to_be_empty()
    streams.sockets[-1].close(code=1011)
    expect(page.locator("#notice")).to_contain_text("The connection was lost")
    page.locator("#seek").focus()
    page.keyboard.press("End")  # another frame is shown
    page.wait_for_timeout(500)
    assert len(streams.configs) == 2


def test_a_stream_that_the_server_ended_in_a_pause_is_opened_again_without_a_word(
    address: str, page: Page, streams: FakeStreams, long_clip: Path
) -> None:
    play(page, address, long_clip)
    wait_for(page, lambda: len(streams.sizes) > 2)
    page.locator("#play").click()
    frames_until_quiet(page, streams)
    streams.sockets[-1].close(code=4409)
    page.wait_for_timeout(200)
    expect(page.locator("#notice")).to_be_empty()
    page.locator("#play").click()
    wait_for(page, lambda: len(streams.configs) == 2)


def test_a_frame_that_fails_is_noted_and_the_video_goes_on(
    address: str, page: Page, problems: list[str], streams: FakeStreams, long_clip: Path
) -> None:
    streams.broken = set(range(3, 1000))
    play(page, address, long_clip)
    expect(page.locator("#player-note")).to_have_text("frame broke", timeout=PATIENCE_MS)
    streams.broken.clear()
    expect(page.locator("#player-note")).to_be_empty()
    assert len(streams.configs) == 1
    assert problems == []


def hide(page: Page, hidden: bool) -> None:
    """As if another tab were looked at, or this one again."""
    page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_a_clip_rests_while_the_tab_is_left(address: str, page: Page, streams: FakeStreams, long_clip: Path) -> None:
    play(page, address, long_clip)
    wait_for(page, lambda: len(streams.sizes) > 2)
    hide(page, True)
    wait_for(page, lambda: streams.closed == 1)
    assert page.evaluate("document.querySelector('video').paused")
    hide(page, False)
    wait_for(page, lambda: len(streams.configs) == 2)
    assert not page.evaluate("document.querySelector('video').paused")


def test_a_photo_ends_the_video(
    address: str, page: Page, problems: list[str], streams: FakeStreams, long_clip: Path, tmp_path: Path
) -> None:
    play(page, address, long_clip)
    wait_for(page, lambda: len(streams.sizes) > 2)
    page.route("**/segment?*", lambda route: route.fulfill(json=answer_of({"tracks": cats(track_id=7)})))
    photo_of_cats().save(tmp_path / "cats.png")
    page.locator("#file-input").set_input_files(tmp_path / "cats.png")
    wait_for(page, lambda: streams.closed == 1)
    expect(page.locator("#player")).to_be_hidden()
    expect(page.locator("#live")).to_be_hidden()
    expect(page.locator("video")).to_have_count(0)
    expect(page.locator("#views label").first).to_have_text("Photo")
    expect(card(page, "Tracks").locator(".segment")).to_have_count(4)
    assert problems == []


def test_the_camera_is_shown_live_and_switched_off_by_stop_and_by_leaving(
    address: str, page: Page, problems: list[str]
) -> None:
    is_on = "document.querySelector('video').srcObject !== null"
    play(page, address, None)
    expect(page.locator("#panes .summary").first).to_contain_text("segment", timeout=PATIENCE_MS)
    expect(rate(page)).to_have_text(re.compile(r"^\d"))
    expect(page.locator("#seek-holder")).to_be_hidden()
    assert page.evaluate(is_on)
    page.locator("#stop").click()
    expect(page.locator("#play")).to_have_text("Start camera")
    assert not page.evaluate(is_on)
    page.locator("#play").click()
    expect(page.locator("#play")).to_have_text("Pause")
    assert page.evaluate(is_on)
    hide(page, True)
    assert not page.evaluate(is_on)
    hide(page, False)
    expect(page.locator("#player-note")).to_contain_text("switched off")
    assert not page.evaluate(is_on)  # only the person switches it on
    assert problems == []


def test_a_camera_that_is_stopped_before_it_was_allowed_stays_off(
    address: str, page: Page, problems: list[str]
) -> None:
    play(page, address, None)
    expect(page.locator("#play")).to_have_text("Pause", timeout=PATIENCE_MS)
    page.locator("#stop").click()
    page.evaluate(
        """() => {
          const get = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
          window.tracks = [];
          navigator.mediaDevices.getUserMedia = async (wishes) => {
            await new Promise((resolve) => { window.allow = resolve; });
            const stream = await get(wishes);
            window.tracks.push(...stream.getTracks());
            return stream;
          };
        }"""
    )
    page.locator("#play").click()
    page.locator("#file-input").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png()})
    expect(page.locator("#player")).to_be_hidden()
    page.evaluate("window.allow()")
    is_off = "window.tracks.length > 0 && window.tracks.every((track) => track.readyState === 'ended')"
    wait_for(page, lambda: page.evaluate(is_off))
    assert problems == []


def png() -> bytes:
    buffer = io.BytesIO()
    photo_of_cats().save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ("{ getUserMedia: () => Promise.reject(new DOMException('no', 'NotAllowedError')) }", "was not allowed"),
        ("{ getUserMedia: () => Promise.reject(new DOMException('no', 'NotFoundError')) }", "No camera was found"),
        ("{ getUserMedia: () => Promise.reject(new DOMException('no', 'AbortError')) }", "can’t be used"),
        ("undefined", "secure page"),
    ],
)
def test_a_camera_that_cannot_be_had_is_explained(
    address: str, page: Page, problems: list[str], devices: str, words: str
) -> None:
    page.add_init_script(f"Object.defineProperty(navigator, 'mediaDevices', {{ value: {devices} }})")
    play(page, address, None)
    expect(page.locator("#notice")).to_contain_text(words)
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.locator("#dropzone")).to_be_visible()  # as before
    expect(page.locator("video")).to_have_count(0)
    assert problems == []


def test_a_clip_that_the_browser_cannot_play_is_refused(address: str, page: Page, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no clip")
    play(page, address, tmp_path / "clip.mp4")
    expect(page.locator("#notice")).to_contain_text("can’t be played")
    expect(page.locator("#dropzone")).to_be_visible()


def test_a_clip_dropped_on_the_page_is_played(address: str, page: Page, streams: FakeStreams, clip: Path) -> None:
    page.goto(address)
    expect(page.locator("#server")).to_have_attribute("data-state", "ready", timeout=PATIENCE_MS)
    page.evaluate(
        """(bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "square.webm", { type: "video/webm" }));
          window.dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
        }""",
        list(clip.read_bytes()),
    )
    wait_for(page, lambda: len(streams.sizes) > 2)


def test_depth_colours_follow_a_new_range_slowly(address: str, page: Page) -> None:
    page.goto(address)
    low, high = page.evaluate(
        """async (png16) => {
          const { DepthLayer } = await import("/static/depth_layer.js");
          const first = new DepthLayer({ unit: "m", min: 1, max: 2, scale: 0.001 }, 1, 1, new Uint16Array([1500]));
          const next = await DepthLayer.fromResult({ unit: "m", min: 3, max: 9, scale: 0.001, png16 }, first);
          return [next.min, next.max];
        }""",
        result_json(DepthResult(np.full((2, 2), 5, np.float32)), "rle")["png16"],
    )
    assert 1 <= low < 2 and 2 <= high < 5
