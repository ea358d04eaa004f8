"""Names and shapes of published encoders: those that transformers saves, and each with a place in ours."""

from __future__ import annotations

import math
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers.core_model_loading import revert_weight_conversion

from encoders.checkpoints import build_encoder
from encoders.published import PUBLISHED, DINOv2Sizes, DINOv3Sizes, Shapes, published_shapes


def transformers_model(sizes: DINOv2Sizes | DINOv3Sizes, heads: int) -> Any:
    config = {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": heads,
        "patch_size": sizes.patch_size,
    }
    if isinstance(sizes, DINOv3Sizes):
        config |= {"intermediate_size": sizes.mlp_dim, "use_gated_mlp": sizes.gated}
        config |= {"query_bias": sizes.has_bias, "value_bias": sizes.has_bias}
        config |= {"num_register_tokens": sizes.num_registers}
        return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**config))
    config |= {"image_size": math.isqrt(sizes.num_positions) * sizes.patch_size, "use_swiglu_ffn": sizes.gated}
    # A gated MLP has two thirds of the width that `mlp_ratio` says.
    config |= {"mlp_ratio": sizes.mlp_dim * (3 if sizes.gated else 2) // (2 * sizes.width)}
    if not sizes.num_registers:
        return transformers.Dinov2Model(transformers.Dinov2Config(**config))
    config |= {"num_register_tokens": sizes.num_registers}
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**config))


SMALL = {
    "dinov2": DINOv2Sizes(32, 3, 64, num_positions=25),
    "dinov2_gated": DINOv2Sizes(48, 2, 64, gated=True, num_positions=16, patch_size=8),
    "dinov2_registers": DINOv2Sizes(32, 11, 96, num_registers=2, num_positions=9),
    "dinov2_registers_gated": DINOv2Sizes(48, 2, 64, gated=True, num_registers=4, num_positions=9),
    "dinov3": DINOv3Sizes(32, 3, 64),
    "dinov3_gated": DINOv3Sizes(32, 11, 40, gated=True, num_registers=2, patch_size=8),
    "dinov3_gated_without_bias": DINOv3Sizes(32, 2, 64, gated=True, has_bias=False),
}


@pytest.mark.parametrize("name", SMALL)
def test_names_and_shapes_are_those_that_transformers_saves(name: str, tmp_path: Path) -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers_model(SMALL[name], heads=4).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = {key: torch.Size(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert SMALL[name].shapes() == saved


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_sizes_are_those_that_transformers_builds(model: str) -> None:
    encoder = build_encoder(on_meta(published_shapes(model)), revision="r")
    with torch.device("meta"):
        theirs = transformers_model(PUBLISHED[model], encoder.spec.num_heads)
    saved = revert_weight_conversion(theirs, theirs.state_dict())
    assert published_shapes(model) == {name: tensor.shape for name, tensor in saved.items()}


def on_meta(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


NAMES = {
    "facebook/dinov2-small": ("dinov2_vits14", 22_056_576),
    "facebook/dinov2-base": ("dinov2_vitb14", 86_580_480),
    "facebook/dinov2-large": ("dinov2_vitl14", 304_368_640),
    "facebook/dinov2-giant": ("dinov2_vitg14", 1_136_480_768),
    "facebook/dinov2-with-registers-small": ("dinov2_vits14_reg4", 22_058_112),
    "facebook/dinov2-with-registers-base": ("dinov2_vitb14_reg4", 86_583_552),
    "facebook/dinov2-with-registers-large": ("dinov2_vitl14_reg4", 304_372_736),
    "facebook/dinov2-with-registers-giant": ("dinov2_vitg14_reg4", 1_136_486_912),
    "facebook/dinov3-vits16-pretrain-lvd1689m": ("dinov3_vits16", 21_596_544),
    "facebook/dinov3-vits16plus-pretrain-lvd1689m": ("dinov3_vits16plus", 28_692_864),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": ("dinov3_vitb16", 85_660_416),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": ("dinov3_vitl16", 303_129_600),
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": ("dinov3_vith16plus", 840_592_640),
    "facebook/dinov3-vit7b16-pretrain-lvd1689m": ("dinov3_vit7b16", 6_716_035_072),
}
"""Our name, and the numbers in the file. PMT's authors count 21,596,160, 85,659,648 and 303,128,576 for DINOv3 S, B and
L, without the mask token."""


@pytest.mark.parametrize("model", PUBLISHED)
def test_every_published_tensor_has_its_place_in_an_encoder_that_takes_no_memory(model: str) -> None:
    shapes = published_shapes(model)
    name, parameters = NAMES[model]
    assert sum(shape.numel() for shape in shapes.values()) == parameters
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encoder = build_encoder(on_meta(shapes), revision="r")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert encoder.spec.name == name
    assert all(parameter.is_meta for parameter in encoder.parameters())


def test_an_unknown_model_is_refused_with_those_known() -> None:
    with pytest.raises(ValueError, match=r"'facebook/dinov9'; known: facebook/dinov2-small, "):
        published_shapes("facebook/dinov9")
