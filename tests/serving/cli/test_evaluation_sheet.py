"""The sheet of pictures: where things stand, in whose colours, and what is written below."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from decoders.labels import LabelSet
from decoders.results import ClassificationResult, ClassScore, DepthResult, PanopticResult, Segment
from serving.answers.render import overlay_png
from serving.cli.evaluation_sheet import Column, Row, describe, draw_sheet


@pytest.fixture
def picture(draw_picture: Callable[..., Image.Image]) -> Image.Image:
    """As wide as a column, so that nothing is scaled."""
    return draw_picture(200, 320)


@pytest.fixture
def panoptic() -> PanopticResult:
    segments = np.zeros((200, 320), np.int32)
    segments[50:150, 40:200] = 1
    segments[:30] = 2
    big, small = (
        Segment(i, label, name, thing, 0.5 * i, area, (0, 0, 9, 9))
        for i, label, name, thing, area in ((1, 0, "cat", True, 16000), (2, 3, "sky", False, 9600))
    )
    return PanopticResult(segments, (small, big))


def cell(sheet: Image.Image, column: int, height: int = 200) -> np.ndarray:
    left, top = 8 + 328 * column, 26
    return np.asarray(sheet)[top : top + height, left : left + 320]


def test_a_row_shows_the_input_and_every_result_as_clients_see_it(
    picture: Image.Image, panoptic: PanopticResult, label_set: LabelSet
) -> None:
    column = Column(panoptic, label_set, ("PQ 50",))
    sheet = draw_sheet([Row("a.jpg", picture, (column, column))], ["input", "truth", "demo"])
    with Image.open(io.BytesIO(overlay_png(panoptic, picture, label_set))) as overlay:
        assert (cell(sheet, 1) == np.asarray(overlay.convert("RGB"))).all()
    assert (cell(sheet, 0) == np.asarray(picture)).all()
    assert (cell(sheet, 2) == cell(sheet, 1)).all()


def test_unknown_depth_is_black(picture: Image.Image) -> None:
    depth = np.linspace(1, 4, 200 * 320, dtype=np.float32).reshape(200, 320)
    depth[:50] = np.nan
    sheet = draw_sheet([Row("a.jpg", picture, (Column(DepthResult(depth), None, ()),))], ["input", "truth"])
    assert (cell(sheet, 1)[:50] == 0).all()
    assert (cell(sheet, 1)[60:].max(axis=-1) > 20).all()


def test_a_result_that_is_no_picture_is_told_in_words(picture: Image.Image, label_set: LabelSet) -> None:
    result = ClassificationResult((ClassScore(0, "cat", 0.75), ClassScore(1, "cup", 0.25)))
    sheet = draw_sheet([Row("a.jpg", picture, (Column(result, label_set, describe(result)),))], ["input", "demo"])
    assert describe(result) == ("cat 0.75, cup 0.25",)
    assert (cell(sheet, 1) == 255).mean() > 0.9  # white, with a line of text
    assert (np.asarray(sheet)[26:80, 336:] < 128).any()


def test_segments_are_told_largest_first_and_truth_without_scores(panoptic: PanopticResult) -> None:
    assert describe(panoptic) == ("cat 0.50, sky 1.00",)
    assert describe(panoptic, with_scores=False) == ("cat, sky",)


def test_words_end_where_their_column_ends(picture: Image.Image, label_set: LabelSet) -> None:
    rows = [Row("a very long name " * 20, picture, (Column(None, label_set, ("short",)),))]
    sheet = np.asarray(draw_sheet(rows, ["input", "truth"]))
    assert (sheet[226:, 328:336] == 255).all()  # the gap between the columns stays white
