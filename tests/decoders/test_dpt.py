"""The DPT depth head: equal to `transformers` on equal inputs, and open to both publications of its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Dinov2Config, DPTConfig, DPTForDepthEstimation

from decoders.base import Decoder, PostprocessOptions
from decoders.dpt import DptDepthDecoder
from decoders.published import split_off_encoder
from encoders.checkpoints import build_encoder
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry
from encoders.key_map import CheckpointError, fill
from encoders.vit import VisionTransformer

SPECS = {
    "small": EncoderSpec("dinov2_vits14", "none", 384, 12, 6, 14, 1),
    "base": EncoderSpec("dinov2_vitb14", "none", 768, 12, 12, 14, 1),
    "large": EncoderSpec("dinov2_vitl14", "none", 1024, 24, 16, 14, 1),
    "giant": EncoderSpec("dinov2_vitg14", "none", 1536, 40, 24, 14, 1),
}
TAPS = {"small": [2, 5, 8, 11], "base": [2, 5, 8, 11], "large": [4, 11, 17, 23], "giant": [9, 19, 29, 39]}
TINY = EncoderSpec("tiny", "random", 16, 4, 2, 14, 1)
TINY_TAPS = (0, 1, 2, 3)
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def reference_config(spec: EncoderSpec, taps: list[int]) -> DPTConfig:
    """As facebook/dpt-dinov2-*; numbers of stages count from 1 after the stem."""
    dim = spec.embed_dim
    backbone = Dinov2Config(
        hidden_size=dim,
        num_hidden_layers=spec.depth,
        num_attention_heads=spec.num_heads,
        image_size=56 if spec is TINY else 518,
        use_swiglu_ffn=dim == 1536,
        out_indices=[index + 1 for index in taps],
        apply_layernorm=False,
        reshape_hidden_states=False,
    )
    return DPTConfig(
        backbone_config=backbone,
        neck_hidden_sizes=[dim // 8, dim // 4, dim // 2, dim],
        use_bias_in_fusion_residual=False,
        add_projection=True,
    )


@pytest.fixture(scope="module")
def reference() -> DPTForDepthEstimation:
    """A tiny DPTForDepthEstimation whose depths are positive nearly everywhere and differ from place to place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = DPTForDepthEstimation(reference_config(TINY, [*TINY_TAPS])).eval().requires_grad_(False)
        for parameter in model.parameters():
            torch.nn.init.normal_(
                parameter, std=0.3 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.3
            )
        for name, parameter in model.named_parameters():
            if ("norm" in name and name.endswith("weight")) or "layer_scale" in name:
                parameter += 1
            if parameter.ndim > 1 and name.startswith(("neck", "head")):
                parameter *= 4
        model.head.head[4].bias.fill_(3)
    return model


@pytest.fixture(scope="module")
def hugging_face_weights(
    reference: DPTForDepthEstimation, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tensor]:
    """As `save_pretrained` writes them, encoder and all."""
    folder: Path = tmp_path_factory.mktemp("dpt")
    reference.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def build(weights: dict[str, Tensor], **settings: float | None) -> DptDepthDecoder:
    head = DptDepthDecoder(TINY, hidden_indices=TINY_TAPS, **settings)
    fill(head, DptDepthDecoder.translate(weights), "these weights")
    return head.eval().requires_grad_(False)


def features_of(reference: DPTForDepthEstimation, pixels: Tensor) -> EncoderFeatures:
    grid_size = (pixels.shape[2] // 14, pixels.shape[3] // 14)
    states = reference.backbone(pixels).feature_maps
    return EncoderFeatures(TINY, grid_size, {}, dict(zip(TINY_TAPS, states, strict=True)))


def meta_form(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What Meta's file would hold: the names of `DPTHead` in facebookresearch/dinov2, written out from its modules."""
    theirs = {"head.projection": "project.conv", "head.head": "conv_depth.head"}
    for i in range(4):
        theirs |= {
            f"neck.reassemble_stage.readout_projects.{i}": f"reassemble_blocks.readout_projects.{i}",
            f"neck.reassemble_stage.layers.{i}.projection": f"reassemble_blocks.projects.{i}.conv",
            f"neck.reassemble_stage.layers.{i}.resize": f"reassemble_blocks.resize_layers.{i}",
            f"neck.convs.{i}": f"convs.{i}.conv",
            f"neck.fusion_stage.layers.{i}.projection": f"fusion_blocks.{i}.project.conv",
        }
        for unit in (1, 2):
            for conv in (1, 2):
                old = f"neck.fusion_stage.layers.{i}.residual_layer{unit}.convolution{conv}"
                theirs[old] = f"fusion_blocks.{i}.res_conv_unit{unit}.conv{conv}.conv"
    renamed = {}
    for name, tensor in weights.items():
        if not name.startswith(("backbone.", "neck.fusion_stage.layers.0.residual_layer1")):
            layer = next(layer for layer in theirs if name.startswith(f"{layer}."))
            renamed[f"decode_head.{theirs[layer]}{name.removeprefix(layer)}"] = tensor
    return renamed


@torch.no_grad()
@pytest.mark.parametrize("size", [(56, 56), (28, 70), (70, 42), (14, 28)])
def test_depth_is_that_of_transformers_on_the_same_hidden_states(
    reference: DPTForDepthEstimation,
    hugging_face_weights: dict[str, Tensor],
    size: tuple[int, int],
) -> None:
    pixels = torch.randn(2, 3, *size)
    expected = reference(pixels).predicted_depth
    head = build(hugging_face_weights, min_depth_m=0)
    found = head(features_of(reference, pixels))["depth_m"]
    assert expected.std() > 0.05
    assert expected.amin() < expected.amax() - 0.5
    torch.testing.assert_close(found[:, 0], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_encoder_and_head_of_one_file_give_the_depth_of_transformers_on_the_same_pixels(
    reference: DPTForDepthEstimation, hugging_face_weights: dict[str, Tensor]
) -> None:
    pixels = torch.rand(2, 3, 56, 56)
    expected = reference((pixels - MEAN) / STD).predicted_depth
    encoder = build_encoder(split_off_encoder(hugging_face_weights)[0], revision="random", num_heads=2)
    found = build(hugging_face_weights, min_depth_m=0)(encoder(pixels, (), TINY_TAPS))["depth_m"]
    torch.testing.assert_close(found[:, 0], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_metas_form_gives_the_same_network_and_its_range_is_kept(
    reference: DPTForDepthEstimation, hugging_face_weights: dict[str, Tensor]
) -> None:
    pixels = torch.randn(1, 3, 28, 42)
    value = reference(pixels).predicted_depth
    most = value.median().item()
    found = build(meta_form(hugging_face_weights), max_depth_m=most)(features_of(reference, pixels))["depth_m"]
    expected = (value + 0.001).clamp(0.001, most)
    torch.testing.assert_close(found[:, 0], expected, atol=1e-4, rtol=0)
    assert found.max() == pytest.approx(most)


def test_a_value_below_zero_is_the_least_depth(hugging_face_weights: dict[str, Tensor], reference: object) -> None:
    weights = hugging_face_weights | {"head.head.4.bias": torch.tensor([-1e4])}
    assert isinstance(reference, DPTForDepthEstimation)
    depth = build(weights, min_depth_m=0.25)(features_of(reference, torch.randn(1, 3, 28, 28)))["depth_m"]
    torch.testing.assert_close(depth, torch.full_like(depth, 0.25), atol=0, rtol=0)


@pytest.mark.parametrize("size", SPECS)
def test_every_published_head_of_hugging_face_has_a_place_for_every_tensor(size: str) -> None:
    with torch.device("meta"):
        head = DptDepthDecoder(SPECS[size], hidden_indices=TAPS[size])
        published = DPTForDepthEstimation(reference_config(SPECS[size], TAPS[size])).state_dict()
    assert head.hidden_indices == tuple(TAPS[size])
    assert head.published_shapes("hugging_face") == {
        name: tensor.shape for name, tensor in published.items() if not name.startswith("backbone.")
    }
    fill(head, DptDepthDecoder.translate(published), "published")


@pytest.mark.parametrize("size", SPECS)
def test_every_published_head_of_meta_has_a_place_for_every_tensor(size: str) -> None:
    with torch.device("meta"):
        head = DptDepthDecoder(SPECS[size], hidden_indices=TAPS[size], max_depth_m=80)
        shapes = head.published_shapes("hugging_face")
        published = meta_form({name: torch.empty(shape) for name, shape in shapes.items()})
    assert head.published_shapes() == {name: tensor.shape for name, tensor in published.items()}
    fill(head, DptDepthDecoder.translate(published), "published")


def test_metas_names_are_those_that_its_notebook_and_the_converter_to_hugging_face_show() -> None:
    with torch.device("meta"):
        shapes = DptDepthDecoder(SPECS["small"], hidden_indices=TAPS["small"]).published_shapes()
    some = {
        "reassemble_blocks.projects.0.conv.weight": (48, 384, 1, 1),
        "reassemble_blocks.resize_layers.0.weight": (48, 48, 4, 4),
        "reassemble_blocks.resize_layers.1.bias": (96,),
        "reassemble_blocks.resize_layers.3.weight": (384, 384, 3, 3),
        "reassemble_blocks.readout_projects.3.0.weight": (384, 768),
        "convs.2.conv.weight": (256, 192, 3, 3),
        "fusion_blocks.0.project.conv.bias": (256,),
        "fusion_blocks.0.res_conv_unit2.conv1.conv.weight": (256, 256, 3, 3),
        "fusion_blocks.3.res_conv_unit1.conv2.conv.weight": (256, 256, 3, 3),
        "project.conv.weight": (256, 256, 3, 3),
        "conv_depth.head.0.weight": (128, 256, 3, 3),
        "conv_depth.head.2.weight": (32, 128, 3, 3),
        "conv_depth.head.4.weight": (1, 32, 1, 1),
    }
    assert {f"decode_head.{name}": shape for name, shape in some.items()}.items() <= shapes.items()
    # 8 readout, 8 project, 6 resize, 4 convs, 8 + 6 + 8 in the fusion blocks, 2 project, 6 head
    assert len(shapes) == 56


def test_own_names_come_back_as_they_are(hugging_face_weights: dict[str, Tensor]) -> None:
    weights = build(hugging_face_weights).state_dict()
    assert DptDepthDecoder.translate(weights) is weights


def test_a_file_that_is_no_dpt_head_is_refused(hugging_face_weights: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"DPT depth \(Meta\) .*missing: decode_head.*left over: weight"):
        DptDepthDecoder.translate({"weight": torch.zeros(1)})
    short = {name: tensor for name, tensor in hugging_face_weights.items() if name != "neck.convs.1.weight"}
    with pytest.raises(CheckpointError, match=r"DPT depth \(Hugging Face\) .*missing: neck\.convs\.1\.weight$"):
        DptDepthDecoder.translate(short)
    biased = meta_form(hugging_face_weights) | {"decode_head.convs.0.conv.bias": torch.zeros(256)}
    with pytest.raises(CheckpointError, match=r"left over: decode_head\.convs\.0\.conv\.bias$"):
        DptDepthDecoder.translate(biased)


def test_a_head_of_another_size_is_refused_with_the_names(hugging_face_weights: dict[str, Tensor]) -> None:
    wider = DptDepthDecoder(EncoderSpec("wide", "x", 32, 4, 2, 14, 1), hidden_indices=TINY_TAPS)
    with pytest.raises(CheckpointError, match=r"of another shape: enter\.0\.weight is \[256, 2, 3, 3\], not \[256, 4"):
        fill(wider, DptDepthDecoder.translate(hugging_face_weights), "tiny.safetensors")


@pytest.mark.parametrize("taps", [(1, 2, 3), (0, 1, 2, 2)])
def test_only_four_blocks_will_do(taps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="a DPT head reads 4 blocks"):
        DptDepthDecoder(TINY, hidden_indices=taps)


@pytest.mark.parametrize(("least", "most"), [(-1, None), (1, 1), (0.001, 0)])
def test_a_range_that_does_not_rise_is_refused(least: float, most: float | None) -> None:
    with pytest.raises(ValueError, match="not a rising range"):
        DptDepthDecoder(TINY, hidden_indices=TINY_TAPS, min_depth_m=least, max_depth_m=most)


@torch.no_grad()
def test_registers_and_the_normed_tokens_play_no_part_but_cls_does(tiny_encoder: VisionTransformer) -> None:
    head = DptDepthDecoder(tiny_encoder.spec, hidden_indices=TINY_TAPS, fusion_dim=8).eval()
    assert isinstance(head, Decoder)
    assert (head.kind, head.out_indices, head.hidden_indices) == ("depth", (), TINY_TAPS)
    torch.nn.init.constant_(head.head3.bias, 5)
    features = tiny_encoder(torch.rand(1, 3, 16, 24), (), head.hidden_indices)
    before = head(features)["depth_m"]
    for index in TINY_TAPS:
        features.hidden_state(index)[:, 1:3] = 100
    torch.testing.assert_close(head(features)["depth_m"], before, atol=0, rtol=0)
    features.hidden_state(0)[:, 0] += 1
    assert (head(features)["depth_m"] - before).abs().max() > 1e-4


@torch.no_grad()
def test_a_picture_in_a_batch_gets_the_answer_it_gets_alone_and_features_are_only_read(
    reference: DPTForDepthEstimation, hugging_face_weights: dict[str, Tensor]
) -> None:
    head = build(hugging_face_weights)
    pixels = torch.randn(2, 3, 42, 28)
    features = features_of(reference, pixels)
    before = {index: tokens.clone() for index, tokens in features.hidden_states.items()}
    together = head(features)["depth_m"]
    assert all(torch.equal(features.hidden_state(index), tokens) for index, tokens in before.items())
    for row in range(2):
        alone = head(features_of(reference, pixels[row : row + 1]))["depth_m"]
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(tiny_encoder: VisionTransformer, dtype: torch.dtype) -> None:
    head = DptDepthDecoder(tiny_encoder.spec, hidden_indices=TINY_TAPS, fusion_dim=8).eval()
    torch.nn.init.constant_(head.head3.bias, 3)
    features = tiny_encoder(torch.rand(1, 3, 16, 24), (), TINY_TAPS)
    expected = head(features)["depth_m"]
    states = {index: tokens.to(dtype) for index, tokens in features.hidden_states.items()}
    found = head.to(dtype)(EncoderFeatures(tiny_encoder.spec, features.grid_size, {}, states))["depth_m"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.03)


def test_an_encoder_without_a_cls_token_is_refused() -> None:
    with pytest.raises(ValueError, match="the head reads the CLS token, and tiny has none"):
        DptDepthDecoder(replace(TINY, num_prefix_tokens=0), hidden_indices=TINY_TAPS)


def test_result_is_in_the_pixels_of_the_picture_without_its_padding() -> None:
    head = DptDepthDecoder(TINY, hidden_indices=TINY_TAPS, fusion_dim=8)
    geometry = FitGeometry(28, 42).place((56, 42), max_side=40)  # scaled to 28 x 21: the right half is padding
    depth = torch.full((1, 32, 48), 2.0)
    depth[..., 24:] = 9.0
    result = head.postprocess({"depth_m": depth}, geometry, PostprocessOptions())
    assert result.depth_m.shape == (40, 30)
    assert result.depth_m.dtype == np.float32
    np.testing.assert_allclose(result.depth_m[:, :28], 2.0, rtol=1e-6)
    assert result.depth_m.max() < 9
