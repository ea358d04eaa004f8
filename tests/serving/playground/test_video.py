"""Clips and the camera on the playground."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playground_driver import PATIENCE_MS, card, hide, play, tell_tasks, wait_for
from playground_results import HEIGHT, WIDTH, answer_of, cats, photo_of_cats, png
from playground_streams import FakeStreams, frames_until_quiet
from playwright.sync_api import Page, expect

from decoders.results import DepthResult


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


def test_the_frame_rate_counts_the_last_seconds_and_of_a_slow_server_the_last_answers(address: str, page: Page) -> None:
    page.goto(address)
    fast, slow = page.evaluate(
        """async () => {
          const { FrameRate } = await import("/static/video/frame_rate.js");
          const [fast, slow] = [new FrameRate(), new FrameRate()];
          for (let i = 0; i < 10; i++) fast.add(1, 1000 * i); // one a second, then
          for (let i = 1; i <= 40; i++) fast.add(1, 9000 + 100 * i); // ten
          for (let i = 0; i < 4; i++) slow.add(1, 5000 * i);
          return [fast.perSecond, slow.perSecond];
        }"""
    )
    assert fast == pytest.approx(10)
    assert slow == pytest.approx(0.2)
