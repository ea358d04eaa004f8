"""Decoding what callers send: every kind of picture becomes upright RGB, everything else a clear refusal."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from serving.errors import InvalidImageError, PolyheadError, TooLargeError, UnusableImageError
from serving.pictures import MAX_ASPECT_RATIO, MIN_SIDE, decode_picture

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # as serving.pictures asks for; pytest undoes it

RED, WHITE = (255, 0, 0), (255, 255, 255)


def as_file(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def half_red(mode: str = "RGB") -> Image.Image:
    """20 wide, 10 high: the left half red, the right half white."""
    image = Image.new("RGB", (20, 10), WHITE)
    image.paste(RED, (0, 0, 10, 10))
    return image.convert(mode)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_zeros(width: int, height: int) -> bytes:
    """A valid grey PNG of a few kilobytes to megabytes, whatever its size in pixels: one row deflates to nothing."""
    squeeze = zlib.compressobj(9)
    row = bytes(width + 1)
    data = b"".join(squeeze.compress(row) for _ in range(min(height, 100))) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to read pixels fails the test."""

    def load(self: ImageFile.ImageFile) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_pixel_for_pixel(file_format: str, draw_picture: Callable[..., Image.Image]) -> None:
    picture = draw_picture(30, 20)
    decoded = decode_picture(as_file(picture, file_format))
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))


def test_webp_comes_back_pixel_for_pixel_when_lossless(draw_picture: Callable[..., Image.Image]) -> None:
    picture = draw_picture(30, 20)
    decoded = decode_picture(as_file(picture, "WEBP", lossless=True))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(picture))


def test_a_jpeg_comes_back_nearly_the_same() -> None:
    decoded = decode_picture(as_file(half_red(), "JPEG", quality=95, subsampling=0))
    np.testing.assert_allclose(np.asarray(decoded), np.asarray(half_red()), atol=20)


def test_cmyk_becomes_rgb() -> None:
    decoded = decode_picture(as_file(half_red("CMYK"), "JPEG", quality=95, subsampling=0))
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(decoded.getpixel((2, 5)), RED, atol=20)
    np.testing.assert_allclose(decoded.getpixel((17, 5)), WHITE, atol=20)


def test_grey_becomes_rgb_with_equal_channels() -> None:
    decoded = decode_picture(as_file(Image.new("L", (10, 10), 77), "PNG"))
    assert decoded.getpixel((3, 3)) == (77, 77, 77)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(file_format: str) -> None:
    grey = np.full((10, 12), 0x4D12, dtype=np.uint16)
    grey[:, 6:] = 0xFFFF
    decoded = decode_picture(as_file(Image.fromarray(grey), file_format))
    assert (decoded.getpixel((0, 0)), decoded.getpixel((11, 9))) == ((0x4D,) * 3, WHITE)


def test_float_grey_from_zero_to_one_is_scaled() -> None:
    decoded = decode_picture(as_file(Image.fromarray(np.full((10, 10), 0.5, dtype=np.float32)), "TIFF"))
    assert decoded.getpixel((0, 0)) == (127, 127, 127)


def test_black_and_white_becomes_rgb() -> None:
    assert decode_picture(as_file(half_red("1"), "PNG")).getpixel((17, 5)) == WHITE


def test_a_palette_is_looked_up() -> None:
    decoded = decode_picture(as_file(half_red().quantize(4), "PNG"))
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(half_red()))


def test_a_transparent_palette_entry_becomes_white() -> None:
    palette = half_red().quantize(4)
    red_index = palette.getpixel((2, 5))
    decoded = decode_picture(as_file(palette, "PNG", transparency=red_index))
    np.testing.assert_array_equal(np.asarray(decoded), 255)


def test_a_transparent_colour_of_an_rgb_png_becomes_white() -> None:
    np.testing.assert_array_equal(np.asarray(decode_picture(as_file(half_red(), "PNG", transparency=RED))), 255)


@pytest.mark.parametrize(("alpha", "expected"), [(0, WHITE), (255, RED), (51, (255, 204, 204))])
def test_alpha_is_laid_over_white(alpha: int, expected: tuple[int, int, int]) -> None:
    decoded = decode_picture(as_file(Image.new("RGBA", (10, 10), (*RED, alpha)), "PNG"))
    assert decoded.getpixel((5, 5)) == expected


def test_grey_with_alpha_is_laid_over_white() -> None:
    decoded = decode_picture(as_file(Image.new("LA", (10, 10), (0, 0)), "PNG"))
    assert decoded.getpixel((5, 5)) == WHITE


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(file_format: str) -> None:
    frames = [Image.new("RGB", (12, 10), color) for color in (RED, (0, 0, 255), (0, 255, 0))]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = as_file(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert decode_picture(data).getpixel((5, 5)) == RED


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_orientation_is_honoured(file_format: str, orientation: int, undo: Image.Transpose | None) -> None:
    upright = half_red()
    upright.paste((0, 0, 255), (0, 0, 5, 5))  # no symmetry left
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(
        file_format, {}
    )
    decoded = decode_picture(as_file(stored, file_format, exif=exif, **options))
    assert decoded.size == (20, 10)
    np.testing.assert_allclose(np.asarray(decoded), np.asarray(upright), atol=60 if file_format == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 77, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_file(half_red(), "JPEG", quality=95, subsampling=0, exif=exif)
    np.testing.assert_allclose(np.asarray(decode_picture(data)), np.asarray(half_red()), atol=20)


EXIF_AT, EXIF_LENGTH = 24, 76
"""Where Pillow puts EXIF in the JPEG below: "Exif", two zeros, a TIFF header of 8 bytes, 2 entries of 12, a text."""


def with_changed_exif(*changes: tuple[int, int]) -> bytes:
    """A JPEG that says it lies on its side, with some bytes of its EXIF changed: (place, value)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "x" * 30
    data = bytearray(as_file(half_red(), "JPEG", quality=95, subsampling=0, exif=exif))
    assert data[EXIF_AT : EXIF_AT + 4] == b"Exif"
    for place, value in changes:
        data[EXIF_AT + place] = value
    return bytes(data)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([], id="nothing"),
        pytest.param([(17, 10), (45, 206)], id="a text under another name that is no ASCII"),
        pytest.param([(17, 26), (46, 0)], id="a text where a number should stand"),
    ],
)
def test_exif_that_is_broken_beside_the_orientation_still_turns_the_picture(changes: list[tuple[int, int]]) -> None:
    upright = half_red().transpose(Image.Transpose.ROTATE_270)
    decoded = decode_picture(with_changed_exif(*changes))
    assert decoded.size == (10, 20)
    np.testing.assert_allclose(np.asarray(decoded), np.asarray(upright), atol=20)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([(0, 0)], id="not called Exif"),
        pytest.param([(6, 0)], id="no byte order"),
        pytest.param([(13, 255)], id="the directory lies beyond the end"),
        pytest.param([(31, 2)], id="the orientation is a text"),
        pytest.param([(32, 255)], id="very many orientations"),
    ],
)
def test_exif_that_cannot_be_read_turns_nothing_and_is_no_error(changes: list[tuple[int, int]]) -> None:
    decoded = decode_picture(with_changed_exif(*changes))
    assert decoded.size == (20, 10)
    np.testing.assert_allclose(np.asarray(decoded), np.asarray(half_red()), atol=20)


def test_no_byte_of_exif_makes_a_picture_unreadable() -> None:
    for place in range(EXIF_LENGTH):
        for value in (0, 1, 10, 26, 127, 206, 255):
            assert sorted(decode_picture(with_changed_exif((place, value))).size) == [10, 20]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_whatever_is_broken_in_a_file_is_a_refusal_of_ours(file_format: str) -> None:
    data = as_file(half_red(), file_format)
    random = np.random.default_rng(0)
    for _ in range(200):
        changed = bytearray(data)
        for place in random.integers(0, min(len(data), 200), 3):
            changed[place] = random.integers(0, 256)
        with contextlib.suppress(PolyheadError):
            assert decode_picture(bytes(changed)).mode == "RGB"


@pytest.mark.parametrize("error", [struct.error("x"), KeyError("x"), IndexError("x"), SyntaxError("x"), MemoryError()])
def test_whatever_pillow_raises_over_pixels_is_a_broken_picture(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise error

    data = as_file(half_red(), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(InvalidImageError, match="the PNG file is broken or cut short"):
        decode_picture(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "the body is empty", id="empty"),
        pytest.param(b"hello, this is no picture", "25 bytes beginning with b'hello, this '", id="text"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image that can be read", id="svg"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "no image that can be read", id="only a PNG signature"),
        pytest.param(b"\xff\xd8\xff\xe0", "no image that can be read", id="only a JPEG signature"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n", "no image", id="EPS"),
        pytest.param(as_file(half_red(), "ICNS"), "no image that can be read", id="a format that stays shut"),
        pytest.param(as_file(half_red(), "PDF"), "no image that can be read", id="PDF"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidImageError) as refused:
        decode_picture(data)
    assert words in refused.value.detail
    assert "send a whole JPEG" in refused.value.remedy


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "TIFF", "PPM", "GIF"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_file_that_was_cut_short_is_refused(
    file_format: str, part: float, draw_picture: Callable[..., Image.Image]
) -> None:
    data = as_file(draw_picture(80, 100), file_format)
    with pytest.raises(InvalidImageError):
        decode_picture(data[: int(part * len(data))])


def test_a_truncated_jpeg_is_told_as_such(draw_picture: Callable[..., Image.Image]) -> None:
    data = as_file(draw_picture(80, 100), "JPEG")
    with pytest.raises(InvalidImageError, match="the JPEG file is broken or cut short"):
        decode_picture(data[: len(data) // 2])


@pytest.mark.usefixtures("no_decoding")
def test_a_bomb_is_refused_from_its_header() -> None:
    bomb = png_of_zeros(30_000, 30_000)
    assert len(bomb) < 100_000
    with pytest.raises(TooLargeError, match="900000000 pixels"):
        decode_picture(bomb)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("size", [(8000, 7000), (12_000, 10_000)])
def test_more_pixels_than_are_taken_are_refused_from_the_header(size: tuple[int, int]) -> None:
    width, height = size
    words = rf"{width} x {height} pixels are {width * height:,}, more than the 50,000,000 taken here"
    with pytest.raises(TooLargeError, match=words) as refused:
        decode_picture(png_of_zeros(*size))
    assert "scale the picture down" in refused.value.remedy


def test_the_bomb_limit_of_pillow_is_left_to_the_program_around() -> None:
    assert Image.MAX_IMAGE_PIXELS == 1024 * 1024 * 1024 // 4 // 3


@pytest.mark.parametrize("file_format", ["GIF", "TIFF", "WEBP"])
def test_a_bomb_of_a_format_that_pillow_measures_itself_is_too_large(file_format: str) -> None:
    data = as_file(Image.new("L", (20, 20)), file_format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(TooLargeError, match="400 pixels"):
            decode_picture(data)


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (7, 100)])
def test_a_picture_under_the_least_side_is_refused_from_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(UnusableImageError, match=f"{size[0]} x {size[1]} pixels: the shorter side is under 8"):
        decode_picture(png_of_zeros(*size))


@pytest.mark.usefixtures("no_decoding")
@pytest.mark.parametrize("size", [(8, 257), (257, 8), (10, 20_000)])
def test_a_picture_that_is_too_thin_is_refused_from_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(UnusableImageError, match="one side is more than 32 times the other"):
        decode_picture(png_of_zeros(*size))


def test_the_least_side_at_the_greatest_aspect_ratio_is_still_taken() -> None:
    data = as_file(Image.new("RGB", (MIN_SIDE * MAX_ASPECT_RATIO, MIN_SIDE)), "PNG")
    assert decode_picture(data).size == (256, 8)


def test_as_many_pixels_as_are_allowed_are_taken_and_one_row_more_is_not() -> None:
    assert decode_picture(as_file(Image.new("L", (20, 30)), "PNG"), max_pixels=600).size == (20, 30)
    with pytest.raises(TooLargeError, match="more than the 600 taken here"):
        decode_picture(as_file(Image.new("L", (20, 31)), "PNG"), max_pixels=600)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"text", 400),
        (as_file(half_red(), "JPEG")[:-200], 400),
        (png_of_zeros(30_000, 30_000), 413),
        (png_of_zeros(1, 1), 422),
        (png_of_zeros(1, 20_000), 422),
    ],
)
def test_every_refusal_has_a_status_a_title_and_a_remedy(data: bytes, status: int) -> None:
    with pytest.raises(PolyheadError) as refused:
        decode_picture(data)
    problem = refused.value.problem()
    assert problem["status"] == status
    assert all(problem[field] for field in ("title", "detail", "remedy"))
