"""A sheet of pictures for people: input, truth and answers side by side, a picture to a row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from decoders.labels import LabelSet
from decoders.results import (
    ClassificationResult,
    ClassScore,
    DepthResult,
    InstanceResult,
    PanopticResult,
    Result,
    Segment,
    SemanticResult,
)
from serving.answers.render import overlay_png

_WIDTH = 320
"""Of a picture on the sheet, pixels."""
_MOST_HEIGHT = 480
_GAP = 8
_LINE = 18
_FONT = ImageFont.load_default(13)


@dataclass(frozen=True)
class Column:
    """An answer to draw: a head's own, or the truth. `lines` stand below the picture."""

    result: Result | None
    label_set: LabelSet | None
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A picture, with its name, and what is shown beside it."""

    name: str
    picture: Image.Image
    columns: tuple[Column, ...]


def draw_sheet(rows: Sequence[Row], headings: Sequence[str]) -> Image.Image:
    """Draw rows of equal numbers of columns; `headings` stand above the pictures, the input's first."""
    drawn = [[_fitted(row.picture), *(_drawn(column, row.picture) for column in row.columns)] for row in rows]
    texts = [[(row.name,), *(column.lines for column in row.columns)] for row in rows]
    heights = [
        max(picture.height for picture in pictures) + _LINE * max(len(lines) for lines in below) + _GAP
        for pictures, below in zip(drawn, texts, strict=True)
    ]
    size = (_GAP + len(headings) * (_WIDTH + _GAP), _GAP + _LINE + sum(heights))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    lefts = [_GAP + number * (_WIDTH + _GAP) for number in range(len(headings))]
    for left, heading in zip(lefts, headings, strict=True):
        _write(pen, (left, _GAP // 2), heading)
    top = _GAP + _LINE
    for pictures, below, height in zip(drawn, texts, heights, strict=True):
        for left, picture, lines in zip(lefts, pictures, below, strict=True):
            sheet.paste(picture, (left, top))
            for number, line in enumerate(lines):
                _write(pen, (left, top + picture.height + number * _LINE), line)
        top += height
    return sheet


def describe(result: Result | None, *, with_scores: bool = True) -> tuple[str, ...]:
    """What the picture of a result doesn't tell: its largest or best classes, its range."""
    match result:
        case PanopticResult() | SemanticResult():
            largest_first = sorted(result.segments, key=lambda segment: -segment.area)
            told: Sequence[Segment | ClassScore] = largest_first
        case InstanceResult():
            told = result.instances
        case ClassificationResult():
            told = result.classes
        case DepthResult():
            return (f"{np.nanmin(result.depth_m):.2f} to {np.nanmax(result.depth_m):.2f} m",)
        case _:
            return ()
    return (", ".join(f"{each.label} {each.score:.2f}" if with_scores else each.label for each in told[:4]),)


def _drawn(column: Column, picture: Image.Image) -> Image.Image:
    result = column.result
    if result is None or isinstance(result, ClassificationResult):
        return Image.new("RGB", (_WIDTH, _LINE), "white")
    unknown = None
    if isinstance(result, DepthResult):  # unknown depth is drawn black
        unknown = ~np.isfinite(result.depth_m)
        farthest = np.nanmax(result.depth_m)
        result = DepthResult(np.where(unknown, farthest, result.depth_m))
    with Image.open(io.BytesIO(overlay_png(result, picture, column.label_set))) as image:
        pixels = np.array(image.convert("RGB"))
    if unknown is not None:
        pixels[unknown] = 0
    return _fitted(Image.fromarray(pixels))


def _fitted(picture: Image.Image) -> Image.Image:
    factor = min(_WIDTH / picture.width, _MOST_HEIGHT / picture.height)
    return picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    """One line, cut where the column ends."""
    while text and pen.textlength(text, _FONT) > _WIDTH:
        text = text[:-2] + "…"
    pen.text(place, text, "black", _FONT)
