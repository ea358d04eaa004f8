"""From a file's bytes to an upright RGB picture, refusing from the header what should never be decoded."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from serving.errors import InvalidImageError, TooLargeError, UnusableImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What is read; everything else that Pillow could open stays shut."""

MIN_SIDE = 8
"""Pixels; a picture with a shorter side holds nothing to see."""

MAX_ASPECT_RATIO = 32
"""Longer side to shorter; a thinner picture would be less than a patch wide in the network."""

Image.MAX_IMAGE_PIXELS = None  # Pillow's own guard is a warning and a fixed number; ours is `max_pixels`, below

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
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise InvalidImageError(
            f"{len(data)} bytes beginning with {data[:12]!r} are no image that can be read", remedy=_FORMAT_REMEDY
        ) from None
    _check_size(image.size, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd but readable metadata; nobody would read it here
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise InvalidImageError(
            f"the {image.format} file is broken or cut short: {error}", remedy=_FORMAT_REMEDY
        ) from None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise TooLargeError(
            f"{width} x {height} pixels are {width * height:,}, more than the {max_pixels:,} taken here",
            remedy="scale the picture down before sending it; results would not get finer",
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
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(grey >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        grey_f = np.asarray(image)
        return Image.fromarray(np.clip(grey_f * (255 if grey_f.max() <= 1 else 1), 0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
