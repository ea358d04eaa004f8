"""Rendering: the JSON contract field for field, and images that decode back to what they were made from."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.draw import polygon2mask

from decoders.labels import LabelSet
from decoders.results import DepthResult, PanopticResult, Result, Segment
from serving.errors import HeadFailedError
from serving.render import (
    depth_image,
    overlay_png,
    prediction_json,
    prediction_npz,
    result_json,
    result_png,
    segment_colors,
)
from serving.types import Prediction, Timing

HEIGHT, WIDTH = 40, 60


def blob() -> NDArray[np.bool_]:
    """A disc with a bay, touching no edge."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    disc = (rows - 18) ** 2 + (columns - 25) ** 2 < 15**2
    return disc & ~((abs(rows - 18) < 3) & (columns > 25))


@pytest.fixture
def panoptic() -> PanopticResult:
    """A cat (1) over road (2); the right ten columns are void."""
    segment_map = np.full((HEIGHT, WIDTH), 2, dtype=np.int32)
    segment_map[blob()] = 1
    segment_map[:, 50:] = 0
    return PanopticResult(
        segment_map,
        (
            Segment(1, 0, "cat", True, 0.9, int(blob().sum()), (11, 4, 29, 29)),
            Segment(2, 4, "road", False, 0.8, 2000 - int(blob().sum()), (0, 0, 50, 40)),
        ),
    )


@pytest.fixture
def depth() -> DepthResult:
    """From 0.5 m at the left to 70 m at the right."""
    row = np.linspace(0.5, 70, WIDTH, dtype=np.float32)
    return DepthResult(np.repeat(row[None], HEIGHT, axis=0))


@pytest.fixture
def prediction(panoptic: PanopticResult, depth: DepthResult) -> Prediction:
    timing = Timing(
        queue_ms=1.23456, decode_ms=2, preprocess_ms=3, encoder_ms=4, heads_ms={"panoptic": 5.55555, "depth": 6},
        postprocess_ms=7, total_ms=30, encoder_passes=1, batch_size=2,
    )  # fmt: skip
    errors = {"edges": HeadFailedError("head 'edges' failed: RuntimeError: broken", remedy="report it")}
    return Prediction((80, 120), (HEIGHT, WIDTH), {"panoptic": panoptic, "depth": depth}, errors, timing)


def pixels(png: bytes) -> NDArray[Any]:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image)


def as_json(result: Result, masks: Any = "rle") -> dict[str, Any]:
    """A result as a client reads it."""
    decoded: dict[str, Any] = json.loads(json.dumps(result_json(result, masks)))
    return decoded


def test_the_answer_has_the_fields_of_the_contract(prediction: Prediction) -> None:
    answer = json.loads(json.dumps(prediction_json(prediction, request_id="r1", bundle="tiny", masks="none")))
    assert answer.keys() == {"request_id", "bundle", "image", "results", "errors", "timing"}
    assert (answer["request_id"], answer["bundle"]) == ("r1", "tiny")
    assert answer["image"] == {"height": 80, "width": 120}
    assert answer["results"].keys() == {"panoptic", "depth"}
    assert answer["errors"] == {
        "edges": {
            "type": "urn:polyhead:problem:head-failed",
            "title": "Head failed",
            "status": 500,
            "detail": "head 'edges' failed: RuntimeError: broken",
            "remedy": "report it",
        }
    }
    assert answer["timing"] == {
        "queue_ms": 1.235,
        "decode_ms": 2,
        "preprocess_ms": 3,
        "encoder_ms": 4,
        "heads_ms": {"panoptic": 5.556, "depth": 6},
        "postprocess_ms": 7,
        "total_ms": 30,
        "encoder_passes": 1,
        "batch_size": 2,
    }


def test_a_panoptic_segment_has_the_fields_of_the_contract(panoptic: PanopticResult) -> None:
    cat = as_json(panoptic)["segments"][0]
    assert cat.pop("rle").keys() == {"size", "counts"}
    assert cat == {
        "segment_id": 1,
        "label_id": 0,
        "label": "cat",
        "is_thing": True,
        "score": 0.9,
        "area": int(blob().sum()),
        "bbox": [11, 4, 29, 29],
    }


def test_segments_keep_their_order(panoptic: PanopticResult) -> None:
    assert [segment["label"] for segment in as_json(panoptic)["segments"]] == ["cat", "road"]


def test_an_rle_decodes_back_to_the_mask(panoptic: PanopticResult) -> None:
    for segment in as_json(panoptic)["segments"]:
        assert segment["rle"]["size"] == [HEIGHT, WIDTH]
        mask = coco_mask.decode(segment["rle"])
        np.testing.assert_array_equal(mask.astype(bool), panoptic.segment_map == segment["segment_id"])


def test_polygons_cover_about_the_mask(panoptic: PanopticResult) -> None:
    cat = as_json(panoptic, "polygon")["segments"][0]
    assert "rle" not in cat
    assert len(cat["polygons"]) == 1
    outline = np.array(cat["polygons"][0]).reshape(-1, 2)
    drawn = polygon2mask((HEIGHT, WIDTH), outline[:, ::-1] - 0.5)  # pixel centres, row first
    assert (drawn & blob()).sum() / (drawn | blob()).sum() > 0.9


def test_coco_reads_the_polygons_as_about_the_mask(panoptic: PanopticResult) -> None:
    cat = as_json(panoptic, "polygon")["segments"][0]
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(cat["polygons"], HEIGHT, WIDTH))).astype(bool)
    assert (drawn & blob()).sum() / (drawn | blob()).sum() > 0.9


def test_polygons_of_a_rectangle_run_along_its_pixel_edges() -> None:
    segment_map = np.zeros((20, 30), dtype=np.int32)
    segment_map[5:15, 0:10] = 1  # touches the left edge
    result = PanopticResult(segment_map, (Segment(1, 0, "cat", True, 1.0, 100, (0, 5, 10, 10)),))
    outline = np.array(as_json(result, "polygon")["segments"][0]["polygons"][0]).reshape(-1, 2)
    assert outline.min(axis=0).tolist() == [0, 5]
    assert outline.max(axis=0).tolist() == [10, 15]


def test_a_segment_in_two_parts_has_two_polygons() -> None:
    segment_map = np.zeros((20, 30), dtype=np.int32)
    segment_map[2:8, 2:8] = segment_map[12:18, 20:28] = 1
    result = PanopticResult(segment_map, (Segment(1, 0, "cat", True, 1.0, 84, (2, 2, 26, 16)),))
    assert len(as_json(result, "polygon")["segments"][0]["polygons"]) == 2


def test_masks_are_left_out_on_request(panoptic: PanopticResult) -> None:
    for segment in as_json(panoptic, "none")["segments"]:
        assert segment.keys().isdisjoint({"rle", "polygons"})


def test_a_picture_without_segments_has_an_empty_list() -> None:
    assert as_json(PanopticResult(np.zeros((4, 4), np.int32), ())) == {"segments": []}


def test_depth_has_the_fields_of_the_contract_and_decodes_to_millimetres() -> None:
    depth_m = np.array([[0.5, 1.2344], [3.9996, 9.0]], dtype=np.float32)
    answer = as_json(DepthResult(depth_m))
    png16 = pixels(base64.b64decode(answer.pop("png16")))
    assert answer == {"unit": "m", "min": 0.5, "max": 9.0, "scale": 0.001}
    assert png16.tolist() == [[500, 1234], [4000, 9000]]
    np.testing.assert_allclose(png16 * answer["scale"], depth_m, atol=0.0005)


def test_depth_beyond_sixteen_bits_saturates() -> None:
    image = depth_image(DepthResult(np.array([[65.535, 65.536, 900.0]], dtype=np.float32)))
    assert np.asarray(image).tolist() == [[65535, 65535, 65535]]


def test_the_panoptic_png_has_the_ids_in_coco_s_colour_code() -> None:
    ids = np.array([[0, 1, 255], [256, 70_000, 300]], dtype=np.int32)
    rgb = pixels(result_png(PanopticResult(ids, ()))).astype(np.int64)
    assert rgb.shape == (2, 3, 3)
    np.testing.assert_array_equal(rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2], ids)


def test_the_depth_png_is_sixteen_bit_millimetres(depth: DepthResult) -> None:
    image = Image.open(io.BytesIO(result_png(depth)))
    assert image.mode == "I;16"
    expected = np.minimum(np.rint(depth.depth_m.astype(np.float64) * 1000), 65535)
    np.testing.assert_allclose(np.asarray(image), expected, atol=1)


def test_the_archive_holds_every_array_and_the_segments(prediction: Prediction, panoptic: PanopticResult) -> None:
    with np.load(io.BytesIO(prediction_npz(prediction)), allow_pickle=False) as archive:
        assert set(archive) == {"panoptic/segment_map", "panoptic/segments", "depth/depth_m"}
        np.testing.assert_array_equal(archive["panoptic/segment_map"], panoptic.segment_map)
        assert archive["depth/depth_m"].dtype == np.float32
        segments = json.loads(str(archive["panoptic/segments"]))
    assert [segment["label"] for segment in segments] == ["cat", "road"]


def test_an_overlay_has_the_size_of_the_results(panoptic: PanopticResult, label_set: LabelSet) -> None:
    picture = Image.new("RGB", (120, 80), (100, 100, 100))
    assert pixels(overlay_png(panoptic, picture, label_set)).shape == (HEIGHT, WIDTH, 3)


def test_an_overlay_colours_segments_and_leaves_void_as_it_was(panoptic: PanopticResult, label_set: LabelSet) -> None:
    drawn = pixels(overlay_png(panoptic, Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100)), label_set))
    assert drawn[20, 55].tolist() == [100, 100, 100]
    road = 0.45 * 100 + 0.55 * np.array(label_set[4].color)
    np.testing.assert_allclose(drawn[38, 2], road, atol=1)
    assert (drawn[:, 50] == 255).all()  # the edge between road and void


def test_a_depth_overlay_tells_near_from_far(depth: DepthResult) -> None:
    drawn = pixels(overlay_png(depth, Image.new("RGB", (WIDTH, HEIGHT)), None)).astype(int)
    assert drawn.shape == (HEIGHT, WIDTH, 3)
    near, far, farthest = drawn[20, 3], drawn[20, -8], drawn[20, -1]
    assert near[0] > 2 * near[2]  # warm
    assert far[2] > 2 * far[0]  # cold
    assert farthest.max() < 40  # where Turbo's polynomial ends


def test_a_few_odd_pixels_do_not_take_the_colours_from_the_others(depth: DepthResult) -> None:
    plain = pixels(overlay_png(depth, Image.new("RGB", (WIDTH, HEIGHT)), None)).astype(int)
    depth.depth_m[0, 0] = 1e6
    odd = pixels(overlay_png(depth, Image.new("RGB", (WIDTH, HEIGHT)), None)).astype(int)
    assert np.abs(odd[1:] - plain[1:]).max() < 30


def test_an_even_depth_is_drawn_without_complaint() -> None:
    drawn = pixels(overlay_png(DepthResult(np.full((8, 8), 2.0, np.float32)), Image.new("RGB", (8, 8)), None))
    assert (drawn == drawn[0, 0]).all()


def test_segments_of_one_label_are_told_apart_by_their_shade(label_set: LabelSet) -> None:
    segments = [Segment(i, 2, "car", True, 1.0, 1, (0, 0, 1, 1)) for i in (1, 2, 3)]
    colors = segment_colors(segments, label_set)
    assert colors.shape == (4, 3)
    assert colors[1].tolist() == list(label_set[2].color)
    assert len({tuple(color) for color in colors}) == 4
