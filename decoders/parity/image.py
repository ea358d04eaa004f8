"""Models of still pictures: every stage from pixels to logits, and whole pictures through to their results."""

from __future__ import annotations

import copy
from collections import ChainMap
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from decoders.instance import top_pairs
from decoders.online import OnlineMaskDecoder
from decoders.parity import seeded
from decoders.parity.cases import Case
from decoders.parity.models import read_model
from decoders.parity.postprocess import (
    Naming,
    compare_instances,
    compare_panoptic,
    compare_semantic,
    entries_of,
    origins_of,
    place_windows,
    to_picture,
)
from decoders.plain_mask_decoder import LateralProjection, PlainMaskDecoder
from decoders.semantic import picture_votes
from encoders.features import EncoderFeatures
from encoders.geometry import FitGeometry, ImageGeometry
from encoders.preprocess import to_pixels

Logits = tuple[Tensor, Tensor]
"""(mask_logits [B, Q, h, w], class_logits [B, Q, K + 1])."""


# From pixels of the network's size to logits


def has_stages(case: Case) -> bool:
    """Whether pixels of the network's size go in."""
    return case.has("image_u8") or (seeded.has_formula(case) and "image" in case.facts)


def run_stages(case: Case) -> None:
    """Run a batch and compare every stage; then with masked attention, and with the laterals folded."""
    model = read_model(case)
    images = case.input("image_u8") if case.has("image_u8") else seeded.picture(case)
    features = model.encoder(images, model.decoder.out_indices)
    compare_features(case, model.decoder, features)
    tokens, rope = model.decoder.embed(features)
    case.compare("tokens_in", tokens, "tokens")
    case.compare("rope_cos", rope[0], "rope")
    case.compare("rope_sin", rope[1], "rope")
    for block in model.decoder.blocks:
        tokens = block(tokens, rope)
    case.compare("tokens_out", tokens, "tokens")
    logits = model.decoder.predict(tokens, features.grid_size)
    _compare_logits(case, logits)
    if isinstance(model.decoder, OnlineMaskDecoder):
        case.compare("query_state", model.decoder.step(features)[2], "query_state")
    _compare_masked(case, model.decoder, features)
    _compare_folded(case, model.decoder, features)
    _compare_whole_pictures(case, logits, (images.shape[2], images.shape[3]))
    last_level = f"{len(model.decoder.out_indices) - 1}"
    case.skip_absent(
        *("rope_cos", "rope_sin", f"feature_norm.{last_level}", f"feature_bn.{last_level}", "tokens_in", "tokens_out"),
        *("mask_logits", "class_logits", f"masked.class_logits.{len(model.decoder.blocks)}"),
    )


def compare_features(case: Case, decoder: PlainMaskDecoder, features: EncoderFeatures) -> None:
    """Compare what the encoder gives for each level, and the same after the level's batch norm."""
    for level, (index, lateral) in enumerate(zip(decoder.out_indices, decoder.laterals, strict=True)):
        tokens = features.tokens(index)
        case.compare(f"feature_norm.{level}", tokens, "features")
        if case.expects(f"feature_bn.{level}"):
            assert isinstance(lateral, LateralProjection)
            normed = lateral.norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
            case.compare(f"feature_bn.{level}", normed, "features")


def _compare_logits(case: Case, logits: Logits, note: str = "") -> None:
    mask_logits, class_logits = logits
    case.compare("mask_logits", mask_logits, "mask_logits", note)
    case.compare("class_logits", class_logits, "class_logits", note)
    if not note:
        case.compare("mask_mean", mask_logits.mean((-2, -1)), "mask_logits")
        case.compare("mask_positive_fraction", (mask_logits > 0).float().mean((-2, -1)), "positive_fraction")


def _compare_masked(case: Case, decoder: PlainMaskDecoder, features: EncoderFeatures) -> None:
    """The form with masked attention, no row re-opened."""
    if not case.numbers(r"masked\.(?:mask|class)_logits\.(\d+)"):
        return
    predictions = decoder.forward_masked(features, [1.0] * len(decoder.blocks))
    for step, (mask_logits, class_logits) in enumerate(predictions):
        case.compare(f"masked.mask_logits.{step}", mask_logits, "mask_logits")
        case.compare(f"masked.class_logits.{step}", class_logits, "class_logits")


def _compare_folded(case: Case, decoder: PlainMaskDecoder, features: EncoderFeatures) -> None:
    """The form that is served: the laterals' norms folded into their projections."""
    if case.expects("mask_logits", "class_logits"):
        folded = copy.deepcopy(decoder)
        folded.fold_laterals()
        _compare_logits(case, folded(features), "laterals folded")


def _compare_whole_pictures(case: Case, logits: Logits, input_size: tuple[int, int]) -> None:
    """Results at the network's size, where a case has them: "panoptic.…" of its one picture, "panoptic1.…" of many."""
    mask_logits, class_logits = logits
    geometry = FitGeometry(*input_size).place(input_size)
    for row in range(len(mask_logits)):
        number = row if len(mask_logits) > 1 else ""
        _compare_results(case, number, (mask_logits[row], class_logits[row]), geometry)
        naming = partial("semantic{0}.{1}".format, number)
        if case.expects(naming("scores"), naming("argmax")):
            votes = picture_votes(mask_logits[row], class_logits[row], geometry)
            compare_semantic(case, naming, votes, geometry, "semantic_scores")


def _compare_results(case: Case, number: int | str, logits: Logits, geometry: ImageGeometry) -> None:
    """Panoptic and instance results of one picture, as far as the case has them."""
    naming: Naming = partial("panoptic{0}.{1}".format, number)
    if case.expects(naming("segment_map"), naming("class_map")):
        segments = _stated_segments(case, number)
        compare_panoptic(case, naming, logits, geometry, _stated(case, "panoptic"), segments)
    naming = partial("instance{0}.{1}".format, number)
    if case.expects(naming("labels")):
        pairs = top_pairs(*logits, geometry, top_k=_stated(case, "instance")["topk"])
        compare_instances(case, naming, entries_of(pairs), "instance_scores")


def _stated_segments(case: Case, number: int | str) -> Sequence[Sequence[int]] | None:
    """The segments that X.json states of a picture: one list of pairs, or a list of those for each picture."""
    segments = case.fact("tasks.panoptic.segments", "stats.segments", default=None)
    if segments and all(isinstance(pair, list) for entry in segments for pair in entry):
        return segments[int(number or 0)]
    return segments


def _stated(case: Case, task: str) -> ChainMap[str, Any]:
    return ChainMap(case.fact(f"tasks.{task}", default={}), case.fact("config", default={}), dict(case.facts))


# From raw pictures to results


def has_pictures(case: Case) -> bool:
    """Whether raw pictures go in."""
    return bool(case.numbers(r"(?:sem_)?image(\d+)_u8"))


def run_pictures(case: Case) -> None:
    """Scale, pad or cut raw pictures, run the model, and compare the results in the pictures' own pixels."""
    model = read_model(case)
    pictures = [to_picture(case.input(f"image{number}_u8")) for number in case.numbers(r"image(\d+)_u8")]
    if pictures:
        rule = FitGeometry(*case.size("config.img_size"))
        geometries = [rule.place((picture.height, picture.width)) for picture in pictures]
        pixels = torch.cat(
            [to_pixels(picture, geometry) for picture, geometry in zip(pictures, geometries, strict=True)]
        )
        case.compare("padded_u8", pixels, "exact")
        mask_logits, class_logits = model.decoder(model.encoder(pixels, model.decoder.out_indices))
        case.compare("mask_logits", mask_logits, "mask_logits")
        case.compare("class_logits", class_logits, "class_logits")
        for row, number in enumerate(case.numbers(r"image(\d+)_u8")):
            _compare_results(case, number, (mask_logits[row], class_logits[row]), geometries[row])
    numbers = case.numbers(r"sem_image(\d+)_u8")
    if numbers:
        _run_windows(case, model.encoder, model.decoder, numbers)
    case.skip_absent("padded_u8", "mask_logits", "class_logits", "sem_crops_u8", "sem_mask_logits")


def _run_windows(case: Case, encoder: Any, decoder: PlainMaskDecoder, numbers: Sequence[int]) -> None:
    pictures = [to_picture(case.input(f"sem_image{number}_u8")) for number in numbers]
    window = case.size("tasks.semantic.img_size", "config.sem_img_size", "config.img_size")
    geometries = place_windows(window, [(picture.height, picture.width) for picture in pictures])
    windows = [to_pixels(picture, geometry) for picture, geometry in zip(pictures, geometries, strict=True)]
    case.compare("sem_origins", origins_of(geometries), "exact")
    case.compare("sem_crops_u8", torch.cat(windows), "exact")
    answers = [decoder(encoder(pixels, decoder.out_indices)) for pixels in windows]
    case.compare("sem_mask_logits", torch.cat([mask_logits for mask_logits, _ in answers]), "mask_logits")
    case.compare("sem_class_logits", torch.cat([class_logits for _, class_logits in answers]), "class_logits")
    for number, geometry, (mask_logits, class_logits) in zip(numbers, geometries, answers, strict=True):
        naming = partial("semantic{0}.{1}".format, number)
        compare_semantic(case, naming, picture_votes(mask_logits, class_logits, geometry), geometry, "semantic_scores")
