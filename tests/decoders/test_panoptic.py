"""The panoptic merge: PMT's rules to the pixel, in bounded memory, and the result in the picture's own pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.measure import regionprops
from torch import Tensor
from torch.nn import functional as F

from decoders import panoptic_merge
from decoders.base import Decoder, PostprocessOptions
from decoders.labels import LabelSet
from decoders.panoptic import PanopticDecoder
from decoders.panoptic_merge import merge_panoptic
from decoders.pmt_checkpoints import load_pmt_decoder
from decoders.results import PanopticResult
from encoders.checkpoints import build_encoder
from encoders.geometry import FitGeometry, ImageGeometry
from encoders.preprocess import to_pixels
from encoders.vit import VisionTransformer

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]
MIB = 1 << 20


# Equal to the published evaluation


@pytest.mark.parametrize("image", range(3))
@pytest.mark.parametrize(
    ("case", "run"), [("post_panoptic", 0), *(("post_panoptic_variants", run) for run in range(4))]
)
def test_segments_and_maps_equal_pmt(read_golden: ReadGolden, case: str, run: int, image: int) -> None:
    facts, tensors = read_golden(case)
    expected = facts["runs"][run]
    geometry = FitGeometry(*facts["img_size"]).place(tuple(facts["image_sizes"][image]))
    assert list(geometry.scaled_size) == expected["scaled_sizes"][image]
    segment_map, segments = merge_panoptic(
        tensors["mask_logits"][image],
        tensors["class_logits"][image],
        geometry,
        stuff_ids=expected["stuff"],
        score_threshold=expected["mask_thresh"],
        overlap_threshold=expected["overlap_thresh"],
    )
    assert [[s.segment_id, s.label_id] for s in segments] == expected["segments_id_class"][image]
    wanted = tensors[f"run{run}.segment_map.{image}"]
    assert segment_map.dtype == torch.int32
    assert segment_map.shape == wanted.shape
    assert (segment_map != wanted).float().mean() <= 1e-4


@pytest.mark.parametrize("image", range(2))
@torch.no_grad()
def test_pictures_to_segments_equal_pmt(read_golden: ReadGolden, image: int) -> None:
    facts, tensors = read_golden("image_dinov3_tiny.e2e")
    config, expected = facts["config"], facts["tasks"]["panoptic"]
    encoder = build_encoder(read_golden("image_dinov3_tiny.encoder")[1], revision="golden", num_heads=config["heads"])
    decoder = load_pmt_decoder(read_golden("image_dinov3_tiny.ckpt")[1], encoder.spec, config["interaction"])
    picture = Image.fromarray(tensors[f"image{image}_u8"].permute(1, 2, 0).numpy())
    geometry = FitGeometry(*config["img_size"]).place((picture.height, picture.width))
    mask_logits, class_logits = decoder(encoder(to_pixels(picture, geometry), config["interaction"]))
    torch.testing.assert_close(mask_logits[0], tensors["mask_logits"][image], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(class_logits[0], tensors["class_logits"][image], atol=1e-4, rtol=0)
    segment_map, segments = merge_panoptic(mask_logits[0], class_logits[0], geometry, stuff_ids=expected["stuff"])
    assert [[s.segment_id, s.label_id] for s in segments] == expected["segments"][image]
    assert (segment_map != tensors[f"panoptic{image}.segment_map"]).float().mean() <= 1e-4
    labels = torch.tensor([s.label_id for s in segments] + [config["num_classes"]])
    assert (labels[segment_map] != tensors[f"panoptic{image}.class_map"]).float().mean() <= 1e-4


# Equal to a plain implementation


def merge_naively(
    mask_logits: Tensor,
    class_logits: Tensor,
    geometry: ImageGeometry,
    stuff_ids: frozenset[int],
    score_threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Section 6 of the PMT specification, word for word, with every query's map at full size at once.

    Returns:
        (segment map, -1 for void; (segment id, label id, query) of each segment).
    """
    scores, labels = class_logits.softmax(-1).max(-1)
    kept = [
        query
        for query in range(len(scores))
        if labels[query] != class_logits.shape[-1] - 1 and scores[query] > score_threshold
    ]
    segment_map = torch.full(geometry.output_size, -1, dtype=torch.int32)
    if not kept:
        return segment_map, []
    resize = {"mode": "bilinear", "align_corners": False}
    maps = F.interpolate(mask_logits[None], size=geometry.input_size, **resize)
    maps = maps[:, :, : geometry.scaled_size[0], : geometry.scaled_size[1]]
    probabilities = F.interpolate(maps, size=geometry.output_size, **resize)[0, kept].sigmoid()
    owner = (scores[kept][:, None, None] * probabilities).argmax(0)
    segments: list[tuple[int, int, int]] = []
    id_of_stuff: dict[int, int] = {}
    for k, query in enumerate(kept):
        original, owned = probabilities[k] >= mask_threshold, owner == k
        final = original & owned
        areas = [int(mask.sum()) for mask in (original, owned, final)]
        if 0 in areas or areas[1] / areas[0] < overlap_threshold:
            continue
        label = int(labels[query])
        if label in stuff_ids and label in id_of_stuff:
            segment_map[final] = id_of_stuff[label]
            continue
        segment_id = len(segments)
        if label in stuff_ids:
            id_of_stuff[label] = segment_id
        segments.append((segment_id, label, query))
        segment_map[final] = segment_id
    return segment_map, segments


def draw_logits(
    seed: int, *, queries: int = 24, classes: int = 5, size: tuple[int, int] = (16, 24)
) -> tuple[Tensor, Tensor]:
    """Blobs of many sizes that overlap, with sure, unsure and absent classes; some blobs lie outside the map."""
    classes, size = 5, (16, 24)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.linspace(0, 1, side) for side in size)
    centre = torch.rand(queries, 2, 1, 1, generator=generator) * 1.2 - 0.1
    radius = torch.rand(queries, 2, 1, 1, generator=generator) * 0.35 + 0.05
    distance = ((rows[:, None] - centre[:, 0]) / radius[:, 0]) ** 2 + ((columns - centre[:, 1]) / radius[:, 1]) ** 2
    mask_logits = (6 * (1 - distance)).clamp(-12, 6) + torch.randn(queries, *size, generator=generator)
    best = torch.randint(0, classes + 1, (queries,), generator=generator)
    confidence = 2 + 5 * torch.rand(queries, generator=generator)
    return mask_logits, F.one_hot(best, classes + 1) * confidence[:, None]


STUFF = frozenset({3, 4})
PICTURES = [(1, 1), (1, 300), (37, 53), (120, 80), (64, 96), (200, 333)]


@pytest.mark.parametrize("image_size", PICTURES, ids=str)
@pytest.mark.parametrize(
    ("score_threshold", "mask_threshold", "overlap_threshold"),
    [(0.8, 0.5, 0.8), (0.3, 0.5, 0.5), (0.5, 0.7, 0.95), (0.0, 0.2, 0.0)],
    ids=str,
)
def test_merge_equals_the_plain_one(
    image_size: tuple[int, int], score_threshold: float, mask_threshold: float, overlap_threshold: float
) -> None:
    geometry = FitGeometry(64, 96).place(image_size)
    for seed in range(4):
        mask_logits, class_logits = draw_logits(seed)
        wanted_map, wanted = merge_naively(
            mask_logits, class_logits, geometry, STUFF, score_threshold, mask_threshold, overlap_threshold
        )
        segment_map, segments = merge_panoptic(
            mask_logits,
            class_logits,
            geometry,
            stuff_ids=STUFF,
            score_threshold=score_threshold,
            mask_threshold=mask_threshold,
            overlap_threshold=overlap_threshold,
        )
        assert [(s.segment_id, s.label_id, s.query) for s in segments] == wanted
        assert (segment_map != wanted_map).float().mean() <= 1e-4


def test_the_drawn_logits_exercise_every_rule() -> None:
    geometry = FitGeometry(64, 96).place((120, 80))
    joined = rejected = things = void = 0
    for seed in range(4):
        mask_logits, class_logits = draw_logits(seed)
        wanted_map, wanted = merge_naively(mask_logits, class_logits, geometry, STUFF, 0.8, 0.5, 0.8)
        _, apart = merge_naively(mask_logits, class_logits, geometry, frozenset(), 0.8, 0.5, 0.8)
        _, all_kept = merge_naively(mask_logits, class_logits, geometry, frozenset(), 0.8, 0.5, 0.0)
        joined += len(apart) - len(wanted)
        rejected += len(all_kept) - len(apart)
        things += sum(label not in STUFF for _, label, _ in wanted)
        void += int((wanted_map == -1).sum())
    assert min(joined, rejected, things, void) > 0


@pytest.mark.parametrize("maps_per_group", [1, 3, 1000])
def test_the_answer_does_not_depend_on_the_size_of_the_groups(
    monkeypatch: pytest.MonkeyPatch, maps_per_group: int
) -> None:
    geometry = FitGeometry(64, 96).place((120, 80))
    mask_logits, class_logits = draw_logits(1)
    wanted_map, wanted = merge_panoptic(mask_logits, class_logits, geometry, stuff_ids=STUFF, score_threshold=0.3)
    monkeypatch.setattr(panoptic_merge, "_CHUNK_PIXELS", maps_per_group * 120 * 80)
    segment_map, segments = merge_panoptic(mask_logits, class_logits, geometry, stuff_ids=STUFF, score_threshold=0.3)
    assert segments == wanted
    assert torch.equal(segment_map, wanted_map)


# Memory


@pytest.fixture
def asked_maps(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The stacks of maps that were upsampled, as they went in."""
    asked: list[Tensor] = []
    upsample = ImageGeometry.to_output

    def record(self: ImageGeometry, maps: Tensor) -> Tensor:
        asked.append(maps)
        return upsample(self, maps)

    monkeypatch.setattr(ImageGeometry, "to_output", record)
    return asked


def all_kept(queries: int) -> Tensor:
    """Class logits that keep every query, each as a thing."""
    return 20 * F.one_hot(torch.arange(queries) % 3, 6).float()


def test_kept_queries_are_upsampled_in_bounded_groups(asked_maps: list[Tensor]) -> None:
    queries, height, width = 200, 1080, 1920
    geometry = FitGeometry(64, 96).place((height, width))
    merge_panoptic(draw_logits(0, queries=queries)[0], all_kept(queries), geometry, stuff_ids=())
    assert sum(len(maps) for maps in asked_maps) == queries
    assert max(len(maps) for maps in asked_maps) * height * width * 4 <= 16 * MIB


def test_groups_are_bounded_at_the_input_size_when_the_output_is_small(asked_maps: list[Tensor]) -> None:
    queries = 60
    geometry = FitGeometry(640, 640).place((1080, 1920), max_side=32)
    merge_panoptic(draw_logits(0, queries=queries)[0], all_kept(queries), geometry, stuff_ids=())
    assert max(len(maps) for maps in asked_maps) * 640 * 640 * 4 <= 16 * MIB


def test_dropped_queries_are_never_upsampled(asked_maps: list[Tensor]) -> None:
    class_logits = all_kept(200)
    class_logits[3:] = 20 * F.one_hot(torch.tensor(5), 6)
    merge_panoptic(draw_logits(0, queries=200)[0], class_logits, FitGeometry(64, 96).place((64, 96)), stuff_ids=())
    assert [len(maps) for maps in asked_maps] == [3]


# Single rules, by hand

WHOLE = FitGeometry(4, 4).place((4, 4))


def logits_of(*masks: list[str]) -> Tensor:
    """Mask logits from drawings: ``#`` is 10, ``+`` is 5, ``.`` is -10."""
    values = {"#": 10.0, "+": 5.0, ".": -10.0}
    return torch.tensor([[[values[c] for c in row] for row in mask] for mask in masks])


LEFT, RIGHT, FULL = (["##..", "##..", "##..", "##.."], ["..##", "..##", "..##", "..##"], ["####"] * 4)
NOTHING = ["...."] * 4


def classes_of(*labels: int, scores: tuple[float, ...] | None = None) -> Tensor:
    """Class logits over 5 classes and "no object" (5) whose best probability is a query's score (0.99 if not given)."""
    probabilities = torch.tensor(scores or [0.99] * len(labels))[:, None]
    chosen = F.one_hot(torch.tensor(labels), 6)
    return (chosen * probabilities + (1 - chosen) * (1 - probabilities) / 5).log()


def merged(
    mask_logits: Tensor, class_logits: Tensor, **options: float
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    segment_map, segments = merge_panoptic(mask_logits, class_logits, WHOLE, stuff_ids=STUFF, **options)
    return segment_map.tolist(), [(s.segment_id, s.label_id) for s in segments]


def test_two_things_of_one_label_stay_two_segments() -> None:
    segment_map, segments = merged(logits_of(LEFT, RIGHT), classes_of(1, 1))
    assert segments == [(0, 1), (1, 1)]
    assert segment_map == [[0, 0, 1, 1]] * 4


def test_stuff_of_one_label_is_joined_under_the_first_id() -> None:
    segment_map, segments = merged(logits_of(LEFT, RIGHT), classes_of(4, 4))
    assert segments == [(0, 4)]
    assert segment_map == [[0] * 4] * 4


def test_no_kept_query_leaves_everything_void() -> None:
    for class_logits in (classes_of(5, 5), classes_of(1, 1, scores=(0.7, 0.79)), torch.zeros(2, 6)):
        segment_map, segments = merged(logits_of(LEFT, RIGHT), class_logits)
        assert segments == []
        assert segment_map == [[-1] * 4] * 4


def test_a_query_without_a_mask_gets_no_id() -> None:
    segment_map, segments = merged(logits_of(NOTHING, RIGHT), classes_of(0, 1))
    assert segments == [(0, 1)]
    assert segment_map == [[-1, -1, 0, 0]] * 4


def test_a_mask_covered_by_a_better_one_is_rejected_and_leaves_no_hole() -> None:
    segment_map, segments = merged(logits_of(LEFT, FULL), classes_of(0, 1, scores=(0.9, 0.99)))
    assert segments == [(0, 1)]
    assert segment_map == [[0] * 4] * 4


def test_pixels_of_a_rejected_owner_are_void() -> None:
    # The left mask wins its half of the full one, which then owns too little; what it owned is nobody's.
    segment_map, segments = merged(logits_of(LEFT, FULL), classes_of(0, 1, scores=(0.99, 0.9)))
    assert segments == [(0, 0)]
    assert segment_map == [[0, 0, -1, -1]] * 4


def test_overlap_threshold_decides_about_a_half_covered_mask() -> None:
    _, segments = merged(logits_of(LEFT, FULL), classes_of(0, 1, scores=(0.99, 0.9)), overlap_threshold=0.5)
    assert segments == [(0, 0), (1, 1)]


def test_equal_queries_are_owned_by_the_first() -> None:
    segment_map, segments = merged(logits_of(LEFT, LEFT), classes_of(0, 1))
    assert segments == [(0, 0)]
    assert segment_map == [[0, 0, -1, -1]] * 4


def test_score_threshold_is_strict_and_mask_threshold_is_not() -> None:
    scores = classes_of(1, scores=(0.9,)).softmax(-1).max(-1).values
    assert merged(logits_of(LEFT), classes_of(1, scores=(0.9,)), score_threshold=float(scores))[1] == []
    on_the_line = torch.zeros(1, 4, 4)  # sigmoid(0) is 0.5
    assert merged(on_the_line, classes_of(1), mask_threshold=0.5) == ([[0] * 4] * 4, [(0, 1)])


def test_owned_pixels_outside_a_mask_count_as_owned_but_are_not_painted() -> None:
    segment_map, segments = merged(logits_of(LEFT), classes_of(2))
    assert segments == [(0, 2)]  # it owns all 16 pixels, twice its mask
    assert segment_map == [[0, 0, -1, -1]] * 4


def test_logits_that_are_not_numbers_are_void() -> None:
    segment_map, segments = merged(torch.full((2, 4, 4), torch.nan), torch.full((2, 6), torch.nan))
    assert segments == []
    assert segment_map == [[-1] * 4] * 4


def test_logits_of_one_query_that_are_not_numbers_cost_the_others_nothing() -> None:
    broken = torch.full((1, 4, 4), torch.nan)
    segment_map, segments = merged(torch.cat((broken, logits_of(LEFT, RIGHT))), classes_of(2, 0, 1))
    assert segments == [(0, 0), (1, 1)]
    assert segment_map == [[0, 0, 1, 1]] * 4


def test_inputs_are_left_as_they_were() -> None:
    mask_logits, class_logits = draw_logits(0)
    before = mask_logits.clone(), class_logits.clone()
    for image_size in ((16, 24), (64, 96)):  # the first needs no resize at all
        merge_panoptic(mask_logits, class_logits, FitGeometry(16, 24).place(image_size), stuff_ids=STUFF)
    assert torch.equal(mask_logits, before[0])
    assert torch.equal(class_logits, before[1])


# The head


@pytest.fixture
def head(tiny_encoder: VisionTransformer, label_set: LabelSet) -> PanopticDecoder:
    return PanopticDecoder(
        tiny_encoder.spec, label_set=label_set, out_indices=(1, 3), num_queries=24, num_blocks=1
    ).eval()


def test_the_head_is_a_decoder_whose_output_leads_with_the_batch(
    head: PanopticDecoder, tiny_encoder: VisionTransformer
) -> None:
    assert isinstance(head, Decoder)
    assert head.out_indices == (1, 3)
    raw = head(tiny_encoder(torch.rand(2, 3, 16, 24), head.out_indices))
    assert {name: tuple(t.shape) for name, t in raw.items()} == {
        "mask_logits": (2, 24, 4, 6),
        "class_logits": (2, 24, 6),
    }


def run_postprocess(
    head: PanopticDecoder, seed: int, image_size: tuple[int, int], options: PostprocessOptions | None = None
) -> PanopticResult:
    mask_logits, class_logits = draw_logits(seed)
    geometry = FitGeometry(64, 96).place(image_size)
    raw = {"mask_logits": mask_logits, "class_logits": class_logits}
    return head.postprocess(raw, geometry, options or PostprocessOptions())


@pytest.mark.parametrize("image_size", [(120, 80), (37, 53), (1, 300)], ids=str)
def test_areas_and_boxes_agree_with_the_map(head: PanopticDecoder, image_size: tuple[int, int]) -> None:
    seen = 0
    for seed in range(4):
        result = run_postprocess(head, seed, image_size)
        regions = {region.label: region for region in regionprops(result.segment_map)}
        assert result.segment_map.shape == image_size
        assert result.segment_map.dtype == np.int32
        assert [segment.segment_id for segment in result.segments] == list(range(1, len(result.segments) + 1))
        assert regions.keys() == {segment.segment_id for segment in result.segments}
        for segment in result.segments:
            region = regions[segment.segment_id]
            top, left, bottom, right = region.bbox
            assert segment.area == region.area
            assert segment.bbox == (left, top, right - left, bottom - top)
            seen += 1
    assert seen


def test_segments_carry_their_class(head: PanopticDecoder, label_set: LabelSet) -> None:
    result = run_postprocess(head, 1, (120, 80))
    _, class_logits = draw_logits(1)
    probabilities = class_logits.softmax(-1)
    assert {segment.is_thing for segment in result.segments} == {True, False}
    for segment in result.segments:
        label = label_set[segment.label_id]
        assert (segment.label, segment.is_thing) == (label.name, label.is_thing)
        assert (probabilities[:, segment.label_id] - segment.score).abs().min() < 1e-6
        assert segment.score > 0.8


def test_a_picture_without_segments_is_all_void(head: PanopticDecoder) -> None:
    raw = {"mask_logits": torch.zeros(3, 4, 6), "class_logits": torch.zeros(3, 6)}
    result = head.postprocess(raw, FitGeometry(16, 24).place((50, 70)), PostprocessOptions())
    assert result.segments == ()
    assert result.segment_map.shape == (50, 70)
    assert not result.segment_map.any()


@pytest.mark.parametrize("option", ["score_threshold", "mask_threshold", "overlap_threshold"])
def test_an_option_overrides_the_head_and_zero_counts_as_set(head: PanopticDecoder, option: str) -> None:
    head.overlap_threshold = 0.0
    setattr(head, option, 1.0)
    default = run_postprocess(head, 0, (120, 80))
    asked = run_postprocess(head, 0, (120, 80), replace(PostprocessOptions(), **{option: 0.0}))
    assert len(asked.segments) > len(default.segments)


def test_max_side_gives_a_smaller_map(head: PanopticDecoder) -> None:
    mask_logits, class_logits = draw_logits(1)
    geometry = FitGeometry(64, 96).place((120, 80), max_side=60)
    raw = {"mask_logits": mask_logits, "class_logits": class_logits}
    result = head.postprocess(raw, geometry, PostprocessOptions())
    assert result.segment_map.shape == (60, 40)
    assert all(sum(segment.bbox[1::2]) <= 60 and sum(segment.bbox[::2]) <= 40 for segment in result.segments)
