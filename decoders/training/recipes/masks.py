"""Heads that classify masks: panoptic, instance and semantic ones on pictures, and their forms on video.

Mask2Former's losses on the prediction before every block and after the last one, and PMT's masked attention, which
starts everywhere and is annealed away, so that at the end the head runs as it will be served.

A video head sees the frames of a pseudo-clip one after the other; its queries are carried on, and an object is matched
once for the whole clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from decoders.mask_classification import MaskClassificationDecoder
from decoders.online import OnlineMaskDecoder
from decoders.training.data.samples import IGNORE, InstanceSample, PanopticSample, Sample, SemanticSample
from decoders.training.losses.set_prediction import MaskTarget, set_loss
from decoders.training.placing import place_labels, place_mask
from decoders.training.recipes.recipe import Recipe, mixed_precision, spread_blocks
from decoders.training.schedule import Schedule
from decoders.training.views import View
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry

LEAST_AREA = 16
"""Network pixels of an object's largest frame; smaller ones are no target."""
_UNMASKED_FROM = 0.7
"""Part of the training after which attention is no longer masked."""

Masks = Callable[[View, ImageGeometry], tuple[list[NDArray[np.bool_]], NDArray[np.bool_]]]
"""A view to (the mask of every object in the network's input, the pixels that are known)."""


class MaskObjective:
    """Mask classification on stills and clips.

    Args:
        decoder: the head.
    """

    def __init__(self, decoder: nn.Module) -> None:
        assert isinstance(decoder, MaskClassificationDecoder)
        self._network = decoder.mask_decoder

    def target(self, sample: Sample, views: Sequence[View], places: Sequence[ImageGeometry]) -> MaskTarget:
        """As in `Objective`; crowds are left out, and objects that are specks in every frame."""
        labels, masks_of = _objects(sample)
        masks, known = [], []
        for view, place in zip(views, places, strict=True):
            of_frame, known_here = masks_of(view, place)
            masks.append(np.stack(of_frame) if of_frame else np.zeros((0, *place.input_size), dtype=bool))
            known.append(known_here)
        stacked = np.stack(masks)
        large = stacked.sum(axis=(2, 3)).max(axis=0, initial=0) >= LEAST_AREA
        extents = tuple(
            (place.scaled_size[0] / place.input_size[0], place.scaled_size[1] / place.input_size[1]) for place in places
        )
        kept = torch.tensor(labels, dtype=torch.int64)[torch.from_numpy(large)]
        return MaskTarget(kept, torch.from_numpy(stacked[:, large]), torch.from_numpy(np.stack(known)), extents)

    def losses(
        self, frames: Sequence[EncoderFeatures], targets: Sequence[MaskTarget], progress: float
    ) -> dict[str, Tensor]:
        """As in `Objective`."""
        probability = max(0.0, 1 - progress / _UNMASKED_FROM) ** 0.9
        probabilities = [probability] * len(self._network.blocks)
        of_frames: list[list[tuple[Tensor, Tensor]]] = []
        queries = None
        for features in frames:
            with mixed_precision(features):
                if isinstance(self._network, OnlineMaskDecoder):
                    predictions, queries = self._network.step_masked(features, probabilities, queries)
                else:
                    predictions = self._network.forward_masked(features, probabilities)
            of_frames.append(predictions)
        total: dict[str, Tensor] = {}
        device = of_frames[0][0][0].device
        wanted = [target.to(device) for target in targets]
        for of_block in zip(*of_frames, strict=True):
            masks = torch.stack([mask_logits.float() for mask_logits, _ in of_block], dim=1)
            classes = torch.stack([class_logits.float() for _, class_logits in of_block], dim=1)
            for name, loss in set_loss(masks, classes, wanted).items():
                total[name] = total[name] + loss if name in total else loss
        return total


def _objects(sample: Sample) -> tuple[list[int], Masks]:
    """The labels of a sample's objects, and their masks in a view; reads the truth once for all frames of a clip."""
    match sample:
        case PanopticSample():
            segment_map, segment_labels, crowd_ids = sample.read_segments()
            segments = {i: label for i, label in segment_labels.items() if i not in crowd_ids}
            return list(segments.values()), _by_id(segment_map, list(segments), padding=0, ignored=None)
        case SemanticSample():
            label_map = sample.read_label_map()
            labels = [label for label in np.unique(label_map).tolist() if label != IGNORE]
            return labels, _by_id(label_map, labels, padding=IGNORE, ignored=IGNORE)
        case InstanceSample():
            objects = [each for each in sample.read_masks() if not each.is_crowd]
            masks = [each.mask.decode() for each in objects]
            return [each.label_id for each in objects], lambda view, place: (
                [place_mask(mask, view, place) for mask in masks],
                _picture(place),
            )
    raise TypeError(f"{type(sample).__name__} has no masks to learn")


def _by_id(map_: NDArray[np.int32], ids: list[int], *, padding: int, ignored: int | None) -> Masks:
    def masks_of(view: View, place: ImageGeometry) -> tuple[list[NDArray[np.bool_]], NDArray[np.bool_]]:
        placed = place_labels(map_, view, place, padding)
        known = _picture(place) if ignored is None else placed != ignored
        return [placed == i for i in ids], known

    return masks_of


def _picture(place: ImageGeometry) -> NDArray[np.bool_]:
    inside = np.zeros(place.input_size, dtype=bool)
    inside[: place.scaled_size[0], : place.scaled_size[1]] = True
    return inside


def _settings(spec: EncoderSpec) -> dict[str, Any]:
    return {"out_indices": spread_blocks(spec), "num_queries": 50, "num_blocks": 3}


def _panoptic_settings(spec: EncoderSpec) -> dict[str, Any]:
    """With little data no score comes near the published thresholds of 0.8."""
    return _settings(spec) | {"score_threshold": 0.3, "overlap_threshold": 0.6}


_STILLS = Schedule(views_per_picture=10, least_side=0.4, steps=800, batch_size=4, learning_rate=6e-4)
_CLIPS = Schedule(views_per_picture=4, least_side=0.5, steps=800, batch_size=2, learning_rate=6e-4)
_FRAMES = 3

PANOPTIC = Recipe("panoptic", _STILLS, _panoptic_settings, MaskObjective)
INSTANCE = Recipe("instance", _STILLS, _settings, MaskObjective)
SEMANTIC = Recipe("semantic", _STILLS, _settings, MaskObjective)
VIDEO_PANOPTIC = Recipe("panoptic", _CLIPS, _panoptic_settings, MaskObjective, _FRAMES)
VIDEO_INSTANCE = Recipe("instance", _CLIPS, _settings, MaskObjective, _FRAMES)
VIDEO_SEMANTIC = Recipe("semantic", _CLIPS, _settings, MaskObjective, _FRAMES)
