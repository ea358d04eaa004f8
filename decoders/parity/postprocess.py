"""Post-processing of still pictures: what becomes of given logits, alone and as the end of a whole model."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from decoders.class_map import best_class
from decoders.instance import ScoredPair, top_pairs
from decoders.panoptic_merge import MergedSegment, merge_panoptic
from decoders.parity.cases import Case
from decoders.parity.report import TOLERANCES
from decoders.semantic import class_votes, picture_votes
from encoders.geometry import FitGeometry, ImageGeometry, WindowGeometry
from encoders.preprocess import to_pixels

Naming = Callable[[str], str]
"""From a part of a result ("masks") to the name that the case gives it ("masks.0", "instance1.masks")."""


# Panoptic


def compare_panoptic(
    case: Case,
    naming: Naming,
    logits: tuple[Tensor, Tensor],
    geometry: ImageGeometry,
    stated: Mapping[str, Any],
    segments: Sequence[Sequence[int]] | None,
) -> None:
    """Merge one picture and compare its two maps and its segments.

    Args:
        case: it.
        naming: of "segment_map" and "class_map".
        logits: (mask_logits [Q, h, w], class_logits [Q, K + 1]).
        geometry: where the picture lies in the input.
        stated: thresholds, stuff and void values, of which those that are absent have PMT's own.
        segments: expected, pairs of a segment's id and its class in either order; None: not stated.
    """
    mask_logits, class_logits = logits
    segment_map, merged = merge_panoptic(
        mask_logits,
        class_logits,
        geometry,
        stuff_ids=stated["stuff"],
        score_threshold=stated.get("mask_thresh", 0.8),
        overlap_threshold=stated.get("overlap_thresh", 0.8),
    )
    if segments is not None:
        case.compare_list(naming("segments"), [[s.segment_id, s.label_id] for s in merged], _id_first(segments))
    void_class = stated.get("void_class", class_logits.shape[-1] - 1)
    case.compare(naming("class_map"), _classes(segment_map, merged, void_class), "map")
    void_segment = stated.get("void_segment", -1)
    case.compare(naming("segment_map"), segment_map.masked_fill(segment_map < 0, void_segment), "map")


def _classes(segment_map: Tensor, merged: Sequence[MergedSegment], void_class: int) -> Tensor:
    """The class of every pixel of a map of segment ids (-1 for void)."""
    labels = torch.tensor([*(segment.label_id for segment in merged), void_class], dtype=torch.int32)
    return labels[segment_map.long()]


def _id_first(segments: Sequence[Sequence[int]]) -> list[list[int]]:
    """Pairs with the id first: ids count from 0 in order of acceptance, which tells the column."""
    if [pair[0] for pair in segments] != list(range(len(segments))):
        segments = [(second, first) for first, second in segments]
    return [list(pair) for pair in segments]


def has_panoptic(case: Case) -> bool:
    """Whether given logits are to be merged into maps."""
    return case.has("mask_logits") and bool(case.numbers(r"run(\d+)\.(?:class|segment)_map\.\d+"))


def run_panoptic(case: Case) -> None:
    """Merge every picture under every run's thresholds."""
    mask_logits, class_logits = case.input("mask_logits"), case.input("class_logits")
    geometries = _placed(case)
    for number, facts in enumerate(case.fact("runs")):
        if "scaled_sizes" in facts:
            _compare_scaled_sizes(case, f"run{number}.scaled_sizes", geometries, facts["scaled_sizes"])
        segments = facts.get("segments_id_class")
        for image, geometry in enumerate(geometries):
            compare_panoptic(
                case,
                partial("run{0}.{2}.{1}".format, number, image),
                (mask_logits[image], class_logits[image]),
                geometry,
                ChainMap(facts, dict(case.facts)),
                None if segments is None else segments[image],
            )


def _placed(case: Case) -> list[ImageGeometry]:
    rule = FitGeometry(*case.size("img_size"))
    return [rule.place((height, width)) for height, width in case.fact("image_sizes")]


def _compare_scaled_sizes(
    case: Case, name: str, geometries: Sequence[ImageGeometry], expected: Sequence[object]
) -> None:
    case.compare_list(name, [list(geometry.scaled_size) for geometry in geometries], expected)


# Instances


@dataclass(frozen=True)
class Entry:
    """One of a list of instances. `mask`: [..., H, W] uint8; `query`: None where a case does not tell it."""

    label_id: int
    score: float
    mask: Tensor
    query: int | None = None


def entries_of(pairs: Iterable[ScoredPair]) -> list[Entry]:
    """Our instances of a picture as they are compared."""
    return [
        Entry(pair.label_id, pair.score, torch.from_numpy(pair.mask.decode().astype(np.uint8)), pair.query)
        for pair in pairs
    ]


def compare_instances(case: Case, naming: Naming, ours: Sequence[Entry], tolerance: str) -> None:
    """Compare a list whose order is not meant: matched by (query, label), or else by label and nearest score.

    Args:
        case: it.
        naming: of "labels", "scores", "masks" and "query".
        ours: the instances.
        tolerance: of the scores.
    """
    labels = case.expected(naming("labels"))
    told = {part: case.expected(naming(part)) for part in ("query", "scores", "masks") if case.expects(naming(part))}
    if "query" in told:
        wanted = list(zip(told["query"].tolist(), labels.tolist(), strict=True))
        found = {(entry.query, entry.label_id): entry for entry in ours}
        matched = [found.get(pair) for pair in wanted]
        case.compare_list(f"{naming('entries')} as (query, label)", sorted(found), sorted(wanted))
    else:
        matched = _nearest(ours, labels, told, TOLERANCES[tolerance].atol)
        case.compare_list(naming("labels"), sorted(entry.label_id for entry in ours), sorted(labels.tolist()))
    known = [entry for entry in matched if entry is not None]
    if len(known) == len(matched):  # or else the list has failed, and there is nothing to set against each other
        case.compare(naming("scores"), torch.tensor([entry.score for entry in known]), tolerance)
        case.compare(naming("masks"), torch.stack([entry.mask for entry in known]), "map")


def _nearest(ours: Sequence[Entry], labels: Tensor, told: Mapping[str, Tensor], tolerance: float) -> list[Entry | None]:
    """For each expected entry ours of its label and nearest score; among equal scores, that of the nearest mask."""
    left = list(ours)
    matched: list[Entry | None] = []
    for number, label in enumerate(labels.tolist()):

        def distance(entry: Entry, number: int = number) -> tuple[float, int, float]:
            apart = abs(entry.score - told["scores"][number].item()) if "scores" in told else 0.0
            same_shape = "masks" in told and told["masks"].shape[1:] == entry.mask.shape
            pixels = int((told["masks"][number] != entry.mask).sum()) if same_shape else 0
            return max(0.0, apart - tolerance), pixels, apart

        entry = min((entry for entry in left if entry.label_id == label), key=distance, default=None)
        if entry is not None:
            left = [other for other in left if other is not entry]
        matched.append(entry)
    return matched


def has_instances(case: Case) -> bool:
    """Whether given logits are to be turned into lists of instances."""
    return case.has("mask_logits") and bool(case.numbers(r"labels\.(\d+)"))


def run_instances(case: Case) -> None:
    """Take the best pairs of every picture."""
    mask_logits, class_logits = case.input("mask_logits"), case.input("class_logits")
    geometries = _placed(case)
    if "scaled_sizes" in case.facts:
        _compare_scaled_sizes(case, "scaled_sizes", geometries, case.fact("scaled_sizes"))
    for image in case.numbers(r"labels\.(\d+)"):
        pairs = top_pairs(mask_logits[image], class_logits[image], geometries[image], top_k=case.fact("topk"))
        compare_instances(case, partial("{1}.{0}".format, image), entries_of(pairs), "structured")


# Semantic


def compare_semantic(case: Case, naming: Naming, votes: Tensor, geometry: ImageGeometry, tolerance: str) -> None:
    """Compare one picture's class scores and best classes.

    Args:
        case: it.
        naming: of "scores" and "argmax".
        votes: of `picture_votes`.
        geometry: where the picture lies in the input.
        tolerance: of the scores.
    """
    if case.expects(naming("scores")):
        case.compare(naming("scores"), geometry.scaled_to_output(votes), tolerance)
    case.compare(naming("argmax"), best_class(votes, geometry), "map")


def place_windows(window: tuple[int, int], image_sizes: Sequence[Sequence[int]]) -> list[ImageGeometry]:
    """Where the windows of pictures lie; a window is square, of the shorter side of the size stated."""
    return [WindowGeometry(min(window)).place((height, width)) for height, width in image_sizes]


def origins_of(geometries: Iterable[ImageGeometry]) -> Tensor:
    """(picture, start, end) of every window, the last two along the side that is cut: [V, 3] int32."""
    rows = []
    for image, geometry in enumerate(geometries):
        upright = geometry.scaled_size[0] > geometry.scaled_size[1]
        for top, left in geometry.window_starts or ():
            start = top if upright else left
            rows.append((image, start, start + geometry.input_size[0]))
    return torch.tensor(rows, dtype=torch.int32)


def to_picture(pixels: Tensor) -> Image.Image:
    """A [3, H, W] uint8 tensor as a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def has_semantic(case: Case) -> bool:
    """Whether given logits are to be turned into class scores or maps of classes."""
    if not case.has("mask_logits") or not case.has("class_logits"):
        return False
    return bool(case.numbers(r"argmax\.(\d+)")) or case.expects("origins") or _has_class_scores(case)


def _has_class_scores(case: Case) -> bool:
    numbers = case.numbers(r"scores\.(\d+)")
    return bool(numbers) and not case.expects(f"labels.{numbers[0]}")


def run_semantic(case: Case) -> None:
    """Vote in every window, join the windows of every picture; and cut the windows, where there are pixels."""
    mask_logits, class_logits = case.input("mask_logits"), case.input("class_logits")
    geometries = place_windows(case.size("img_size"), case.fact("image_sizes"))
    if "scaled_sizes" in case.facts:
        _compare_scaled_sizes(case, "scaled_sizes", geometries, case.fact("scaled_sizes"))
    origins = origins_of(geometries)
    case.compare("origins", origins, "exact")
    if case.expects("crops_u8"):
        pictures = {image: case.input(f"image_u8.{image}") for image in case.numbers(r"image_u8\.(\d+)")}
        cut = torch.cat([to_pixels(to_picture(picture), geometries[image]) for image, picture in pictures.items()])
        kept = case.fact("crops_u8_belong_to_origin_indices", default=None)
        if kept is not None:  # of all origins; the pictures with pixels may be some of them
            rows = [row for row, origin in enumerate(origins.tolist()) if origin[0] in pictures]
            cut = cut[[rows.index(origin) for origin in kept]]
        case.compare("crops_u8", cut, "exact")
    for window in case.numbers(r"crop(\d+)_scores"):
        votes = class_votes(
            geometries[int(origins[window, 0])].to_input(mask_logits[window]),
            class_logits[window],
        )
        case.compare(f"crop{window}_scores", votes, "structured")
    first = 0
    for image, geometry in enumerate(geometries):
        of_image = slice(first, first + geometry.num_views)
        first = of_image.stop
        naming = partial("{1}.{0}".format, image)
        if case.expects(naming("scores"), naming("argmax")):
            votes = picture_votes(mask_logits[of_image], class_logits[of_image], geometry)
            compare_semantic(case, naming, votes, geometry, "structured")
