"""Which recipe trains which head."""

from __future__ import annotations

from decoders.training.recipes.class_map import LINEAR_PANOPTIC, LINEAR_SEMANTIC
from decoders.training.recipes.classification import LINEAR_CLASSIFICATION, PROTOTYPES
from decoders.training.recipes.depth import DEPTH, DPT_DEPTH, LINEAR_DEPTH
from decoders.training.recipes.masks import (
    INSTANCE,
    PANOPTIC,
    SEMANTIC,
    VIDEO_INSTANCE,
    VIDEO_PANOPTIC,
    VIDEO_SEMANTIC,
)
from decoders.training.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    "panoptic": PANOPTIC,
    "instance": INSTANCE,
    "semantic": SEMANTIC,
    "video_panoptic": VIDEO_PANOPTIC,
    "video_instance": VIDEO_INSTANCE,
    "video_semantic": VIDEO_SEMANTIC,
    "depth": DEPTH,
    "dpt_depth": DPT_DEPTH,
    "linear_depth": LINEAR_DEPTH,
    "linear_semantic": LINEAR_SEMANTIC,
    "linear_panoptic": LINEAR_PANOPTIC,
    "linear_instance": LINEAR_PANOPTIC,
    "linear_classification": LINEAR_CLASSIFICATION,
    "prototypes": PROTOTYPES,
}
"""By the name that a head is registered under."""


def recipe_for(decoder: str) -> Recipe:
    """The recipe of a registered head.

    Raises:
        ValueError: there is none; names those there are.
    """
    if decoder not in RECIPES:
        raise ValueError(f"no recipe trains decoder '{decoder}'; there are recipes for {', '.join(RECIPES)}")
    return RECIPES[decoder]
