"""Clips as files: what is read from them, and that what is written plays as it should."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from serving.cli.video_files import ClipFrame, ClipReader, ClipWriter
from serving.errors import StartError

WriteClip = Callable[..., Path]


@pytest.fixture
def write_clip(tmp_path: Path) -> WriteClip:
    """Writes a clip of a few even grey pictures, 20, 30, 40 …, with its top left quarter white."""

    def write(
        name: str = "clip.mp4",
        num_frames: int = 6,
        size: tuple[int, int] = (48, 64),
        *,
        rate: Fraction = Fraction(25),
        rotation: int = 0,
        times: Sequence[int] | None = None,
        broken: int | None = None,
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("mpeg4", rate=rate, options={"qscale": "2"})
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
            if rotation:
                stream.set_display_rotation(rotation)
            for number in range(num_frames):
                pixels = np.full((*size, 3), 20 + 10 * number, np.uint8)
                pixels[: size[0] // 2, : size[1] // 2] = 255
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = times[number] if times else number
                for packet in stream.encode(frame):
                    if number == broken:
                        replaced, packet = packet, av.Packet(np.random.default_rng(0).bytes(200))
                        packet.pts, packet.dts, packet.time_base = replaced.pts, replaced.dts, replaced.time_base
                        packet.stream = stream
                    container.mux(packet)
            container.mux(stream.encode(None))
        return path

    return write


def read(path: Path, every: int = 1) -> list[ClipFrame]:
    with ClipReader(path) as reader:
        return list(reader.frames(every))


def greys(frames: Sequence[ClipFrame]) -> list[int]:
    """Which frame of `write_clip` each one is."""
    return [round((float(np.asarray(frame.picture)[-8:, -8:].mean()) - 20) / 10) for frame in frames]


# Reading


def test_every_frame_of_a_clip_is_read_with_its_time(write_clip: WriteClip) -> None:
    path = write_clip(rate=Fraction(30000, 1001))
    with ClipReader(path) as reader:
        assert reader.frame_rate == Fraction(30000, 1001)
        assert reader.num_frames == 6
        frames = list(reader.frames())
        assert reader.num_broken == 0
    assert [frame.number for frame in frames] == greys(frames) == list(range(6))
    assert [frame.time_s for frame in frames] == pytest.approx([number * 1001 / 30000 for number in range(6)], abs=1e-4)
    assert {(frame.picture.mode, frame.picture.size) for frame in frames} == {("RGB", (64, 48))}


def test_some_frames_are_left_out(write_clip: WriteClip) -> None:
    frames = read(write_clip(num_frames=7), every=3)
    assert [frame.number for frame in frames] == greys(frames) == [0, 3, 6]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 3 / 25, 6 / 25])


@pytest.mark.parametrize(
    ("rotation", "size", "white"),
    [(0, (64, 48), (0, 0)), (-90, (48, 64), (-1, 0)), (90, (48, 64), (0, -1)), (180, (64, 48), (-1, -1))],
)
def test_frames_are_turned_upright(
    rotation: int, size: tuple[int, int], white: tuple[int, int], write_clip: WriteClip
) -> None:
    """`white`: (x, y) of the corner in which the white quarter lies when the clip is shown."""
    for frame in read(write_clip(rotation=rotation)):
        assert frame.picture.size == size
        corners = {(x, y): np.asarray(frame.picture)[y, x].mean() > 200 for x in (0, -1) for y in (0, -1)}
        assert [corner for corner, is_white in corners.items() if is_white] == [white]


def test_times_count_from_the_first_frame(write_clip: WriteClip) -> None:
    frames = read(write_clip(num_frames=3, times=[50, 51, 60]))
    assert [frame.time_s for frame in frames] == pytest.approx([0, 1 / 25, 10 / 25])


def test_a_still_picture_is_a_clip_of_one_frame(tmp_path: Path, encode_picture: Callable[..., bytes]) -> None:
    path = tmp_path / "still.png"
    path.write_bytes(encode_picture(40, 50))
    assert [frame.picture.size for frame in read(path)] == [(50, 40)]


def test_the_number_of_frames_is_estimated_where_the_file_does_not_tell(write_clip: WriteClip) -> None:
    path = write_clip("clip.mkv", num_frames=11)
    with ClipReader(path) as reader:
        assert reader.num_frames == 11


def test_a_file_that_is_no_video_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no video")
    with pytest.raises(StartError, match=r"notes\.txt is no video that can be read \(Invalid data"):
        ClipReader(path)


def test_a_file_with_sound_alone_is_told(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    with pytest.raises(StartError, match=r"sound\.wav holds no video, only sound"):
        ClipReader(tmp_path / "sound.wav")


def test_the_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=44100, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        packets = [*sound.encode(frame), *sound.encode(None)]
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        picture.pts = 0
        container.mux([*cover.encode(picture.reformat(format="yuvj420p")), *cover.encode(None)])
        container.mux(packets)
    with pytest.raises(StartError, match=r"song\.mp4 holds no video"):
        ClipReader(path)


def test_of_a_clip_cut_short_what_is_there_is_read(write_clip: WriteClip) -> None:
    path = write_clip("clip.mkv", num_frames=20, size=(96, 128))
    path.write_bytes(path.read_bytes()[:-600])
    frames = read(path)
    assert 5 < len(frames) <= 20
    assert greys(frames[:5]) == list(range(5))


def test_broken_packets_are_counted_and_left_out(write_clip: WriteClip) -> None:
    with ClipReader(write_clip("clip.mkv", broken=2)) as reader:
        frames = list(reader.frames())
        assert reader.num_broken == 1
    assert greys(frames) == [0, 1, 3, 4, 5]
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]


# Writing


def test_what_is_written_is_read_back(tmp_path: Path, draw_picture: Callable[..., Image.Image]) -> None:
    path = tmp_path / "new" / "folder" / "clip.mp4"
    pictures = [draw_picture(48, 64, seed).resize((64, 48)) for seed in range(5)]
    with ClipWriter(path, Fraction(30000, 1001)) as writer:
        for picture in pictures:
            writer.write(picture)
        assert writer.num_frames == 5
    with av.open(str(path)) as container:
        [stream] = container.streams
        assert stream.type == "video"
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range) == (1, 1)
    with ClipReader(path) as reader:
        assert (reader.frame_rate, reader.num_frames) == (Fraction(30000, 1001), 5)
        frames = list(reader.frames())
    for picture, frame in zip(pictures, frames, strict=True):
        mine, other = (
            np.asarray(image.resize((8, 6), Image.Resampling.BOX)).astype(int) for image in (picture, frame.picture)
        )
        assert np.abs(mine - other).max() < 12


@pytest.mark.parametrize("color", [(200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128)])
def test_colors_stay_what_they_are(tmp_path: Path, color: tuple[int, int, int]) -> None:
    with ClipWriter(tmp_path / "clip.mp4", Fraction(25)) as writer:
        writer.write(Image.new("RGB", (32, 32), color))
    [frame] = read(tmp_path / "clip.mp4")
    assert np.abs(np.asarray(frame.picture).astype(int) - color).max() <= 3


def test_odd_sizes_are_cut_to_even_ones(tmp_path: Path) -> None:
    pixels = np.zeros((49, 65, 3), np.uint8)
    pixels[-1], pixels[:, -1] = 255, 255
    with ClipWriter(tmp_path / "clip.mp4", Fraction(25)) as writer:
        for _ in range(2):
            writer.write(Image.fromarray(pixels))
    for frame in read(tmp_path / "clip.mp4"):
        assert frame.picture.size == (64, 48)
        assert np.asarray(frame.picture).max() < 10  # cut, not scaled


def test_pictures_of_other_sizes_are_fitted_to_the_first(tmp_path: Path) -> None:
    with ClipWriter(tmp_path / "clip.mp4", Fraction(25)) as writer:
        for size in ((64, 48), (32, 24), (90, 90)):
            writer.write(Image.new("RGB", size))
    assert [frame.picture.size for frame in read(tmp_path / "clip.mp4")] == [(64, 48)] * 3


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(1, 3), Fraction(1_234_567, 41_153), Fraction(500)])
@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_rates_of_all_kinds_can_be_written_with_both_encoders(
    encoder: str, rate: Fraction, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.cli.video_files.av.codecs_available", {encoder})
    with ClipWriter(tmp_path / "clip.mp4", rate) as writer:
        for _ in range(3):
            writer.write(Image.new("RGB", (32, 32)))
    with ClipReader(tmp_path / "clip.mp4") as reader:
        assert reader.frame_rate == pytest.approx(rate, rel=1e-3)
        assert reader._stream.codec_context.name == {"libx264": "h264", "mpeg4": "mpeg4"}[encoder]
        assert reader.num_frames == 3


def test_a_clip_without_pictures_leaves_no_file(tmp_path: Path) -> None:
    with ClipWriter(tmp_path / "clip.mp4", Fraction(25)):
        pass
    assert not (tmp_path / "clip.mp4").exists()


@pytest.mark.parametrize("name", ["clip.xyz", "clip", "clip.webm"])
def test_a_suffix_that_cannot_hold_the_clip_is_told_and_leaves_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"choose another suffix, \.mp4 say"):
        ClipWriter(tmp_path / name, Fraction(25))
    assert not (tmp_path / name).exists()


def test_a_file_that_cannot_be_written_is_told_before_any_picture(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(IsADirectoryError):
        ClipWriter(tmp_path / "clip.mp4", Fraction(25))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        ClipWriter(tmp_path / "file" / "clip.mp4", Fraction(25))


def test_a_failure_while_writing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ClipWriter(tmp_path / "clip.mp4", Fraction(25))
    writer.write(Image.new("RGB", (32, 32)))

    class Full:
        def mux(self, packets: object) -> None:
            raise av.error.FFmpegError(28, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr(writer, "_container", Full())
    with pytest.raises(StartError, match=r"writing .*clip\.mp4 failed: No space left on device"):
        writer.write(Image.new("RGB", (32, 32)))
    with pytest.raises(StartError, match="No space left"):
        writer.close()
