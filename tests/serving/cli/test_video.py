"""`polyhead video`: what it writes here and from a server, and that every mistake is one clear line."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import uvicorn
from PIL import Image
from typer.testing import CliRunner

from decoders.depth import DepthDecoder
from decoders.results import DepthResult
from serving.answers.parse import parse_results
from serving.answers.render import overlay_png
from serving.bundles.loading import load_bundle
from serving.cli import main as cli
from serving.cli import video as cli_video
from serving.cli.video_files import ClipFrame, ClipReader, ClipWriter
from serving.engine import Engine
from serving.errors import InvalidImageError, StartError
from serving.gateways.http_gateway import create_app
from serving.service import SegmentationService
from serving.streams.stream import VideoStream

NUM_FRAMES = 6
RATE = Fraction(10)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("POLYHEAD_DEVICE", "cpu")
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, draw_picture: Callable[..., Image.Image]) -> Path:
    """Six frames of 64 x 96 at 10 a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with ClipWriter(path, RATE) as writer:
        for number in range(NUM_FRAMES):
            writer.write(draw_picture(64, 96, number).rotate(10 * number))
    return path


def frames_of(path: Path) -> list[Image.Image]:
    with ClipReader(path) as reader:
        return [frame.picture for frame in reader.frames()]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, the last line of standard error) of the command as a shell runs it."""
    monkeypatch.setattr(sys, "argv", ["polyhead", "video", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("POLYHEAD_DEVICE", "cpu")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, said.strip().splitlines()[-1]


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean, in [0, 255]."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean())


# Here


@pytest.fixture
def here(runner: CliRunner, bundle_file: Path) -> Callable[..., Any]:
    """Runs the command with --local on the tiny bundle."""

    def run(*arguments: str | Path, code: int = 0) -> Any:
        done = runner.invoke(
            cli.app, ["video", "--local", "--bundle", str(bundle_file), *map(str, arguments)], catch_exceptions=False
        )
        assert done.exit_code == code, done.output
        return done

    return run


def test_one_task_is_drawn_into_the_file_that_was_named(here: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "annotated.mp4"
    done = here(clip, "--tasks", "panoptic", "--out", out)
    assert [path.name for path in out.parent.iterdir()] == ["annotated.mp4"]
    with ClipReader(out) as reader:
        assert (reader.frame_rate, reader.num_frames) == (RATE, NUM_FRAMES)
    assert {picture.size for picture in frames_of(out)} == {(96, 64)}
    assert f"{NUM_FRAMES} frames, " in done.output
    assert f"wrote {out}\n" in done.output


def test_of_several_tasks_each_has_a_clip_of_its_own(here: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines" / "results.jsonl"
    here(clip, "--out", tmp_path / "out" / "annotated.mp4", "--json", lines)  # the bundle's tasks
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"annotated_panoptic.mp4", "annotated_depth.mp4"}
    assert len(lines_of(lines)) == NUM_FRAMES


def test_what_is_drawn_and_told_is_what_the_engine_finds(
    here: Callable[..., Any], clip: Path, tmp_path: Path, bundle_file: Path
) -> None:
    here(clip, "--out", tmp_path / "a.mp4", "--json", tmp_path / "a.jsonl")
    bundle = load_bundle(str(bundle_file), cache_dir=tmp_path, device="cpu")
    engine = Engine(bundle)
    told = lines_of(tmp_path / "a.jsonl")
    drawn = {task: frames_of(tmp_path / f"a_{task}.mp4") for task in ("panoptic", "depth")}
    for number, picture in enumerate(frames_of(clip)):
        [prediction] = engine.predict(picture)
        assert told[number]["frame"] == number
        assert told[number]["time_s"] == pytest.approx(number / 10)
        assert told[number]["image"] == {"height": 64, "width": 96}
        assert told[number]["errors"] == {}
        assert told[number]["timing"]["encoder_passes"] == 1
        results = parse_results(told[number])
        assert results.keys() == prediction.results.keys()
        segments, expected = (found["panoptic"].segments for found in (results, prediction.results))  # type: ignore[union-attr]
        assert [(s.label, s.area, s.bbox) for s in segments] == [(s.label, s.area, s.bbox) for s in expected]
        for task in drawn:
            overlay = overlay_png(prediction.results[task], picture, bundle.label_sets.get(task))
            assert difference(drawn[task][number], Image.open(io.BytesIO(overlay))) < 12  # H.264 loses some
            assert difference(drawn[task][number], picture) > 20


def test_frames_are_left_out_and_the_clip_lasts_as_long(here: Callable[..., Any], clip: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    here(clip, "--tasks", "depth", "--every", 2, "--max-side", 48, "--out", out, "--json", lines)
    with ClipReader(out) as reader:
        assert (reader.frame_rate, reader.num_frames) == (RATE / 2, 3)
    assert {picture.size for picture in frames_of(out)} == {(48, 32)}
    assert [(line["frame"], line["time_s"]) for line in lines_of(lines)] == [(0, 0.0), (2, 0.2), (4, 0.4)]


def test_a_clip_filmed_upright_is_written_upright(here: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(-90)
        for number in range(2):
            frame = av.VideoFrame(64, 48, "rgb24")
            frame.pts = number
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    here(path, "--tasks", "depth", "--out", tmp_path / "out.mp4")
    assert [picture.size for picture in frames_of(tmp_path / "out.mp4")] == [(48, 64)] * 2


def test_a_frame_that_fails_is_shown_as_it_is_and_told(
    here: Callable[..., Any], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = cli_video._Pictures.decode

    def fail_on_the_second(self: Any, frame: Any) -> Any:
        if frame.frame_id == 1:
            raise InvalidImageError("nothing to see", remedy="none")
        return decode(self, frame)

    monkeypatch.setattr(cli_video._Pictures, "decode", fail_on_the_second)
    out, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    done = here(clip, "--tasks", "depth", "--max-side", 48, "--out", out, "--json", lines)
    told = lines_of(lines)
    assert told[1].keys() == {"frame", "time_s", "error"}
    assert told[1]["error"]["detail"] == "nothing to see"
    assert [line["frame"] for line in told if "results" in line] == [0, 2, 3, 4, 5]
    assert len(frames_of(out)) == NUM_FRAMES
    assert difference(frames_of(out)[1], frames_of(clip)[1].resize((48, 32))) < 12
    assert "1 results are missing; the first: frame 1: nothing to see" in done.output


def test_a_task_that_fails_is_told_and_the_others_are_drawn(
    here: Callable[..., Any], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no luck")

    monkeypatch.setattr(DepthDecoder, "postprocess", fail)
    done = here(clip, "--out", tmp_path / "out.mp4", "--json", tmp_path / "out.jsonl")
    assert all(line["results"].keys() == {"panoptic"} for line in lines_of(tmp_path / "out.jsonl"))
    assert all(line["errors"].keys() == {"depth"} for line in lines_of(tmp_path / "out.jsonl"))
    for picture, drawn in zip(frames_of(clip), frames_of(tmp_path / "out_depth.mp4"), strict=True):
        assert difference(picture, drawn) < 12
    assert f"{NUM_FRAMES} results are missing; the first: frame 0, depth: head 'depth' failed" in done.output


def test_what_cannot_be_drawn_is_told_only(
    here: Callable[..., Any], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_video, "PICTURE_KINDS", frozenset({"depth"}))
    here(clip, "--out", tmp_path / "out.mp4", "--json", tmp_path / "out.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"out.mp4", "out.jsonl"}
    assert all(line["results"].keys() == {"panoptic", "depth"} for line in lines_of(tmp_path / "out.jsonl"))


def test_here_the_bundle_comes_from_the_environment(
    runner: CliRunner, bundle_file: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYHEAD_BUNDLE", str(bundle_file))
    out = tmp_path / "out.mp4"
    done = runner.invoke(cli.app, ["video", str(clip), "--local", "--tasks", "depth", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert out.is_file()


# Mistakes


def test_a_file_that_is_no_video_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no video")
    code, said = run_main(monkeypatch, capsys, str(text), "--local", "--out", str(tmp_path / "out.mp4"))
    assert code == 1
    assert said.startswith(f"error {text} is no video that can be read")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    code, said = run_main(monkeypatch, capsys, str(tmp_path / "sound.wav"), "--local", "--out", str(tmp_path / "o.mp4"))
    assert code == 1
    assert said.startswith(f"error {tmp_path / 'sound.wav'} holds no video")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "panoptc"], "no head for 'panoptc'; loaded: depth, panoptic"),
        (["--tasks", "depth", "--out", "TMP/out.xyz"], "can't write video to TMP/out.xyz: Could not determine output"),
        (["--tasks", "depth", "--out", "TMP/folder"], "[Errno 21] Is a directory: 'TMP/folder'"),
        (["--tasks", "depth", "--out", "TMP/file/out.mp4"], "[Errno 17] File exists: 'TMP/file'"),
        (["--tasks", "depth", "--json", "TMP/folder"], "[Errno 21] Is a directory: 'TMP/folder'"),
        (["--tasks", "depth", "--out", "CLIP"], "CLIP would be overwritten; choose another name"),
        (["--tasks", "depth", "--json", "CLIP"], "CLIP would be overwritten; choose another name"),
        (["--bundle", "no-such-bundle"], "no bundle 'no-such-bundle'; packaged:"),
    ],
)
def test_a_wish_that_cannot_be_fulfilled_is_one_line_and_harms_nothing(
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle_file: Path,
    clip: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    before = clip.read_bytes()
    given = [argument.replace("TMP", str(tmp_path)).replace("CLIP", str(clip)) for argument in arguments]
    always = ["--local", "--bundle", str(bundle_file), "--out", str(tmp_path / "o.mp4")]
    code, said = run_main(monkeypatch, capsys, str(clip), *always, *given)
    assert code == 1
    assert said.startswith("error " + words.replace("TMP", str(tmp_path)).replace("CLIP", str(clip)))
    assert clip.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


def test_nothing_to_draw_and_nothing_to_tell_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle_file: Path,
    clip: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(cli_video, "PICTURE_KINDS", frozenset())
    out = str(tmp_path / "out.mp4")
    code, said = run_main(monkeypatch, capsys, str(clip), "--local", "--bundle", str(bundle_file), "--out", out)
    assert (code, said) == (1, "error nothing of panoptic, depth can be drawn; ask for it with --json FILE")


@pytest.mark.parametrize("arguments", [["--every", "0"], ["--max-side", "15"]])
def test_a_number_out_of_range_is_told(arguments: list[str], here: Callable[..., Any], clip: Path) -> None:
    assert "greater than or equal to" in here(clip, *arguments, code=2).output


def test_an_absent_clip_is_told(runner: CliRunner, tmp_path: Path) -> None:
    done = runner.invoke(cli.app, ["video", str(tmp_path / "absent.mp4")])
    assert done.exit_code == 2
    assert "does not exist" in done.output


def test_the_command_has_help(runner: CliRunner) -> None:
    done = runner.invoke(cli.app, ["video", "--help"])
    assert done.exit_code == 0
    assert "polyhead video" in done.output


def test_a_clip_without_a_frame_that_can_be_decoded_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle_file: Path,
    clip: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(ClipReader, "frames", lambda self, every: iter(()))
    out = str(tmp_path / "out.mp4")
    code, said = run_main(monkeypatch, capsys, str(clip), "--local", "--bundle", str(bundle_file), "--out", out)
    assert (code, said) == (1, f"error {clip} holds no frame that can be decoded")
    assert list(tmp_path.iterdir()) == []


def fail_after(number: int, frames: Callable[..., Iterator[ClipFrame]]) -> Callable[..., Iterator[ClipFrame]]:
    def some(*arguments: Any) -> Iterator[ClipFrame]:
        for frame, _ in zip(frames(*arguments), range(number), strict=False):
            yield frame
        raise StartError("the disk is gone")

    return some


@pytest.mark.parametrize("number", [0, 2])
def test_a_clip_that_fails_in_the_middle_ends_the_command_and_what_was_answered_is_written(
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle_file: Path,
    clip: Path,
    tmp_path: Path,
) -> None:
    frames = ClipReader.frames
    monkeypatch.setattr(ClipReader, "frames", fail_after(number, frames))
    out = tmp_path / "out.mp4"
    arguments = ["--local", "--bundle", str(bundle_file), "--tasks", "depth", "--out", str(out)]
    code, said = run_main(monkeypatch, capsys, str(clip), *arguments)
    assert (code, said) == (1, "error the disk is gone")
    monkeypatch.setattr(ClipReader, "frames", frames)
    assert out.exists() == (number > 0)
    if number:
        assert len(frames_of(out)) == number


def test_an_output_that_fails_in_the_middle_ends_the_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle_file: Path,
    clip: Path,
    tmp_path: Path,
) -> None:
    write = ClipWriter.write

    def fail(self: ClipWriter, picture: Image.Image) -> None:
        if self.num_frames == 2:
            raise StartError("no space left")
        write(self, picture)

    monkeypatch.setattr(ClipWriter, "write", fail)
    out = tmp_path / "out.mp4"
    arguments = ["--local", "--bundle", str(bundle_file), "--tasks", "depth", "--out", str(out)]
    code, said = run_main(monkeypatch, capsys, str(clip), *arguments)
    assert (code, said) == (1, "error no space left")
    assert len(frames_of(out)) == 2


# A server


@pytest.fixture
def server(make_service: Callable[..., SegmentationService]) -> Iterator[str]:
    """The address of the HTTP application on the tiny bundle in memory."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            create_app(make_service()), log_level="critical", ws="websockets-sansio", lifespan="off"
        )
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        running.should_exit = True
        thread.join(60)


def ask(runner: CliRunner, server: str, *arguments: str | Path) -> Any:
    return runner.invoke(cli.app, ["video", "--url", server, *map(str, arguments)], catch_exceptions=False)


def test_a_server_s_clips_are_those_of_the_engine(
    runner: CliRunner,
    server: str,
    clip: Path,
    tmp_path: Path,
    make_service: Callable[..., SegmentationService],
) -> None:
    done = ask(runner, server, clip, "--out", tmp_path / "a.mp4", "--json", tmp_path / "a.jsonl")
    assert done.exit_code == 0, done.output
    bundle = make_service().engine.bundle
    told = lines_of(tmp_path / "a.jsonl")
    assert [(line["frame"], line["time_s"]) for line in told] == [(n, n / 10) for n in range(NUM_FRAMES)]
    assert all(line.keys() == {"frame", "time_s", "image", "results", "errors", "timing"} for line in told)
    for task in ("panoptic", "depth"):
        drawn = frames_of(tmp_path / f"a_{task}.mp4")
        for number, picture in enumerate(frames_of(clip)):
            result = parse_results(told[number])[task]
            overlay = Image.open(io.BytesIO(overlay_png(result, picture, bundle.label_sets.get(task))))
            assert difference(drawn[number], overlay) < 12
    assert f"{NUM_FRAMES} frames, " in done.output


def test_a_server_gets_what_was_asked_and_sends_no_more(
    runner: CliRunner, server: str, clip: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "a.jsonl"
    wishes = ["--tasks", "depth", "--every", 3, "--max-side", 48, "--out", tmp_path / "a.mp4", "--json", lines]
    done = ask(runner, f"{server}/", clip, *map(str, wishes))
    assert done.exit_code == 0, done.output
    assert [line["frame"] for line in lines_of(lines)] == [0, 3]
    assert all(line["results"].keys() == {"depth"} for line in lines_of(lines))
    assert {picture.size for picture in frames_of(tmp_path / "a.mp4")} == {(48, 32)}


def test_a_server_sees_nearly_the_clip_s_pixels(
    runner: CliRunner, server: str, clip: Path, tmp_path: Path, make_service: Callable[..., SegmentationService]
) -> None:
    ask(runner, server, clip, "--tasks", "depth", "--out", tmp_path / "a.mp4", "--json", tmp_path / "a.jsonl")
    engine = make_service().engine
    for picture, line in zip(frames_of(clip), lines_of(tmp_path / "a.jsonl"), strict=True):
        assert line["image"] == {"height": 64, "width": 96}
        expected = engine.predict(picture, ["depth"])[0].results["depth"]
        found = parse_results(line)["depth"]
        assert isinstance(expected, DepthResult) and isinstance(found, DepthResult)
        assert np.mean(np.abs(found.depth_m - expected.depth_m) / expected.depth_m) < 0.02


def server_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clip: Path, out: Path, *arguments: str
) -> str:
    code, said = run_main(monkeypatch, capsys, str(clip), "--out", str(out), *arguments)
    assert code == 1
    return said


def test_an_address_where_nobody_answers_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clip: Path, tmp_path: Path
) -> None:
    said = server_error(monkeypatch, capsys, clip, tmp_path / "a.mp4", "--url", "http://127.0.0.1:9")
    assert said.startswith("error no polyhead server answers at http://127.0.0.1:9 (")
    assert said.endswith("start one with 'polyhead serve', or add --local")
    said = server_error(monkeypatch, capsys, clip, tmp_path / "a.mp4", "--url", "no address")
    assert said.startswith("error no polyhead server answers at no address (")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_task_is_told_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: str, clip: Path, tmp_path: Path
) -> None:
    said = server_error(monkeypatch, capsys, clip, tmp_path / "a.mp4", "--url", server, "--tasks", "depth,panoptc")
    assert said == f"error no head for 'panoptc' at {server}; loaded: depth, panoptic"
    assert list(tmp_path.iterdir()) == []


def test_a_problem_of_the_server_is_shown_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clip: Path,
    tmp_path: Path,
    server: str,
) -> None:
    def full(*arguments: Any) -> Any:
        raise InvalidImageError("1 streams are open", remedy="close one")

    monkeypatch.setattr("serving.streams.registry.StreamRegistry.open", full)
    said = server_error(monkeypatch, capsys, clip, tmp_path / "a.mp4", "--url", server)
    assert said == "error 400 Not a readable image: 1 streams are open (close one)"


def test_a_stream_that_breaks_in_the_middle_is_told_and_what_was_answered_is_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clip: Path,
    tmp_path: Path,
    server: str,
) -> None:
    push = VideoStream.push

    async def break_off(self: VideoStream, frame: Any) -> None:
        if frame.frame_id == 5:
            self.evict(InvalidImageError("enough", remedy="none"))
        await push(self, frame)

    monkeypatch.setattr(VideoStream, "push", break_off)
    out = tmp_path / "a.mp4"
    said = server_error(monkeypatch, capsys, clip, out, "--url", server, "--tasks", "depth")
    assert said == "error 400 Not a readable image: enough (none)"
    assert 2 <= len(frames_of(out)) < NUM_FRAMES


def test_a_connection_that_breaks_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clip: Path,
    tmp_path: Path,
    server: str,
) -> None:
    async def cut(self: Any, stream: Any, masks: Any) -> None:
        await self._socket.close(1011)

    monkeypatch.setattr("serving.gateways.ws_gateway._Session._answer", cut)
    said = server_error(monkeypatch, capsys, clip, tmp_path / "a.mp4", "--url", server, "--tasks", "depth")
    assert said.startswith(f"error the stream to {server} broke (")


def test_a_server_that_stops_answering_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clip: Path,
    tmp_path: Path,
    server: str,
) -> None:
    def no_answers(self: VideoStream) -> Any:
        class Never:
            def __aiter__(self) -> Any:
                return self

            async def __anext__(self) -> Any:
                await asyncio.Event().wait()

        return Never()

    monkeypatch.setattr(VideoStream, "answers", no_answers)
    monkeypatch.setattr(cli_video, "_ANSWER_S", 0.2)
    said = server_error(monkeypatch, capsys, clip, tmp_path / "a.mp4", "--url", server, "--tasks", "depth")
    assert said.startswith(f"error the stream to {server} broke (no answer for 0.2 s)")
