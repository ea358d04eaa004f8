"""Average precision of masks: against pycocotools on pictures, against YouTube-VIS's recorded figures on clips."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from decoders.labels import LabelSet
from decoders.masks import encode
from decoders.training.evaluation.mask_average_precision import (
    CLIP_AREAS,
    FoundMask,
    MaskAveragePrecision,
    TrueMask,
)
from decoders.training.evaluation.measure import Counts

SIZE = (200, 240)
NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")

Picture = tuple[list[FoundMask], list[TrueMask]]


def box_mask(size: tuple[int, int], x: float, y: float, width: float, height: float) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[max(0, int(y)) : max(0, int(y + height)), max(0, int(x)) : max(0, int(x + width))] = True
    return mask


def draw_pictures(number: int, seed: int = 0, *, ties: bool = True) -> list[Picture]:
    """Boxes of all sizes, some crowds, predictions near them under mostly the right class, a few out of nowhere.

    With `ties`, some scores are equal.
    """
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(number):
        found, truth = [], []
        for _ in range(rng.integers(0, 6)):
            place = np.array([rng.uniform(0, 160), rng.uniform(0, 120), *np.exp(rng.uniform(2, 5, 2))])
            label_id = int(rng.integers(0, 3))
            mask = box_mask(SIZE, *place)
            truth.append(TrueMask(label_id, encode(mask), float(mask.sum()), bool(rng.random() < 0.15)))
            for _ in range(rng.integers(0, 3)):
                near = box_mask(SIZE, *(place + rng.normal(0, 2, 4)))
                predicted = label_id if rng.random() < 0.8 else int(rng.integers(0, 3))
                score = round(float(rng.uniform()), 1 if ties else 9)
                found.append(FoundMask(predicted, score, encode(near), float(near.sum())))
        if rng.random() < 0.5:
            nowhere = box_mask(SIZE, *rng.uniform(0, 100, 2), 40, 30)
            found.append(
                FoundMask(int(rng.integers(0, 5)), float(rng.uniform()), encode(nowhere), float(nowhere.sum()))
            )
        pictures.append((found, truth))
    return pictures


def by_pycocotools(pictures: list[Picture]) -> dict[str, float]:
    """What COCO's own evaluation says of all pictures together."""

    def coco(annotations: list[dict[str, Any]]) -> COCO:
        made = COCO()
        made.dataset = {
            "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(pictures))],
            "categories": [{"id": i} for i in range(5)],
            "annotations": [entry | {"id": number} for number, entry in enumerate(annotations, 1)],
        }
        made.createIndex()
        return made

    def entry(picture: int, each: Any) -> dict[str, Any]:
        coded = {"size": list(each.mask.size), "counts": each.mask.counts}
        return {"image_id": picture, "category_id": each.label_id, "segmentation": coded, "area": each.area}

    true = [entry(i, o) | {"iscrowd": int(o.is_crowd)} for i, (_, truth) in enumerate(pictures) for o in truth]
    answers = [entry(i, o) | {"score": o.score} for i, (found, _) in enumerate(pictures) for o in found]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco(true), coco(answers), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: 100 * value if value >= 0 else np.nan for name, value in zip(NAMES, evaluation.stats, strict=False)}


def measured(pictures: list[Picture], label_set: LabelSet) -> MaskAveragePrecision:
    measure = MaskAveragePrecision(label_set)
    for found, truth in pictures:
        measure.add(found, truth)
    return measure


def test_figures_are_those_of_pycocotools(label_set: LabelSet, once: Callable[[int], Counts]) -> None:
    pictures = draw_pictures(40, seed=4)
    expected = by_pycocotools(pictures)
    assert all(5 < value < 95 for value in expected.values())  # the case tells things apart
    assert measured(pictures, label_set).figures(once(40)) == pytest.approx(expected)


def test_pictures_that_count_several_times_are_as_if_they_were_there_several_times(label_set: LabelSet) -> None:
    pictures = draw_pictures(12, seed=2, ties=False)  # the order of equal scores is nobody's to say
    counts = np.array([0, 3, 1, 0, 2, 1, 1, 0, 2, 1, 0, 1])
    repeated = [picture for picture, n in zip(pictures, counts, strict=True) for _ in range(n)]
    assert measured(pictures, label_set).figures(counts) == pytest.approx(by_pycocotools(repeated), nan_ok=True)


def test_figures_on_clips_are_those_of_youtube_vis(
    label_set: LabelSet, read_case: Callable[[str], Any], once: Callable[[int], Counts]
) -> None:
    recorded = read_case("youtube_vis")
    measure = MaskAveragePrecision(label_set, CLIP_AREAS)
    for clip in recorded["clips"]:

        def tall(boxes: list[list[int] | None]) -> tuple[np.ndarray, float]:
            frames = [box_mask(recorded["size"], *(box or (0, 0, 0, 0))) for box in boxes]
            return np.concatenate(frames), float(np.mean([frame.sum() for frame in frames if frame.any()]))

        found = [(o, *tall(o["boxes"])) for o in clip["found"]]
        true = [(o, *tall(o["boxes"])) for o in clip["true"]]
        measure.add(
            [FoundMask(o["label"], o["score"], encode(mask), area) for o, mask, area in found],
            [TrueMask(o["label"], encode(mask), area) for o, mask, area in true],
        )
    assert measure.figures(once(len(recorded["clips"]))) == pytest.approx(recorded["figures"])


def test_a_picture_without_objects_and_predictions_counts_as_a_picture(
    label_set: LabelSet, once: Callable[[int], Counts]
) -> None:
    pictures = draw_pictures(3)
    with_empty = measured([*pictures, ([], [])], label_set)
    assert len(with_empty) == 4
    assert with_empty.figures(once(4)) == pytest.approx(measured(pictures, label_set).figures(once(3)), nan_ok=True)


def test_classes_without_truth_have_no_figure(label_set: LabelSet) -> None:
    mask = box_mask(SIZE, 10, 10, 50, 50)
    measure = MaskAveragePrecision(label_set)
    measure.add([FoundMask(1, 0.9, encode(mask), 2500)], [TrueMask(0, encode(mask), 2500)])
    assert measure.per_class() == {"cat": {"AP": 0, "AP50": 0}}


def test_figures_follow_pictures_that_are_added_after_they_were_asked_for(label_set: LabelSet) -> None:
    mask = box_mask(SIZE, 10, 10, 50, 50)
    measure = MaskAveragePrecision(label_set)
    measure.add([FoundMask(0, 0.9, encode(mask), 2500)], [TrueMask(0, encode(mask), 2500)])
    assert measure.figures(np.array([1]))["AP"] == pytest.approx(100)
    measure.add([], [TrueMask(0, encode(mask), 2500)])
    assert measure.figures(np.array([1, 1]))["AP"] == pytest.approx(100 * 51 / 101)
