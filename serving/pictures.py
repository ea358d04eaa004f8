"""From a file's bytes to an upright RGB picture, refusing from the header what should never be decoded."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import ExifTags, Image

from serving.errors import InvalidImageError, TooLargeError, UnusableImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read; everything else that Pillow could open stays shut."""

MIN_SIDE = 8
"""Pixels; a picture with a shorter side holds nothing to see."""

MAX_ASPECT_RATIO = 32
"""Longer side to shorter; a thinner picture would be less than a patch wide in the network."""

warnings.filterwarnings("ignore", module="PIL")  # of odd but readable metadata; nobody would read it here

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what undoes it; 1 is upright."""

_SIZE_REMEDY = "scale the picture down before sending it; results would not get finer"
_FORMAT_REMEDY = "send a whole JPEG, PNG, WebP, GIF, BMP or TIFF file as the body"


MAX_PIXELS = 50_000_000
"""Default of `decode_picture`: beyond it the header alone decides."""


def decode_picture(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture; of an animation the first frame.

    Args:
        data: the file.
        max_pixels: width times height beyond which the header alone decides.

    Returns:
        RGB, 8 bits, turned upright as its EXIF orientation says, transparency laid over white, 16-bit grey scaled to 8.

    Raises:
        InvalidImageError: empty, not a picture, or broken.
        TooLargeError: more than `max_pixels`.
        UnusableImageError: too small or too thin.
    """
    if not data:
        raise InvalidImageError("the body is empty", remedy=_FORMAT_REMEDY)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLargeError(f"{error}", remedy=_SIZE_REMEDY) from None
    except Exception:  # noqa: BLE001  # Pillow's plug-ins raise what they like on a broken file
        raise InvalidImageError(
            f"{len(data)} bytes beginning with {data[:12]!r} are no image that can be read", remedy=_FORMAT_REMEDY
        ) from None
    _check_size(image.size, max_pixels)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except Exception as error:  # noqa: BLE001  # as above
        raise InvalidImageError(
            f"the {image.format} file is broken or cut short: {error}", remedy=_FORMAT_REMEDY
        ) from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001  # EXIF that can't be read turns nothing; the picture itself is good
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise TooLargeError(
            f"{width} x {height} pixels are {width * height:,}, more than the {max_pixels:,} taken here",
            remedy=_SIZE_REMEDY,
        )
    if min(size) < MIN_SIDE:
        raise UnusableImageError(
            f"{width} x {height} pixels: the shorter side is under {MIN_SIDE}", remedy="send a larger picture"
        )
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise UnusableImageError(
            f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other",
            remedy="cut the picture into pieces and send each",
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        grey = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        grey_f = np.asarray(image)
        return Image.fromarray(np.clip(grey_f * (255 if grey_f.max() <= 1 else 1), 0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
