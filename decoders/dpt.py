"""Metric depth with a Dense Prediction Transformer head, in the form that DINOv2 publishes.

The head is DPT's (arXiv 2103.13413, section 3 and figure 1) as `dinov2/hub/depth/decode_heads.py` of
facebookresearch/dinov2 builds it. Both publications of its weights load unchanged:

- Meta's ``dinov2_vit{s,b,l,g}14_{nyu,kitti}_dpt_head.pth`` (the tensors in their ``state_dict``). Depth is what the
  network gives, cut off below 0, plus 1 mm, and at most 10 m (NYU) or 80 m (KITTI): `min_depth_m` 0.001, `max_depth_m`
  10 or 80.
- Hugging Face's ``facebook/dpt-dinov2-{small,base,large,giant}-{nyu,kitti}``, the same weights with their encoder.
  `transformers` neither adds the millimetre nor sets an upper bound: `min_depth_m` 0, `max_depth_m` None.

Both read hidden states without the final LayerNorm. Both references pad a picture around its centre to a multiple of
the patch size, at its own resolution, and stretch the padded map to the picture; here the input geometry scales and
pads, and takes the padding off again. On equal network inputs the maps are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from decoders.base import DecoderModule, PostprocessOptions, RawOutput
from decoders.pooling import check_has_cls
from decoders.published import rename, shapes_under, split_off_encoder
from decoders.results import DepthResult
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import ImageGeometry

_LEVELS = 4
_HEAD_DIM = 32

Publisher = Literal["meta", "hugging_face"]


class Reassemble(nn.Module):
    """Tokens of one block to a map: CLS into every patch, fewer channels, another resolution.

    Args:
        embed_dim: of the encoder.
        dim: of the map.
        resize: brings a map of that many channels to the level's resolution.
    """

    def __init__(self, embed_dim: int, dim: int, resize: nn.Module) -> None:
        super().__init__()
        self.readout = nn.Linear(2 * embed_dim, embed_dim)
        self.project = nn.Conv2d(embed_dim, dim, kernel_size=1)
        self.resize = resize

    def forward(self, patches: Tensor, cls: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """Patches [B, N, C] and CLS [B, 1, C] to [B, dim, h, w]."""
        tokens = F.gelu(self.readout(torch.cat((patches, cls.expand_as(patches)), dim=-1)))
        return self.resize(self.project(tokens.transpose(1, 2).unflatten(2, grid_size)))


class ResidualUnit(nn.Module):
    """x + conv3x3(ReLU(conv3x3(ReLU(x)))), without biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, D, h, w] to the same."""
        return maps + self.conv2(F.relu(self.conv1(F.relu(maps))))


class FusionBlock(nn.Module):
    """Add a level to what is fused so far, refine, and double the resolution.

    Args:
        dim: channels.
        is_first: there is nothing yet to add the level to.
    """

    def __init__(self, dim: int, *, is_first: bool) -> None:
        super().__init__()
        self.skip = None if is_first else ResidualUnit(dim)
        self.refine = ResidualUnit(dim)
        self.project = nn.Conv2d(dim, dim, kernel_size=1)

    def forward(self, level: Tensor, fused: Tensor | None) -> Tensor:
        """[B, D, h, w] and what is fused so far, [B, D, h', w'], to [B, D, 2 * h', 2 * w'].

        Sizes differ by one where the grid is odd; then the level is resized.
        """
        if self.skip is not None and fused is not None:
            if level.shape != fused.shape:
                level = F.interpolate(level, size=fused.shape[-2:], mode="bilinear", align_corners=False)
            level = fused + self.skip(level)
        # The reference projects after it upsamples; the two commute, and this way costs a quarter.
        return F.interpolate(self.project(self.refine(level)), scale_factor=2, mode="bilinear", align_corners=True)


class DptDepthDecoder(DecoderModule):
    """Depth from four hidden states, fused from coarse to fine.

    Args:
        spec: of the encoder. Its register tokens, if any, play no part.
        hidden_indices: the four blocks to read: 2, 5, 8, 11 of DINOv2's S and B, 4, 11, 17, 23 of L, 9, 19, 29, 39 of
            g.
        fusion_dim: width of the fused maps.
        min_depth_m: added to the network's value, metres.
        max_depth_m: no answer is larger, metres; None: no bound.

    Raises:
        ValueError: not four blocks, no range of depths, or no CLS token.
    """

    kind: ClassVar[str] = "depth"

    def __init__(
        self,
        spec: EncoderSpec,
        *,
        hidden_indices: Iterable[int],
        fusion_dim: int = 256,
        min_depth_m: float = 0.001,
        max_depth_m: float | None = None,
    ) -> None:
        super().__init__()
        check_has_cls(spec)
        self.hidden_indices = spec.check_out_indices(hidden_indices)
        if len(self.hidden_indices) != _LEVELS:
            raise ValueError(f"a DPT head reads {_LEVELS} blocks, not {list(self.hidden_indices)}")
        if min_depth_m < 0 or (max_depth_m is not None and max_depth_m <= min_depth_m):
            raise ValueError(f"depth range {min_depth_m} .. {max_depth_m} m is not a rising range of metres")
        self.min_depth_m = min_depth_m
        self.max_depth_m = max_depth_m
        dims = [spec.embed_dim // 8, spec.embed_dim // 4, spec.embed_dim // 2, spec.embed_dim]
        resizes = (
            nn.ConvTranspose2d(dims[0], dims[0], kernel_size=4, stride=4),
            nn.ConvTranspose2d(dims[1], dims[1], kernel_size=2, stride=2),
            nn.Identity(),
            nn.Conv2d(dims[3], dims[3], kernel_size=3, stride=2, padding=1),
        )
        self.reassemble = nn.ModuleList(
            Reassemble(spec.embed_dim, dim, resize) for dim, resize in zip(dims, resizes, strict=True)
        )
        self.enter = nn.ModuleList(nn.Conv2d(dim, fusion_dim, kernel_size=3, padding=1, bias=False) for dim in dims)
        self.fusion = nn.ModuleList(FusionBlock(fusion_dim, is_first=number == 0) for number in range(_LEVELS))
        self.project = nn.Conv2d(fusion_dim, fusion_dim, kernel_size=3, padding=1)
        self.head1 = nn.Conv2d(fusion_dim, fusion_dim // 2, kernel_size=3, padding=1)
        self.head2 = nn.Conv2d(fusion_dim // 2, _HEAD_DIM, kernel_size=3, padding=1)
        self.head3 = nn.Conv2d(_HEAD_DIM, 1, kernel_size=1)

    def forward(self, features: EncoderFeatures) -> Mapping[str, Tensor]:
        """``{"depth_m": [B, 1, h, w]}``, metres, float32; h, w are 32 times half the grid, rounded up."""
        num_prefix = features.spec.num_prefix_tokens
        levels = []
        for index, reassemble, enter in zip(self.hidden_indices, self.reassemble, self.enter, strict=True):
            tokens = features.hidden_state(index)
            levels.append(enter(reassemble(tokens[:, num_prefix:], tokens[:, :1], features.grid_size)))
        fused = None
        for block, level in zip(self.fusion, reversed(levels), strict=True):
            fused = block(level, fused)
        maps = self.head1(F.relu(self.project(fused)))
        maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)
        maps = self.head3(F.relu(self.head2(maps)))
        return {"depth_m": (F.relu(maps.float()) + self.min_depth_m).clamp(self.min_depth_m, self.max_depth_m)}

    def postprocess(self, raw: RawOutput, geometry: ImageGeometry, options: PostprocessOptions) -> DepthResult:
        """One picture's depth in its own pixels; there are no options that it heeds."""
        return DepthResult(geometry.to_output(raw["depth_m"])[0].cpu().numpy())

    @classmethod
    def translate(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As in `Decoder`: the names that Meta and Hugging Face publish; the latter's encoder is left out."""
        if any(name.startswith("reassemble.") for name in weights):
            return weights
        _, head = split_off_encoder(weights)
        if any(name.startswith("neck.") for name in head):
            return rename(head, _names("hugging_face"), "DPT depth (Hugging Face)", ignore=_HUGGING_FACE_UNUSED)
        return rename(head, _names("meta"), "DPT depth (Meta)")

    @classmethod
    def carried_encoder(cls, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """As in `Decoder`: Hugging Face's files have theirs inside."""
        return split_off_encoder(weights)[0] or None

    def published_shapes(self, publisher: Publisher = "meta") -> dict[str, torch.Size]:
        """As in `Decoder`; the encoder that Hugging Face's files hold is left out."""
        shapes = shapes_under(_names(publisher), self)
        if publisher == "hugging_face":
            shapes |= dict.fromkeys(_HUGGING_FACE_UNUSED, self.get_parameter("fusion.0.refine.conv1.weight").shape)
        return shapes


_BIASED = {  # our layers, {} the level, to the published ones
    "reassemble.{}.readout": {
        "meta": "decode_head.reassemble_blocks.readout_projects.{}.0",
        "hugging_face": "neck.reassemble_stage.readout_projects.{}.0",
    },
    "reassemble.{}.project": {
        "meta": "decode_head.reassemble_blocks.projects.{}.conv",
        "hugging_face": "neck.reassemble_stage.layers.{}.projection",
    },
    "reassemble.{}.resize": {
        "meta": "decode_head.reassemble_blocks.resize_layers.{}",
        "hugging_face": "neck.reassemble_stage.layers.{}.resize",
    },
    "fusion.{}.project": {
        "meta": "decode_head.fusion_blocks.{}.project.conv",
        "hugging_face": "neck.fusion_stage.layers.{}.projection",
    },
    "project": {"meta": "decode_head.project.conv", "hugging_face": "head.projection"},
    "head1": {"meta": "decode_head.conv_depth.head.0", "hugging_face": "head.head.0"},
    "head2": {"meta": "decode_head.conv_depth.head.2", "hugging_face": "head.head.2"},
    "head3": {"meta": "decode_head.conv_depth.head.4", "hugging_face": "head.head.4"},
}
_UNBIASED = {
    "enter.{}": {"meta": "decode_head.convs.{}.conv", "hugging_face": "neck.convs.{}"},
} | {
    f"fusion.{{}}.{ours}.conv{number}": {
        "meta": f"decode_head.fusion_blocks.{{}}.res_conv_unit{unit}.conv{number}.conv",
        "hugging_face": f"neck.fusion_stage.layers.{{}}.residual_layer{unit}.convolution{number}",
    }
    for unit, ours in ((1, "skip"), (2, "refine"))
    for number in (1, 2)
}
_ABSENT = ("reassemble.2.resize", "fusion.0.skip.conv1", "fusion.0.skip.conv2")
"""What the pattern has and the head hasn't: one level keeps the grid's resolution, the first block adds to nothing."""
_HUGGING_FACE_UNUSED = tuple(f"neck.fusion_stage.layers.0.residual_layer1.convolution{i}.weight" for i in (1, 2))
"""Saved all the same, at its random start: `transformers` gives the first block a unit that never runs."""


def _names(publisher: Publisher) -> dict[str, str]:
    """Published name to ours, of every tensor of a head."""
    return {
        f"{published[publisher].format(level)}.{kind}": f"{ours.format(level)}.{kind}"
        for layers, kinds in ((_BIASED, ("weight", "bias")), (_UNBIASED, ("weight",)))
        for ours, published in layers.items()
        for level in range(_LEVELS)
        if ours.format(level) not in _ABSENT
        for kind in kinds
    }
