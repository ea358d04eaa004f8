"""Instances: the pairs and scores of PMT's evaluation, and the head's answer in the picture's own pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decoders import instance
from decoders.base import Decoder, PostprocessOptions
from decoders.instance import InstanceDecoder, top_pairs
from decoders.labels import LabelSet
from decoders.results import InstanceResult
from encoders.geometry import FitGeometry, ImageGeometry
from encoders.vit import VisionTransformer

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]
MIB = 1 << 20


@pytest.mark.parametrize("image", range(2))
def test_pairs_scores_and_masks_equal_pmt(read_golden: ReadGolden, image: int) -> None:
    facts, tensors = read_golden("post_instance")
    geometry = FitGeometry(*facts["img_size"]).place(tuple(facts["image_sizes"][image]))
    pairs = top_pairs(tensors["mask_logits"][image], tensors["class_logits"][image], geometry, top_k=facts["topk"])
    found = {(pair.query, pair.label_id): pair for pair in pairs}
    queries, labels = tensors[f"query.{image}"].tolist(), tensors[f"labels.{image}"].tolist()
    assert found.keys() == set(zip(queries, labels, strict=True))
    for row, key in enumerate(zip(queries, labels, strict=True)):
        assert found[key].score == pytest.approx(tensors[f"scores.{image}"][row].item(), abs=1e-5)
        wanted = tensors[f"masks.{image}"][row].numpy().astype(bool)
        assert (found[key].mask.decode() != wanted).mean() <= 1e-4


# Equal to a plain implementation


def draw_logits(queries: int = 12, classes: int = 5, size: tuple[int, int] = (16, 24)) -> tuple[Tensor, Tensor]:
    """Smooth masks of which some are empty, and classes of which some are nearly as probable as the best."""
    coarse = torch.randn(queries, 1, 4, 6) * 6
    mask_logits = F.interpolate(coarse, size=size, mode="bicubic")[:, 0]
    mask_logits[3] = -5.0
    return mask_logits, 2 * torch.randn(queries, classes + 1)


def score_naively(
    mask_logits: Tensor, class_logits: Tensor, geometry: ImageGeometry, top_k: int
) -> dict[tuple[int, int], tuple[float, float, Tensor]]:
    """Section 6 of the PMT specification, word for word: {(query, label): (probability, mask score, mask)}."""
    classes = class_logits.shape[-1] - 1
    flat = class_logits.softmax(-1)[:, :classes].flatten()
    resize = {"mode": "bilinear", "align_corners": False}
    maps = F.interpolate(mask_logits[None], size=geometry.input_size, **resize)
    maps = maps[:, :, : geometry.scaled_size[0], : geometry.scaled_size[1]]
    maps = F.interpolate(maps, size=geometry.output_size, **resize)[0]
    entries = {}
    for place in flat.sort(descending=True).indices[:top_k].tolist():
        logits = maps[place // classes]
        mask = logits > 0
        mask_score = (logits.sigmoid() * mask).sum() / (mask.sum() + 1e-6)
        entries[place // classes, place % classes] = (flat[place].item(), mask_score.item(), mask)
    return entries


@pytest.mark.parametrize("image_size", [(120, 80), (37, 53), (1, 300), (64, 96)], ids=str)
@pytest.mark.parametrize("top_k", [1, 20, 1000])
def test_pairs_equal_the_plain_ones(image_size: tuple[int, int], top_k: int) -> None:
    geometry = FitGeometry(64, 96).place(image_size)
    mask_logits, class_logits = draw_logits()
    wanted = score_naively(mask_logits, class_logits, geometry, top_k)
    pairs = top_pairs(mask_logits, class_logits, geometry, top_k=top_k)
    assert {(pair.query, pair.label_id) for pair in pairs} == wanted.keys()
    assert len(pairs) == len(wanted) == min(top_k, 12 * 5)
    for pair in pairs:
        probability, mask_score, mask = wanted[pair.query, pair.label_id]
        assert pair.probability == pytest.approx(probability, abs=1e-6)
        assert pair.mask_score == pytest.approx(mask_score, abs=1e-5)
        assert pair.score == pytest.approx(probability * mask_score, abs=1e-5)
        assert np.array_equal(pair.mask.decode(), mask.numpy())


def test_pairs_come_with_the_most_probable_first() -> None:
    pairs = top_pairs(*draw_logits(), FitGeometry(64, 96).place((120, 80)), top_k=30)
    probabilities = [pair.probability for pair in pairs]
    assert probabilities == sorted(probabilities, reverse=True)


def test_one_query_may_come_under_several_classes_and_shares_its_mask() -> None:
    mask_logits, class_logits = draw_logits()
    class_logits[:] = 0
    class_logits[7, [1, 4]] = torch.tensor([9.0, 8.8])
    pairs = top_pairs(mask_logits, class_logits, FitGeometry(64, 96).place((64, 96)), top_k=2)
    assert [(pair.query, pair.label_id) for pair in pairs] == [(7, 1), (7, 4)]
    assert pairs[0].mask == pairs[1].mask


def test_no_object_never_comes_as_a_class() -> None:
    mask_logits, class_logits = draw_logits()
    class_logits[:, -1] = 20
    pairs = top_pairs(mask_logits, class_logits, FitGeometry(64, 96).place((64, 96)), top_k=10)
    assert len(pairs) == 10
    assert max(pair.label_id for pair in pairs) < 5
    assert max(pair.probability for pair in pairs) < 1e-3


def test_an_empty_mask_scores_nothing() -> None:
    mask_logits, class_logits = draw_logits()
    class_logits[3, 2] = 20
    pairs = top_pairs(mask_logits, class_logits, FitGeometry(64, 96).place((64, 96)), top_k=1)
    assert [(pair.query, pair.mask_score, pair.score, pair.mask.area()) for pair in pairs] == [(3, 0.0, 0.0, 0)]


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


def test_masks_are_upsampled_once_for_each_query_and_in_bounded_groups(asked_maps: list[Tensor]) -> None:
    mask_logits, class_logits = draw_logits(queries=40)
    geometry = FitGeometry(64, 96).place((720, 1280))
    top_pairs(mask_logits, class_logits, geometry, top_k=1000)
    assert sum(len(maps) for maps in asked_maps) == 40
    assert max(len(maps) for maps in asked_maps) * 720 * 1280 * 4 <= 16 * MIB


def test_improbable_pairs_are_never_upsampled(asked_maps: list[Tensor]) -> None:
    mask_logits, class_logits = draw_logits()
    class_logits[:] = 0
    class_logits[[2, 5], 1] = 9
    pairs = top_pairs(mask_logits, class_logits, FitGeometry(64, 96).place((64, 96)), top_k=100, least_probability=0.9)
    assert sorted(pair.query for pair in pairs) == [2, 5]
    assert sum(len(maps) for maps in asked_maps) == 2


def test_the_answer_does_not_depend_on_the_size_of_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, geometry = draw_logits(), FitGeometry(64, 96).place((120, 80))
    wanted = top_pairs(*logits, geometry, top_k=30)
    monkeypatch.setattr(instance, "_CHUNK_PIXELS", 120 * 80)
    assert top_pairs(*logits, geometry, top_k=30) == wanted


def test_inputs_are_left_as_they_were() -> None:
    mask_logits, class_logits = draw_logits()
    before = mask_logits.clone(), class_logits.clone()
    for image_size in ((16, 24), (64, 96)):  # the first needs no resize at all
        top_pairs(mask_logits, class_logits, FitGeometry(16, 24).place(image_size))
    assert torch.equal(mask_logits, before[0])
    assert torch.equal(class_logits, before[1])


# The head


@pytest.fixture
def head(tiny_encoder: VisionTransformer, label_set: LabelSet) -> InstanceDecoder:
    return InstanceDecoder(
        tiny_encoder.spec, label_set=label_set, out_indices=(1, 3), num_queries=12, num_blocks=1, top_k=20
    ).eval()


def run_postprocess(
    head: InstanceDecoder, image_size: tuple[int, int], options: PostprocessOptions | None = None
) -> InstanceResult:
    torch.manual_seed(7)  # the same logits at every call
    mask_logits, class_logits = draw_logits()
    raw = {"mask_logits": mask_logits, "class_logits": class_logits}
    return head.postprocess(raw, FitGeometry(64, 96).place(image_size), options or PostprocessOptions())


def test_the_head_is_a_decoder_whose_output_leads_with_the_batch(
    head: InstanceDecoder, tiny_encoder: VisionTransformer
) -> None:
    assert isinstance(head, Decoder)
    raw = head(tiny_encoder(torch.rand(2, 3, 16, 24), head.out_indices))
    assert {name: tuple(t.shape) for name, t in raw.items()} == {
        "mask_logits": (2, 12, 4, 6),
        "class_logits": (2, 12, 6),
    }


def test_instances_are_ranked_by_score_and_agree_with_their_masks(head: InstanceDecoder, label_set: LabelSet) -> None:
    result = run_postprocess(head, (120, 80))
    assert result.image_size == (120, 80)
    assert [segment.segment_id for segment in result.instances] == list(range(1, len(result.instances) + 1))
    scores = [segment.score for segment in result.instances]
    assert scores == sorted(scores, reverse=True)
    for segment, mask in zip(result.instances, result.masks, strict=True):
        pixels = mask.decode()
        rows, columns = np.nonzero(pixels)
        left, top, width, height = segment.bbox
        assert pixels.shape == (120, 80)
        assert segment.area == pixels.sum() > 0
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
        label = label_set[segment.label_id]
        assert (segment.label, segment.is_thing, segment.track_id) == (label.name, label.is_thing, None)


def test_empty_masks_are_left_out(head: InstanceDecoder) -> None:
    mask_logits, class_logits = draw_logits()
    class_logits[3, 2] = 20  # the empty one is the most probable
    raw = {"mask_logits": mask_logits, "class_logits": class_logits}
    result = head.postprocess(raw, FitGeometry(64, 96).place((64, 96)), PostprocessOptions())
    assert 0 < len(result.instances) < 20
    assert all(segment.area for segment in result.instances)


def test_a_score_threshold_leaves_out_what_scores_less(head: InstanceDecoder) -> None:
    everything = run_postprocess(head, (120, 80))
    threshold = everything.instances[5].score
    result = run_postprocess(head, (120, 80), PostprocessOptions(score_threshold=threshold))
    assert result.instances == everything.instances[:6]
    assert result.masks == everything.masks[:6]


def test_a_threshold_bounds_the_score_and_not_the_class_probability_alone(head: InstanceDecoder) -> None:
    mask_logits, class_logits = torch.full((12, 16, 24), -9.0), torch.zeros(12, 6)
    class_logits[[4, 8], 1] = 9.0
    mask_logits[4], mask_logits[8] = 9.0, 0.2  # the second mask's pixels have a probability of 0.55
    raw = {"mask_logits": mask_logits, "class_logits": class_logits}
    geometry = FitGeometry(64, 96).place((64, 96))
    for threshold, number in ((0.5, 2), (0.6, 1)):
        result = head.postprocess(raw, geometry, PostprocessOptions(score_threshold=threshold))
        assert len(result.instances) == number


def test_a_threshold_that_nothing_reaches_gives_no_instances(head: InstanceDecoder) -> None:
    result = run_postprocess(head, (120, 80), PostprocessOptions(score_threshold=1.0))
    assert result.instances == result.masks == ()


def test_stuff_is_no_object_however_probable(head: InstanceDecoder, label_set: LabelSet) -> None:
    geometry = FitGeometry(32, 48).place((32, 48))
    class_logits = torch.zeros(2, len(label_set) + 1)
    class_logits[0, 3], class_logits[0, 0] = 8, 5  # sky, and a little cat
    class_logits[1, 4] = 8  # road
    raw = {"mask_logits": torch.full((2, 16, 24), 5.0), "class_logits": class_logits}
    found = head.postprocess(raw, geometry, PostprocessOptions(score_threshold=0)).instances
    assert {each.label for each in found} == {label.name for label in label_set.labels if label.is_thing}
    assert len(found) == 2 * 3
    best = found[0]
    wanted = class_logits[0].softmax(0)[0].item()  # stuff keeps its part of the softmax
    assert (best.label, best.score) == ("cat", pytest.approx(wanted * torch.tensor(5.0).sigmoid().item(), abs=1e-4))
