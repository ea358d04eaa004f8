"""Frames as clients send them: picture files, raw pixels, and the access units of H.264 and H.265."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import av
import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidImageError, InvalidOptionError, PolyheadError, TooLargeError, UnusableImageError
from serving.streams import frames as frames_module
from serving.streams.frames import CodecFrames, FrameFormat, frame_decoder, rgb_image
from serving.streams.stream import DecodedFrame, Frame, FrameDecoder

Codec = Literal["h264", "hevc"]
EncodeClip = Callable[..., list[bytes]]
CODECS: tuple[Codec, ...] = ("h264", "hevc")


@pytest.fixture(scope="session")
def encode_clip() -> EncodeClip:
    """Access units of a clip, in the order in which a client sends them; skips where the encoder is absent.

    The first unit is a key frame, and then every eighth. `b_frames` are sent after the picture that they precede.
    """

    def encode(
        codec: Codec, num_frames: int = 12, size: tuple[int, int] = (48, 64), *, b_frames: int = 0
    ) -> list[bytes]:
        name = {"h264": "libx264", "hevc": "libx265"}[codec]
        if name not in av.codecs_available:
            pytest.skip(f"PyAV comes without {name} here")
        context: Any = av.CodecContext.create(name, "w")
        context.height, context.width = size
        context.pix_fmt, context.time_base, context.framerate, context.gop_size = "yuv420p", Fraction(1, 25), 25, 8
        context.options = {
            "h264": {"bf": str(b_frames), "preset": "ultrafast", "b-adapt": "0", "threads": "1"},
            "hevc": {"x265-params": f"bframes={b_frames}:b-adapt=0:log-level=none:pools=none", "preset": "ultrafast"},
        }[codec]
        packets = []
        for number in range(num_frames):
            noise = np.random.default_rng(number).integers(-20, 21, (*size, 1))
            noise[:] -= round(float(noise.mean()))
            shade = np.broadcast_to(8 * number + 25 + noise, (*size, 3))  # so that each frame tells which one it is
            picture = av.VideoFrame.from_ndarray(shade.astype(np.uint8), format="rgb24")
            picture.pts = number
            packets += context.encode(picture)
        packets += context.encode(None)
        return [bytes(packet) for packet in packets]

    return encode


def send(decoder: FrameDecoder, units: Iterable[bytes]) -> list[DecodedFrame]:
    """Push units one after the other, numbered from 0, and flush; an error stands for its frame, as in a stream."""
    out: list[DecodedFrame] = []
    for number, unit in enumerate(units):
        frame = Frame(number, unit)
        try:
            out += decoder.decode(frame)
        except PolyheadError as error:
            out.append((frame, error))
    return out + decoder.flush()


def numbers(decoded: Sequence[DecodedFrame]) -> list[int]:
    return [frame.frame_id for frame, _ in decoded]


def shown(decoded: Sequence[DecodedFrame]) -> list[int | None]:
    """Which frame of the clip each picture shows; None for an error."""
    return [
        round((float(np.asarray(outcome).mean()) - 25) / 8) if isinstance(outcome, Image.Image) else None
        for _, outcome in decoded
    ]


def errors(decoded: Sequence[DecodedFrame]) -> dict[int, str]:
    return {frame.frame_id: str(outcome) for frame, outcome in decoded if isinstance(outcome, PolyheadError)}


@pytest.mark.parametrize("form", get_args(FrameFormat))
def test_only_codecs_must_see_every_frame(form: FrameFormat) -> None:
    assert frame_decoder(form).keeps_state == (form in CODECS)


@pytest.mark.parametrize("form", get_args(FrameFormat))
def test_an_empty_stream_gives_nothing(form: FrameFormat) -> None:
    decoder = frame_decoder(form)
    assert decoder.flush() == []
    assert decoder.flush() == []


def test_a_picture_file_gives_its_picture(
    encode_picture: Callable[..., bytes], draw_picture: Callable[..., Image.Image]
) -> None:
    frame = Frame(7, encode_picture(20, 30))
    [(origin, picture)] = frame_decoder("image").decode(frame)
    assert origin is frame
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(draw_picture(20, 30)))


def test_a_picture_file_over_the_limit_is_refused(encode_picture: Callable[..., bytes]) -> None:
    with pytest.raises(TooLargeError, match="600, more than the 599 taken"):
        frame_decoder("image", max_pixels=599).decode(Frame(0, encode_picture(20, 30)))


def test_raw_pixels_give_their_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
    frame = Frame(3, pixels.tobytes(), size=(10, 14))
    [(origin, picture)] = frame_decoder("rgb24").decode(frame)
    assert origin is frame
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize("size", [None, (0, 10), (10, 0), (-8, -8)])
def test_raw_pixels_without_a_size_are_refused(size: tuple[int, int] | None) -> None:
    with pytest.raises(InvalidOptionError, match="without height and width"):
        frame_decoder("rgb24").decode(Frame(0, bytes(300), size=size))


@pytest.mark.parametrize("num_bytes", [0, 299, 301, 400])
def test_raw_pixels_of_the_wrong_number_are_refused(num_bytes: int) -> None:
    with pytest.raises(InvalidImageError, match=f"^{num_bytes} bytes are no 10 x 10 RGB frame, which has 300$"):
        frame_decoder("rgb24").decode(Frame(0, bytes(num_bytes), size=(10, 10)))


@pytest.mark.parametrize(
    ("size", "kind"), [((100, 101), TooLargeError), ((7, 100), UnusableImageError), ((10, 321), UnusableImageError)]
)
def test_raw_pixels_of_an_unusable_size_are_refused_as_files_are(
    size: tuple[int, int], kind: type[PolyheadError]
) -> None:
    with pytest.raises(kind, match=f"^{size[1]} x {size[0]} pixels"):
        frame_decoder("rgb24", max_pixels=10_000).decode(Frame(0, b"", size=size))


@pytest.mark.parametrize("codec", CODECS)
def test_without_b_frames_each_unit_gives_its_picture_at_once(codec: Codec, encode_clip: EncodeClip) -> None:
    decoder = frame_decoder(codec)
    for number, unit in enumerate(encode_clip(codec)):
        decoded = decoder.decode(Frame(number, unit))
        assert (numbers(decoded), shown(decoded)) == ([number], [number])
    assert decoder.flush() == []


@pytest.mark.parametrize("codec", CODECS)
def test_b_frames_come_out_as_they_are_shown_and_each_under_the_frame_that_brought_it(
    codec: Codec, encode_clip: EncodeClip
) -> None:
    units = encode_clip(codec, b_frames=2)
    decoded = send(frame_decoder(codec), units)
    assert shown(decoded) == list(range(12))  # the order of presentation
    assert sorted(numbers(decoded)) == list(range(12))
    assert numbers(decoded) != list(range(12))  # a picture came before the B-frames that precede it
    first_b = numbers(decoded)[1]
    assert len(units[first_b]) < len(units[1])


@pytest.mark.parametrize("codec", CODECS)
def test_what_the_codec_holds_back_comes_out_at_the_end(codec: Codec, encode_clip: EncodeClip) -> None:
    decoder = frame_decoder(codec)
    before = [
        out for number, unit in enumerate(encode_clip(codec, b_frames=2)) for out in decoder.decode(Frame(number, unit))
    ]
    after = decoder.flush()
    assert len(before) < 12
    assert shown(before + after) == list(range(12))
    assert not any(frame.data for frame, _ in before + after)  # the bytes are not kept while the picture is awaited
    assert decoder.flush() == []


@pytest.mark.parametrize("codec", CODECS)
def test_a_frame_after_the_last_one_is_refused(codec: Codec, encode_clip: EncodeClip) -> None:
    decoder = frame_decoder(codec)
    units = encode_clip(codec)
    decoder.decode(Frame(0, units[0]))
    decoder.flush()
    with pytest.raises(InvalidOptionError, match="after the last one"):
        decoder.decode(Frame(1, units[1]))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("damage", ["garbage", "empty", "cut to its start code", "cut in the middle", "a picture file"])
def test_a_broken_unit_fails_alone_and_every_frame_is_told_once(
    codec: Codec, b_frames: int, damage: str, encode_clip: EncodeClip, encode_picture: Callable[..., bytes]
) -> None:
    units = encode_clip(codec, 26, b_frames=b_frames)
    units[11] = {
        "garbage": np.random.default_rng(0).bytes(500),
        "empty": b"",
        "cut to its start code": units[11][:5],
        "cut in the middle": units[11][: len(units[11]) // 2],
        "a picture file": encode_picture(48, 64),
    }[damage]
    decoded = send(frame_decoder(codec), units)
    assert sorted(numbers(decoded)) == list(range(26))
    healthy = {frame.frame_id for frame, outcome in decoded if isinstance(outcome, Image.Image)}
    assert healthy >= {*range(8), *range(18, 26)}  # what comes before, and all from the key frame after the next
    if codec == "h264":
        assert errors(decoded).keys() == {11}
    elif damage != "cut in the middle":  # H.265's decoder tells nobody of that
        assert 11 in errors(decoded)  # and beside it, what is predicted from it
    assert all("access unit that can be decoded" in text or "is empty" in text for text in errors(decoded).values())


@pytest.mark.parametrize("codec", CODECS)
def test_a_start_in_the_middle_of_a_group_fails_until_the_next_key_frame(codec: Codec, encode_clip: EncodeClip) -> None:
    decoded = send(frame_decoder(codec), encode_clip(codec, 20)[3:])
    assert numbers(decoded) == list(range(17))
    assert errors(decoded).keys() == set(range(5))
    assert shown(decoded)[5:] == list(range(8, 20))


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_but_garbage_is_an_error_for_each_frame(codec: Codec) -> None:
    random = np.random.default_rng(0)
    decoded = send(frame_decoder(codec), [random.bytes(size) for size in (1, 3, 4, 100, 5000)])
    assert numbers(decoded) == list(range(5))
    assert errors(decoded).keys() == set(range(5))


@pytest.mark.parametrize("codec", CODECS)
def test_a_lost_unit_loses_no_other_answer(codec: Codec, encode_clip: EncodeClip) -> None:
    units = encode_clip(codec, 26, b_frames=2)
    decoded = send(frame_decoder(codec), units[:10] + units[11:])
    assert sorted(numbers(decoded)) == list(range(25))


def test_a_frame_that_gives_no_picture_is_given_up_as_soon_as_it_can_be_told(encode_clip: EncodeClip) -> None:
    units = encode_clip("hevc", 26)
    decoder = frame_decoder("hevc")
    send_one = decoder.decode
    assert numbers(send_one(Frame(0, units[0]))) == [0]
    [(frame, error)] = send_one(Frame(1, units[2]))  # unit 1 was lost, and this one is predicted from it
    assert frame.frame_id == 1
    assert isinstance(error, InvalidImageError)
    assert "gave no picture" in str(error)


def test_with_b_frames_a_frame_that_gives_no_picture_is_given_up_after_some_more(encode_clip: EncodeClip) -> None:
    units = encode_clip("hevc", 26, b_frames=2)
    decoder = frame_decoder("hevc")
    out: list[list[int]] = []
    for number, unit in enumerate(units[:2] + units[3:]):
        decoded = decoder.decode(Frame(number, unit))
        out.append(list(errors(decoded)))
    lost = [(told_at, n) for told_at, ids in enumerate(out) for n in ids]
    assert lost
    assert all(told_at - n == frames_module._MAX_REORDERED for told_at, n in lost)


@pytest.mark.parametrize("codec", CODECS)
def test_the_size_may_change_in_the_middle(codec: Codec, encode_clip: EncodeClip) -> None:
    units = encode_clip(codec, 6, (48, 64)) + encode_clip(codec, 6, (80, 56))
    decoded = send(frame_decoder(codec), units)
    assert numbers(decoded) == list(range(12))
    sizes = [outcome.size for _, outcome in decoded if isinstance(outcome, Image.Image)]
    assert sizes == [(64, 48)] * 6 + [(56, 80)] * 6


@pytest.mark.parametrize("codec", CODECS)
def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(codec: Codec, encode_clip: EncodeClip) -> None:
    decoder = frame_decoder(codec, max_pixels=64 * 64)
    large, small = encode_clip(codec, 2, (128, 96)), encode_clip(codec, 2, (48, 64))
    with pytest.raises(TooLargeError, match="96 x 128 pixels; at most 4096"):
        decoder.decode(Frame(0, large[0]))
    assert numbers(decoder.decode(Frame(1, small[0]))) == [1]


def test_a_picture_whose_shown_part_is_unusable_is_refused(encode_clip: EncodeClip) -> None:
    decoded = send(frame_decoder("h264"), encode_clip("h264", 3, (16, 530)))
    assert errors(decoded).keys() == {0, 1, 2}
    assert all(text.startswith("530 x 16 pixels") for text in errors(decoded).values())


def test_two_threads_never_decode_at_once(encode_clip: EncodeClip, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a `push` was cancelled while its frame was in a thread."""
    units = encode_clip("h264", 3)
    decoder = CodecFrames("h264", 10**6)
    context = decoder._context
    assert context is not None
    entered, go_on = threading.Event(), threading.Event()
    inside: list[int] = []

    class Slow:
        reorder_depth = 0

        def decode(self, packet: av.Packet) -> list[av.VideoFrame]:
            inside.append(packet.pts or 0)
            entered.set()
            assert go_on.wait(60)
            assert inside == [packet.pts or 0]
            pictures = context.decode(packet)
            inside.clear()
            return pictures

    monkeypatch.setattr(decoder, "_context", Slow())
    got: dict[int, list[DecodedFrame]] = {}

    def decode(number: int) -> None:
        got[number] = decoder.decode(Frame(number, units[number]))

    first, second = (threading.Thread(target=decode, args=(number,)) for number in (0, 1))
    first.start()
    assert entered.wait(60)
    second.start()
    go_on.set()
    first.join(60)
    second.join(60)
    assert [numbers(got[number]) for number in (0, 1)] == [[0], [1]]


def test_rgb_is_what_pyav_s_own_conversion_gives(draw_picture: Callable[..., Image.Image]) -> None:
    frame = av.VideoFrame.from_image(draw_picture(30, 46)).reformat(format="yuv420p")
    picture = rgb_image(frame)
    assert (picture.mode, picture.size) == ("RGB", (46, 30))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(frame.to_image()))
