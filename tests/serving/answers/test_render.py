"""Rendering: the JSON contract field for field, and images that decode back to what they were made from."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.draw import polygon2mask

from decoders.depth import DepthDecoder
from decoders.embedding import DenseEmbeddingDecoder, EmbeddingDecoder
from decoders.instance import InstanceDecoder
from decoders.labels import Label, LabelSet
from decoders.masks import encode
from decoders.panoptic import PanopticDecoder
from decoders.prototypes import PrototypeDecoder
from decoders.results import (
    ClassificationResult,
    ClassScore,
    DenseEmbeddingResult,
    DepthResult,
    EmbeddingResult,
    InstanceResult,
    PanopticResult,
    Result,
    Segment,
    SemanticResult,
)
from decoders.semantic import SemanticDecoder
from serving.answers.render import (
    PICTURE_KINDS,
    depth_image,
    instance_map,
    kind_of,
    overlay_png,
    prediction_json,
    prediction_npz,
    result_json,
    result_png,
    segment_colors,
)
from serving.errors import HeadFailedError, InvalidOptionError
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
def semantic() -> SemanticResult:
    """Road (label 4) with a car (label 2) on it; the right ten columns are void."""
    segment_map = np.full((HEIGHT, WIDTH), 5, dtype=np.int32)
    segment_map[10:20, 5:25] = 3
    segment_map[:, 50:] = 0
    return SemanticResult(
        segment_map,
        (
            Segment(5, 4, "road", False, 0.75, 1800, (0, 0, 50, 40)),
            Segment(3, 2, "car", True, 0.5, 200, (5, 10, 20, 10)),
        ),
    )


def rectangle(top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


CATS = (rectangle(10, 10, 20, 30), rectangle(5, 20, 30, 50), rectangle(0, 0, 3, 3))
"""The first two overlap."""


def instances_of(masks: tuple[NDArray[np.bool_], ...], **fields: Any) -> InstanceResult:
    """Cats, best first."""
    rles = tuple(encode(mask) for mask in masks)
    given: dict[str, Any] = {"label_id": 0, "label": "cat", "is_thing": True} | fields
    instances = (
        Segment(segment_id=i, score=1 / i, area=rle.area(), bbox=rle.bbox(), **given) for i, rle in enumerate(rles, 1)
    )
    return InstanceResult(masks[0].shape, tuple(instances), rles)  # type: ignore[arg-type]  # it has two sides


@pytest.fixture
def instances() -> InstanceResult:
    return instances_of(CATS)


CLASSIFICATION = ClassificationResult((ClassScore(2, "car", 0.75), ClassScore(0, "cat", 0.125)))
EMBEDDING = EmbeddingResult(np.array([0.1, -2.5e-7, 3.0], dtype=np.float32))
DENSE = DenseEmbeddingResult(np.array([[[1.0, -2.0], [0.5, 0.0], [0.25, 100.0]]], dtype=np.float32))
ONE_OF_EACH = [
    pytest.param(PanopticResult(np.zeros((4, 4), np.int32), ()), PanopticDecoder, id="panoptic"),
    pytest.param(SemanticResult(np.zeros((4, 4), np.int32), ()), SemanticDecoder, id="semantic"),
    pytest.param(InstanceResult((4, 4), (), ()), InstanceDecoder, id="instance"),
    pytest.param(DepthResult(np.ones((4, 4), np.float32)), DepthDecoder, id="depth"),
    pytest.param(CLASSIFICATION, PrototypeDecoder, id="classification"),
    pytest.param(EMBEDDING, EmbeddingDecoder, id="embedding"),
    pytest.param(DENSE, DenseEmbeddingDecoder, id="dense embedding"),
]


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


@pytest.mark.parametrize(("result", "decoder"), ONE_OF_EACH)
def test_a_result_says_its_kind_as_the_heads_that_give_it_do(result: Result, decoder: Any) -> None:
    assert as_json(result)["kind"] == kind_of(result) == decoder.kind


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


def test_polygons_have_points_at_corners_only() -> None:
    segment_map = np.zeros((20, 30), dtype=np.int32)
    segment_map[5:15, 0:10] = 1
    result = PanopticResult(segment_map, (Segment(1, 0, "cat", True, 1.0, 100, (0, 5, 10, 10)),))
    (outline,) = as_json(result, "polygon")["segments"][0]["polygons"]
    assert len(outline) == 2 * 8  # every corner of the square is cut


def test_a_segment_in_two_parts_has_two_polygons() -> None:
    segment_map = np.zeros((20, 30), dtype=np.int32)
    segment_map[2:8, 2:8] = segment_map[12:18, 20:28] = 1
    result = PanopticResult(segment_map, (Segment(1, 0, "cat", True, 1.0, 84, (2, 2, 26, 16)),))
    assert len(as_json(result, "polygon")["segments"][0]["polygons"]) == 2


def test_masks_are_left_out_on_request(panoptic: PanopticResult) -> None:
    for segment in as_json(panoptic, "none")["segments"]:
        assert segment.keys().isdisjoint({"rle", "polygons"})


def test_a_picture_without_segments_has_an_empty_list() -> None:
    nothing = np.zeros((4, 4), np.int32)
    assert as_json(PanopticResult(nothing, ())) == {"kind": "panoptic", "segments": []}
    assert as_json(SemanticResult(nothing, ())) == {"kind": "semantic", "segments": []}
    assert as_json(InstanceResult((4, 4), (), ())) == {"kind": "instance", "instances": []}


def test_a_semantic_answer_has_one_segment_per_class_whose_mask_is_where_the_map_has_it(
    semantic: SemanticResult,
) -> None:
    road, car = as_json(semantic)["segments"]
    assert [road["label"], car["label"]] == ["road", "car"]
    for item in (road, car):
        assert item["segment_id"] == item["label_id"] + 1
        np.testing.assert_array_equal(coco_mask.decode(item["rle"]), semantic.segment_map == item["segment_id"])


def test_an_instance_has_the_fields_of_a_segment(instances: InstanceResult) -> None:
    first, *others = as_json(instances)["instances"]
    assert len(others) == 2
    assert first.pop("rle") == {"size": [HEIGHT, WIDTH], "counts": instances.masks[0].counts}
    assert first == {
        "segment_id": 1,
        "label_id": 0,
        "label": "cat",
        "is_thing": True,
        "score": 1.0,
        "area": 200,
        "bbox": [10, 10, 20, 10],
    }


def test_overlapping_instances_keep_their_whole_masks(instances: InstanceResult) -> None:
    items = as_json(instances)["instances"]
    for item, mask in zip(items, CATS, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(item["rle"]), mask)


def test_polygons_of_an_instance_run_along_its_own_edges(instances: InstanceResult) -> None:
    for item, mask in zip(as_json(instances, "polygon")["instances"], CATS, strict=True):
        assert "rle" not in item
        (outline,) = item["polygons"]
        x, y, width, height = encode(mask).bbox()
        points = np.array(outline).reshape(-1, 2)
        assert [*points.min(axis=0), *points.max(axis=0)] == [x, y, x + width, y + height]


def test_polygons_of_a_random_mask_are_read_by_coco_as_about_that_mask() -> None:
    noise = np.random.default_rng(0).random((HEIGHT // 4, WIDTH // 4)) > 0.6
    mask = np.kron(noise, np.ones((4, 4))).astype(bool)
    (item,) = as_json(instances_of((mask,)), "polygon")["instances"]
    drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(item["polygons"], HEIGHT, WIDTH))).astype(bool)
    assert (drawn & mask).sum() / mask.sum() > 0.85  # corners are cut
    assert drawn.sum() < 1.4 * mask.sum()  # holes are filled


def test_an_empty_mask_has_no_polygon() -> None:
    (item,) = as_json(instances_of((np.zeros((HEIGHT, WIDTH), bool),)), "polygon")["instances"]
    assert item["polygons"] == []


def test_instances_come_without_masks_on_request(instances: InstanceResult) -> None:
    for item in as_json(instances, "none")["instances"]:
        assert item.keys().isdisjoint({"rle", "polygons"})


def test_a_track_is_told_only_where_there_is_one(instances: InstanceResult) -> None:
    assert all("track_id" not in item for item in as_json(instances)["instances"])
    tracked = as_json(instances_of(CATS, track_id=7))["instances"]
    assert [item["track_id"] for item in tracked] == [7, 7, 7]


def test_a_classification_has_its_classes_with_their_scores() -> None:
    assert as_json(CLASSIFICATION) == {
        "kind": "classification",
        "classes": [
            {"label_id": 2, "label": "car", "score": 0.75},
            {"label_id": 0, "label": "cat", "score": 0.125},
        ],
    }


def test_an_embedding_is_told_in_as_few_digits_as_its_numbers_need() -> None:
    assert as_json(EMBEDDING) == {"kind": "embedding", "dim": 3, "vector": [0.1, -2.5e-07, 3.0]}


def test_an_embedding_reads_back_as_the_very_same_float32() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint32)
    vector = bits.view(np.float32)
    vector = vector[np.isfinite(vector)]
    np.testing.assert_array_equal(np.array(as_json(EmbeddingResult(vector))["vector"], dtype=np.float32), vector)


def test_a_dense_embedding_is_little_endian_half_precision_row_by_row() -> None:
    answer = as_json(DENSE)
    data = base64.b64decode(answer.pop("vectors16"))
    assert answer == {"kind": "dense_embedding", "dim": 2, "grid": [1, 3]}
    assert data.hex(" ", 2) == "003c 00c0 0038 0000 0034 4056"  # 1, -2, 0.5, 0, 0.25, 100


def test_a_dense_embedding_beyond_half_precision_saturates() -> None:
    vectors = np.array([[[1e9, -np.inf, 65504.0]]], dtype=np.float32)
    data = base64.b64decode(as_json(DenseEmbeddingResult(vectors))["vectors16"])
    assert np.frombuffer(data, "<f2").tolist() == [65504, -65504, 65504]


def test_depth_has_the_fields_of_the_contract_and_decodes_to_millimetres() -> None:
    depth_m = np.array([[0.5, 1.2344], [3.9996, 9.0]], dtype=np.float32)
    answer = as_json(DepthResult(depth_m))
    png16 = pixels(base64.b64decode(answer.pop("png16")))
    assert answer == {"kind": "depth", "unit": "m", "min": 0.5, "max": 9.0, "scale": 0.001}
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


def labels_of(number: int) -> LabelSet:
    """So many labels, each in a colour of its own."""
    labels = (Label(i, f"label {i}", i % 2 == 0, (200 - i % 150, 20 + i % 90, i % 256)) for i in range(number))
    return LabelSet("many", tuple(labels))


@pytest.mark.parametrize(
    ("num_labels", "dtype", "void"),
    [(5, np.uint8, 255), (255, np.uint8, 255), (256, np.uint16, 65535), (1000, np.uint16, 65535)],
)
def test_the_semantic_png_has_label_ids_in_as_many_bits_as_its_label_set_needs(
    num_labels: int, dtype: Any, void: int
) -> None:
    for largest in (3, num_labels - 1):  # in the picture
        label_ids = np.array([[0, 1, largest], [-1, 2, -1]])
        image = pixels(result_png(SemanticResult((label_ids + 1).astype(np.int32), ()), labels_of(num_labels)))
        assert image.dtype == dtype
        np.testing.assert_array_equal(image, np.where(label_ids < 0, void, label_ids))


def test_without_a_label_set_the_largest_id_sets_the_bits_of_the_semantic_png() -> None:
    small, large = (SemanticResult(np.array([[0, top]], np.int32), ()) for top in (255, 256))
    assert pixels(result_png(small)).tolist() == [[255, 254]]
    assert pixels(result_png(large)).tolist() == [[65535, 255]]
    assert pixels(result_png(SemanticResult(np.zeros((1, 2), np.int32), ()))).tolist() == [[255, 255]]


def test_the_instance_png_has_ids_in_coco_s_colour_code_and_the_best_on_top(instances: InstanceResult) -> None:
    expected = np.zeros((HEIGHT, WIDTH), np.int32)
    for rank in (3, 2, 1):
        expected[CATS[rank - 1]] = rank
    assert expected[15, 25] == 1  # where the two overlap
    rgb = pixels(result_png(instances)).astype(np.int32)
    np.testing.assert_array_equal(rgb @ (1, 256, 65536), expected)
    np.testing.assert_array_equal(instance_map(instances), expected)


def test_more_instances_than_a_byte_counts_keep_their_ids() -> None:
    masks = tuple(np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) == i for i in range(300))
    rgb = pixels(result_png(instances_of(masks))).astype(np.int32)
    assert (rgb @ (1, 256, 65536)).ravel()[:301].tolist() == [*range(1, 301), 0]


@pytest.mark.parametrize(("result", "decoder"), ONE_OF_EACH)
def test_what_is_no_picture_is_refused_as_one_with_a_remedy(result: Result, decoder: Any, label_set: LabelSet) -> None:
    picture = Image.new("RGB", (4, 4))
    if kind_of(result) in PICTURE_KINDS:
        assert pixels(result_png(result)).shape[:2] == pixels(overlay_png(result, picture, label_set)).shape[:2]
        return
    for form, draw in (("png", lambda: result_png(result)), ("overlay", lambda: overlay_png(result, picture, None))):
        with pytest.raises(InvalidOptionError) as refused:
            draw()
        assert refused.value.detail == f"a result of kind '{kind_of(result)}' has no format={form}"
        assert refused.value.remedy == "ask with format=json or npz"


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


def test_the_archive_holds_results_of_every_kind(semantic: SemanticResult, instances: InstanceResult) -> None:
    results: dict[str, Result] = {"s": semantic, "i": instances, "c": CLASSIFICATION, "e": EMBEDDING, "d": DENSE}
    prediction = Prediction((80, 120), (HEIGHT, WIDTH), results, {}, Timing())
    with np.load(io.BytesIO(prediction_npz(prediction)), allow_pickle=False) as archive:
        arrays = dict(archive)
    assert arrays.keys() == {
        "s/segment_map", "s/segments", "i/masks", "i/instances", "c/classes", "e/vector", "d/vectors",
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["s/segment_map"], semantic.segment_map)
    assert json.loads(str(arrays["s/segments"])) == as_json(semantic, "none")["segments"]
    assert arrays["i/masks"].dtype == bool
    np.testing.assert_array_equal(arrays["i/masks"], np.stack(CATS))
    assert json.loads(str(arrays["i/instances"])) == as_json(instances, "none")["instances"]
    assert json.loads(str(arrays["c/classes"])) == as_json(CLASSIFICATION)["classes"]
    for name, given in (("e/vector", EMBEDDING.vector), ("d/vectors", DENSE.vectors)):
        assert arrays[name].dtype == np.float32
        np.testing.assert_array_equal(arrays[name], given)


def test_a_picture_without_instances_has_no_masks_in_the_archive() -> None:
    prediction = Prediction((8, 6), (8, 6), {"i": InstanceResult((8, 6), (), ())}, {}, Timing())
    with np.load(io.BytesIO(prediction_npz(prediction))) as archive:
        assert archive["i/masks"].shape == (0, 8, 6)


@pytest.mark.parametrize("render", ["json", "polygons", "png", "npz"])
def test_instances_are_never_all_unpacked_at_once(render: str) -> None:
    side, number = 256, 100
    square = np.kron([[1, 0], [0, 0]], np.ones((side // 2, side // 2))).astype(bool)
    result = instances_of(tuple(np.roll(square, k, axis=1) for k in range(number)))
    prediction = Prediction((side, side), (side, side), {"i": result}, {}, Timing())
    draw = {
        "json": lambda: result_json(result, "rle"),
        "polygons": lambda: result_json(result, "polygon"),
        "png": lambda: result_png(result),
        "npz": lambda: prediction_npz(prediction),
    }[render]
    tracemalloc.start()
    try:
        draw()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < number * side * side / 2  # bytes, half of all masks as bool


def test_an_overlay_has_the_size_of_the_results(panoptic: PanopticResult, label_set: LabelSet) -> None:
    picture = Image.new("RGB", (120, 80), (100, 100, 100))
    assert pixels(overlay_png(panoptic, picture, label_set)).shape == (HEIGHT, WIDTH, 3)


def blend(color: Any) -> NDArray[np.float64]:
    """A colour over the grey picture of the tests."""
    return 0.45 * 100 + 0.55 * np.asarray(color, dtype=np.float64)


def test_a_semantic_overlay_has_the_labels_colours(semantic: SemanticResult) -> None:
    labels = labels_of(5)
    drawn = pixels(overlay_png(semantic, Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100)), labels))
    np.testing.assert_allclose(drawn[15, 10], blend(labels[2].color), atol=1)
    np.testing.assert_allclose(drawn[30, 10], blend(labels[4].color), atol=1)
    assert drawn[20, 55].tolist() == [100, 100, 100]  # void
    assert (drawn[12:18, 5] == 255).all()  # the edge between car and road


def test_an_instance_overlay_has_the_best_on_top_in_shades_of_the_label(instances: InstanceResult) -> None:
    labels = labels_of(5)
    drawn = pixels(overlay_png(instances, Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100)), labels))
    np.testing.assert_allclose(drawn[15, 12], blend(labels[0].color), atol=1)
    np.testing.assert_array_equal(drawn[15, 25], drawn[15, 12])  # where the two overlap
    np.testing.assert_allclose(drawn[25, 40], blend(0.7 * np.array(labels[0].color)), atol=1)
    assert drawn[35, 55].tolist() == [100, 100, 100]  # nothing there
    assert (drawn[11:20, 30] == 255).all()  # the edge of the best, inside the other


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


def test_a_tracked_instance_keeps_its_shade_whatever_else_is_in_the_frame(label_set: LabelSet) -> None:
    one, two, three = (Segment(i, 2, "car", True, 1.0, 1, (0, 0, 1, 1), track_id=i) for i in (1, 2, 3))
    before = segment_colors([one, two, three], label_set)
    after = segment_colors([replace(three, segment_id=1)], label_set)
    assert after[1].tolist() == before[3].tolist()


def test_segment_ids_may_leave_gaps(label_set: LabelSet) -> None:
    colors = segment_colors([Segment(5, 4, "road", False, 1.0, 1, (0, 0, 1, 1))], label_set)
    assert colors.shape == (6, 3)
    assert colors[5].tolist() == list(label_set[4].color)
