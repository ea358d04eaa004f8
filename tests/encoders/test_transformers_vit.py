"""Other models of transformers behind our contract: tokens equal to their own, and a head of ours runs on them."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from decoders.depth import DepthDecoder
from encoders.base import Encoder
from encoders.checkpoints import load_encoder
from encoders.key_map import CheckpointError
from encoders.transformers_vit import TransformersEncoder, load_transformers_encoder

DEPTH = 3
SIZES = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
PICTURES = {"image_size": 32, "patch_size": 8}
PLAIN = SIZES | PICTURES | {"intermediate_size": 64}
TEXT = SIZES | {"intermediate_size": 64, "vocab_size": 9, "max_position_embeddings": 4}
MODELS: dict[str, tuple[int, Callable[[], Any]]] = {
    "vit": (1, lambda: transformers.ViTModel(transformers.ViTConfig(**PLAIN))),
    "clip": (1, lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**PLAIN))),
    "siglip": (0, lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**PLAIN))),
    "siglip_with_text": (
        0,
        lambda: transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=PLAIN)),
    ),
    "dinov2": (1, lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, **PICTURES))),
    "dinov3": (5, lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**PLAIN, num_register_tokens=4))),
    "radio": (10, lambda: transformers.RadioModel(transformers.RadioConfig(**SIZES, **PICTURES, max_img_size=64))),
}
"""Number of prefix tokens, and a tiny model."""
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def make(name: str) -> Any:
    """One of `MODELS` with seeded weights and biases that are not zero."""
    model = MODELS[name][1]().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def save(model: Any, directory: Path, **facts: Any) -> Path:
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD} | facts))
    return directory


def constant(channels: tuple[float, float, float]) -> Tensor:
    """A value per colour channel, to be applied to [B, 3, H, W]."""
    return torch.tensor(channels).view(1, 3, 1, 1)


@pytest.mark.parametrize("grid", [(4, 4), (2, 3), (5, 7)], ids=lambda grid: f"{grid[0]}x{grid[1]}")
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_tokens_are_the_models_own(tmp_path: Path, name: str, grid: tuple[int, int]) -> None:
    model = make(name)
    encoder = load_transformers_encoder(save(model, tmp_path))
    images = torch.rand(2, 3, 8 * grid[0], 8 * grid[1])
    features = encoder(images, range(DEPTH), range(DEPTH))
    vision = getattr(model, "vision_model", model)
    options = {} if name in ("dinov2", "dinov3", "radio") else {"interpolate_pos_encoding": True}
    pixels = images if name == "radio" else (images - constant(MEAN)) / constant(STD)
    expected = vision(pixels, output_hidden_states=True, **options)
    assert features.grid_size == grid
    for index in range(DEPTH):
        hidden = expected.hidden_states[index + 1]
        if (name, index) != ("vit", DEPTH - 1):  # there, transformers gives the normed tokens in place of these
            torch.testing.assert_close(features.hidden_state(index), hidden, atol=1e-5, rtol=0)
    last = features.tokens(DEPTH - 1)
    torch.testing.assert_close(
        vision.post_layernorm(expected.last_hidden_state) if name == "clip" else expected.last_hidden_state,
        last,
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("name", MODELS)
def test_spec_and_standardisation_are_read_from_the_directory(tmp_path: Path, name: str) -> None:
    encoder = load_transformers_encoder(save(make(name), tmp_path))
    assert (encoder.spec.embed_dim, encoder.spec.depth, encoder.spec.num_heads) == (32, DEPTH, 4)
    assert (encoder.spec.patch_size, encoder.spec.num_prefix_tokens) == (8, MODELS[name][0])
    assert encoder.spec.name.endswith("_32x3_patch8")
    assert len(encoder.spec.revision) == 12
    if name != "radio":
        assert (encoder.pixel_mean, encoder.pixel_std) == (MEAN, STD)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


def test_radio_standardises_by_its_own_constants_and_once(tmp_path: Path) -> None:
    model = make("radio")
    own = tuple(model.config.norm_mean), tuple(model.config.norm_std)
    encoder = load_transformers_encoder(save(model, tmp_path, do_normalize=False))
    torch.testing.assert_close(torch.tensor((encoder.pixel_mean, encoder.pixel_std)), torch.tensor(own))


@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_the_adapter_and_our_own_forward_agree(tmp_path: Path, name: str) -> None:
    save(make(name), tmp_path)
    theirs, ours = load_transformers_encoder(tmp_path), load_encoder(tmp_path, num_heads=4)
    images = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8)
    first, second = theirs(images, range(DEPTH), [0]), ours(images, range(DEPTH), [0])
    assert theirs.spec.revision == ours.spec.revision
    assert theirs.spec.num_prefix_tokens == ours.spec.num_prefix_tokens
    torch.testing.assert_close(first.hidden_state(0), second.hidden_state(0), atol=1e-5, rtol=0)
    for index in range(DEPTH):
        torch.testing.assert_close(first.tokens(index), second.tokens(index), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_a_head_of_ours_runs_on_it(tmp_path: Path, name: str) -> None:
    encoder: Encoder = load_transformers_encoder(save(make(name), tmp_path))
    head = DepthDecoder(encoder.spec, out_indices=[0, 2], hidden_dim=8, num_bins=4).eval()
    raw = head(encoder(torch.randint(0, 256, (2, 3, 24, 32), dtype=torch.uint8), head.out_indices))
    assert all(len(tensor) == 2 and tensor.isfinite().all() for tensor in raw.values())


@pytest.fixture
def encoder() -> TransformersEncoder:
    """SigLIP with seeded weights."""
    return TransformersEncoder(make("siglip"), "siglip", "r", (MEAN, STD))


def test_blocks_after_the_last_one_asked_do_not_run(encoder: TransformersEncoder) -> None:
    ran: list[int] = []
    for index, block in enumerate(encoder.model.encoder.layers):
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    features = encoder(torch.rand(1, 3, 16, 16), [0], [1])
    assert ran == [0, 1]
    assert (list(features.lateral_features), list(features.hidden_states)) == ([0], [1])


def test_bytes_and_unit_floats_of_one_picture_give_equal_features(encoder: TransformersEncoder) -> None:
    images = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    torch.testing.assert_close(encoder(images, [2]).tokens(2), encoder(images.float() / 255, [2]).tokens(2))


def test_the_model_itself_still_runs_to_its_end(encoder: TransformersEncoder) -> None:
    encoder(torch.rand(1, 3, 16, 16), [0])
    assert encoder.model(torch.rand(1, 3, 32, 32)).pooler_output.shape == (1, 32)


def test_passes_in_several_threads_do_not_mix(encoder: TransformersEncoder) -> None:
    pictures = [torch.rand(1, 3, 16, 8 * width) for width in (1, 2, 3, 4)] * 5
    alone = [encoder(picture, [index % 3]).tokens(index % 3) for index, picture in enumerate(pictures)]
    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(encoder, picture, [index % 3]) for index, picture in enumerate(pictures)]
        together = [run.result() for run in runs]
    for index, (features, expected) in enumerate(zip(together, alone, strict=True)):
        assert list(features.lateral_features) == [index % 3]
        torch.testing.assert_close(features.tokens(index % 3), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_the_tokens_of_float32_within_its_precision(
    encoder: TransformersEncoder, dtype: torch.dtype
) -> None:
    images = torch.rand(1, 3, 24, 32)
    exact = encoder(images, [2]).tokens(2)
    rounded = encoder.to(dtype)(images, [2]).tokens(2)
    assert rounded.dtype == dtype
    assert (rounded.float() - exact).norm() <= 4 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 17, 16)])
def test_images_of_a_wrong_shape_are_refused(encoder: TransformersEncoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        encoder(torch.rand(shape), [0])


@pytest.mark.parametrize("indices", [[3], [-1], []])
def test_taps_outside_the_encoder_are_refused(encoder: TransformersEncoder, indices: list[int]) -> None:
    with pytest.raises(ValueError, match="out_indices"):
        encoder(torch.rand(1, 3, 16, 16), indices)


NO_VIT: dict[str, tuple[Callable[[], Any], str]] = {
    "flexible_siglip2": (
        lambda: transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**PLAIN)),
        "needs more than pictures: pixel_attention_mask, pixel_values, spatial_shapes",
    ),
    "masked_autoencoder": (lambda: transformers.ViTMAEModel(transformers.ViTMAEConfig(**PLAIN)), "of 4 patches"),
    "fixed_grid": (
        lambda: transformers.Aimv2VisionModel(transformers.Aimv2VisionConfig(**PLAIN)),
        "can't encode 2 x 2 patches",
    ),
    "convolutions": (
        lambda: transformers.ResNetModel(transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])),
        "is no ViT",
    ),
    "text": (
        lambda: transformers.SiglipTextModel(transformers.SiglipTextConfig(**TEXT)),
        "needs more than pictures|is no ViT",
    ),
}


@pytest.mark.parametrize("name", NO_VIT)
def test_models_of_another_kind_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    model, reason = NO_VIT[name]
    with pytest.raises(ValueError, match=reason):
        TransformersEncoder(model(), name, "r", (MEAN, STD))


def test_a_directory_without_standardisation_needs_it(tmp_path: Path) -> None:
    make("vit").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="needs the mean and standard deviation"):
        load_transformers_encoder(tmp_path)
    assert load_transformers_encoder(tmp_path, standardisation=(MEAN, STD)).pixel_mean == MEAN


@pytest.mark.parametrize("part", ["encoder.layer.1.attention.attention.key.bias", "layernorm.weight"])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_weights_that_are_missing_or_of_another_size_are_refused(tmp_path: Path, part: str, damage: str) -> None:
    file = save(make("vit"), tmp_path) / "model.safetensors"
    weights = load_file(file)
    whole = weights.pop(part)
    save_file(weights if damage == "missing" else weights | {part: whole[:-1].clone()}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match="weights"):
        load_transformers_encoder(tmp_path)


def test_the_pooler_may_be_missing(tmp_path: Path) -> None:
    file = save(make("vit"), tmp_path) / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if not n.startswith("pooler")}, file, {"format": "pt"})
    assert load_transformers_encoder(tmp_path).spec.depth == DEPTH


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    save(make("vit"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    with pytest.raises(CheckpointError, match="transformers can't read"):
        load_transformers_encoder(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_pickle_alone_is_not_read(tmp_path: Path) -> None:
    weights = load_file(save(make("vit"), tmp_path) / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="transformers can't read"):
        load_transformers_encoder(tmp_path)


@pytest.mark.parametrize("name", ["absent", "."])
def test_an_absent_model_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no transformers model at "):
        load_transformers_encoder(tmp_path / name)


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'polyhead\[transformers\]'"):
        load_transformers_encoder(tmp_path)


def test_a_module_of_ours_satisfies_the_contract_too(make_encoder: Callable[..., Any]) -> None:
    encoder: Encoder = make_encoder()
    assert encoder.pixel_mean == (0.485, 0.456, 0.406)
    assert isinstance(encoder, nn.Module)
