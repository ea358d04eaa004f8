"""What a bundle's passes and heads cost, counted on the meta device: nothing is loaded, nothing computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from encoders.features import EncoderFeatures
from encoders.vit import VisionTransformer
from serving.planner import EncoderPass, Head, plan, taps

Value = TypeVar("Value")


@dataclass(frozen=True)
class PassCost:
    """One planned encoder pass.

    Attributes:
        planned: its geometry and tasks.
        input_size: (height, width) that the figures are for.
        num_views: network inputs that a 4:3 picture makes; all of them are in the figures.
        encoder_gflops: 2 per multiply-add.
        heads_gflops: by task; None where a head can't be run without data.
    """

    planned: EncoderPass
    input_size: tuple[int, int]
    num_views: int
    encoder_gflops: float
    heads_gflops: Mapping[str, float | None]


def costs(tasks: Iterable[str], heads: Mapping[str, Head], encoder: VisionTransformer) -> list[PassCost]:
    """The passes that `tasks` need and their floating-point work, post-processing not counted.

    Args:
        tasks: of one request.
        heads: by task; modules on the meta device.
        encoder: on the meta device.
    """
    return [_cost(planned, heads, encoder) for planned in plan(tasks, heads)]


def _cost(planned: EncoderPass, heads: Mapping[str, Head], encoder: VisionTransformer) -> PassCost:
    size = planned.geometry.typical_size
    views = planned.geometry.place((480, 640)).num_views
    images = torch.empty((views, 3, *size), device="meta")
    wanted = taps(planned.tasks, heads)

    def encode() -> EncoderFeatures:
        features: EncoderFeatures = encoder(images, wanted.out_indices, wanted.hidden_indices)
        return features

    features, encoder_gflops = _count(encode)
    heads_gflops: dict[str, float | None] = {}
    for task in planned.tasks:
        decoder = heads[task].decoder
        try:
            heads_gflops[task] = _count(lambda decoder=decoder: decoder(features))[1]  # type: ignore[misc]
        except Exception:  # noqa: BLE001  # a head may come from anywhere, and need not run without data
            heads_gflops[task] = None
    return PassCost(planned, size, views, encoder_gflops, heads_gflops)


def _count(run: Callable[[], Value]) -> tuple[Value, float]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        value = run()
    return value, counter.get_total_flops() / 1e9
