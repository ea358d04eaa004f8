"""Metric depth from patch features: lateral sum, a small convolutional refiner, and a mixture over depth bins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decoders.base import DecoderModule, PostprocessOptions, RawOutput
from decoders.results import DepthResult
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry


class DepthLateral(nn.Module):
    """One level's way into the head: batch norm (LayerNormed tokens' channels differ a hundredfold), then linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim)
        self.linear = nn.Linear(dim, hidden_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, C] to [B, N, D]."""
        return self.linear(self.norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2]))


class ResidualConv(nn.Module):
    """x + conv3x3(GELU(conv3x3(GELU(x))))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, D, h, w] to the same."""
        return maps + self.conv2(F.gelu(self.conv1(F.gelu(maps))))


class DepthDecoder(DecoderModule):
    """Depth as the expectation over fixed bins, spaced evenly in the logarithm (after AdaBins, arXiv 2011.14141).

    Args:
        spec: of the encoder.
        out_indices: blocks to read.
        hidden_dim: width of the refiner.
        num_bins: depth bins.
        min_depth_m, max_depth_m: centres of the first and last bin, in metres; no answer lies outside.
    """

    kind: ClassVar[str] = "depth"

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        out_indices: Iterable[int],
        hidden_dim: int = 128,
        num_bins: int = 64,
        min_depth_m: float = 0.3,
        max_depth_m: float = 10.0,
    ) -> None:
        super().__init__()
        if not 0 < min_depth_m < max_depth_m:
            raise ValueError(f"depth range {min_depth_m} .. {max_depth_m} m is not a rising range of positive metres")
        self.out_indices = spec.check_out_indices(out_indices)
        self.laterals = nn.ModuleList(DepthLateral(spec.embed_dim, hidden_dim) for _ in self.out_indices)
        self.refine = ResidualConv(hidden_dim)
        self.refine_fine = ResidualConv(hidden_dim)
        self.bin_head = nn.Conv2d(hidden_dim, num_bins, kernel_size=1)
        self._log_range = (math.log(min_depth_m), math.log(max_depth_m), num_bins)

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """``{"depth_m": [B, 1, 2 * grid_h, 2 * grid_w]}``, metres."""
        levels = (
            lateral(features.patch_tokens(index))
            for lateral, index in zip(self.laterals, self.out_indices, strict=True)
        )
        summed = sum(
            levels, start=torch.zeros((), device=self.bin_head.weight.device, dtype=self.bin_head.weight.dtype)
        )
        maps = self.refine(summed.transpose(1, 2).unflatten(2, features.grid_size))
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        weights = self.bin_head(F.gelu(self.refine_fine(maps))).float().softmax(dim=1)
        return {"depth_m": torch.einsum("bkhw,k->bhw", weights, self.bin_centres_m(weights.device))[:, None]}

    def bin_centres_m(self, device: torch.device | str = "cpu") -> Tensor:
        """[K] float32 whatever the weights are: half precision would cost depths their third digit."""
        return torch.linspace(*self._log_range, device=device).exp()

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> DepthResult:
        """One picture's depth in its own pixels; there are no options that it heeds."""
        return DepthResult(geometry.to_output(raw["depth_m"])[0].cpu().numpy())
