"""The linear classifier: equal to `transformers` and to Meta's definition, and open to every published form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
)

from decoders.base import Decoder, PostprocessOptions
from decoders.labels import Label, LabelSet
from decoders.linear_classification import LinearClassificationDecoder, top_classes
from decoders.published import split_off_encoder
from decoders.results import ClassificationResult
from encoders.checkpoints import build_encoder
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry, ImageGeometry
from encoders.key_map import CheckpointError, fill
from encoders.vit import VisionTransformer

SIZES = {"vits14": (384, 12), "vitb14": (768, 12), "vitl14": (1024, 24), "vitg14": (1536, 40)}
FULL = FitGeometry(16, 24).place((16, 24))
OPTIONS = PostprocessOptions()
MEAN, STD = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def numbered(num_classes: int) -> LabelSet:
    return LabelSet("numbered", tuple(Label(i, f"class {i}", True, (i, i, i)) for i in range(num_classes)))


def published(dim: int, num_blocks: int, num_classes: int = 5) -> dict[str, Tensor]:
    """As Meta publishes: the state of one nn.Linear."""
    width = dim * (num_blocks + 1)
    return {"weight": 2 * torch.randn(num_classes, width) / width**0.5, "bias": torch.randn(num_classes)}


def build(
    spec: EncoderSpec, weights: dict[str, Tensor], label_set: LabelSet, out_indices: tuple[int, ...], top_k: int = 5
) -> LinearClassificationDecoder:
    head = LinearClassificationDecoder(spec, label_set=label_set, out_indices=out_indices, top_k=top_k)
    fill(head, LinearClassificationDecoder.translate(weights), "these weights")
    return head.eval().requires_grad_(False)


def answer(
    head: LinearClassificationDecoder, features: EncoderFeatures, row: int, geometry: ImageGeometry
) -> ClassificationResult:
    return head.postprocess({name: tensor[row] for name, tensor in head(features).items()}, geometry, OPTIONS)


def scores_of(result: ClassificationResult) -> Tensor:
    """[K], by label id; all classes must be in the answer."""
    return torch.tensor([found.score for found in sorted(result.classes, key=lambda found: found.label_id)])


@torch.no_grad()
@pytest.mark.parametrize("registers", [False, True])
@pytest.mark.parametrize("size", [(56, 56), (28, 70)])
def test_a_file_of_hugging_face_gives_the_probabilities_of_transformers(
    tmp_path: Path,
    label_set: LabelSet,
    registers: bool,
    size: tuple[int, int],
) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    reference = (
        Dinov2WithRegistersForImageClassification(
            Dinov2WithRegistersConfig(**sizes, num_labels=5, num_register_tokens=4)
        )
        if registers
        else Dinov2ForImageClassification(Dinov2Config(**sizes, num_labels=5))
    ).eval()
    for name, parameter in reference.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.5)
    reference.classifier.weight /= 4
    reference.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    inside, _ = split_off_encoder(weights)
    encoder = build_encoder(inside, revision="random", num_heads=2)
    assert encoder.spec.num_prefix_tokens == (5 if registers else 1)
    head = build(encoder.spec, weights, label_set, (2,))
    pixels = torch.rand(2, 3, *size)
    output = reference((pixels - MEAN) / STD, output_hidden_states=True)
    states = (reference.dinov2_with_registers if registers else reference.dinov2).layernorm(output.hidden_states[-1])
    grid_size = (size[0] // 14, size[1] // 14)
    same_states = EncoderFeatures(encoder.spec, grid_size, {2: states})
    for row in range(2):
        expected = output.logits[row].softmax(dim=0)
        found = scores_of(answer(head, same_states, row, FitGeometry(*size).place(size)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        if size == (56, 56):  # the grid of the learned positions: nothing is resampled
            whole = scores_of(answer(head, encoder(pixels, (2,)), row, FitGeometry(*size).place(size)))
            torch.testing.assert_close(whole, expected, atol=1e-4, rtol=0)
    assert (output.logits[0] - output.logits[1]).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("out_indices", [(3,), (0, 1, 2, 3)])
def test_a_file_of_meta_gives_the_probabilities_of_its_definition(
    tiny_encoder: VisionTransformer, label_set: LabelSet, out_indices: tuple[int, ...]
) -> None:
    weights = published(16, len(out_indices))
    head = build(tiny_encoder.spec, weights, label_set, out_indices)
    features = tiny_encoder(torch.rand(2, 3, 16, 24), out_indices)
    cls = [features.tokens(index)[:, 0] for index in out_indices]
    joined = torch.cat([*cls, features.tokens(3)[:, 3:].mean(dim=1)], dim=1)
    expected = (joined @ weights["weight"].T + weights["bias"]).softmax(dim=1)
    for row in range(2):
        found = scores_of(answer(head, features, row, FULL))
        torch.testing.assert_close(found, expected[row], atol=1e-5, rtol=0)


@torch.no_grad()
def test_patches_that_are_all_padding_do_not_count(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    head = build(tiny_encoder.spec, published(16, 1), label_set, (3,))
    features = tiny_encoder(torch.rand(1, 3, 16, 24), (3,))
    geometry = FitGeometry(16, 24).place((40, 25))  # scaled to 16 x 10: the third column of patches is padding
    before = scores_of(answer(head, features, 0, geometry))
    patches = features.patch_tokens(3).unflatten(1, (2, 3))
    patches[:, :, 2] = 50
    torch.testing.assert_close(scores_of(answer(head, features, 0, geometry)), before, atol=0, rtol=0)
    patches[:, :, 1] += 1
    assert (scores_of(answer(head, features, 0, geometry)) - before).abs().max() > 1e-3


def test_an_answer_holds_the_most_probable_classes_in_order(label_set: LabelSet) -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0, 2.0])
    result = top_classes(logits, label_set, 3)
    assert [(found.label_id, found.label) for found in result.classes] == [(1, "cup"), (3, "sky"), (4, "road")]
    probabilities = logits.softmax(dim=0)
    assert [found.score for found in result.classes] == pytest.approx(probabilities[[1, 3, 4]].tolist())
    assert len(top_classes(logits, label_set, 9).classes) == 5


def test_an_answer_of_no_class_is_refused(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    with pytest.raises(ValueError, match="top_k is 0"):
        LinearClassificationDecoder(tiny_encoder.spec, label_set=label_set, out_indices=[3], top_k=0)


@pytest.mark.parametrize("prefix", ["", "linear_head.", "classifier."])
def test_every_published_form_gives_one_head(tiny_encoder: VisionTransformer, label_set: LabelSet, prefix: str) -> None:
    weights = published(16, 1)
    form = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    if prefix:
        form[{"linear_head.": "backbone.cls_token", "classifier.": "dinov2.layernorm.bias"}[prefix]] = torch.ones(16)
    head = build(tiny_encoder.spec, form, label_set, (3,))
    assert torch.equal(head.linear.weight, weights["weight"])
    assert torch.equal(head.linear.bias, weights["bias"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_blocks", [1, 4])
@pytest.mark.parametrize("num_registers", [0, 4])
def test_every_published_head_has_a_place_for_every_tensor(size: str, num_blocks: int, num_registers: int) -> None:
    dim, depth = SIZES[size]
    out_indices = range(depth - num_blocks, depth)
    with torch.device("meta"):
        spec = EncoderSpec(f"dinov2_{size}", "none", dim, depth, 6, 14, 1 + num_registers)
        head = LinearClassificationDecoder(spec, label_set=numbered(1000), out_indices=out_indices)
        weights = published(dim, num_blocks, 1000)
    assert head.out_indices == tuple(out_indices)
    assert head.published_shapes() == {name: tensor.shape for name, tensor in weights.items()}
    fill(head, LinearClassificationDecoder.translate(weights), "published")


@pytest.mark.parametrize("size", SIZES)
def test_every_head_of_hugging_face_has_a_place_for_every_tensor(size: str) -> None:
    dim, depth = SIZES[size]
    sizes = {"hidden_size": dim, "num_hidden_layers": depth, "num_attention_heads": 6, "num_labels": 1000}
    with torch.device("meta"):
        spec = EncoderSpec(f"dinov2_{size}", "none", dim, depth, 6, 14, 1)
        head = LinearClassificationDecoder(spec, label_set=numbered(1000), out_indices=[depth - 1])
        weights = Dinov2ForImageClassification(Dinov2Config(**sizes, use_swiglu_ffn=size == "vitg14")).state_dict()
    theirs = {name: tensor.shape for name, tensor in weights.items() if not name.startswith("dinov2.")}
    assert head.published_shapes("hugging_face") == theirs
    fill(head, LinearClassificationDecoder.translate(weights), "published")


def test_own_names_come_back_as_they_are(tiny_encoder: VisionTransformer, label_set: LabelSet) -> None:
    weights = LinearClassificationDecoder(tiny_encoder.spec, label_set=label_set, out_indices=[3]).state_dict()
    assert LinearClassificationDecoder.translate(weights) is weights


def test_a_file_that_is_no_linear_classifier_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match=r"linear classifier .*missing: weight, bias; left over: head\.fc\.weight"
    ):
        LinearClassificationDecoder.translate({"head.fc.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"missing: classifier\.bias$"):
        LinearClassificationDecoder.translate({"classifier.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("num_blocks", "num_classes", "told"),
    [
        (1, 1000, r"linear\.bias is \[1000\], not \[5\], linear\.weight is \[1000, 32\], not \[5, 32\]"),
        (4, 5, r"linear\.weight is \[5, 80\], not \[5, 32\]"),
    ],
)
def test_a_head_of_other_classes_or_blocks_does_not_fit(
    tiny_encoder: VisionTransformer, label_set: LabelSet, num_blocks: int, num_classes: int, told: str
) -> None:
    with pytest.raises(CheckpointError, match=told):
        build(tiny_encoder.spec, published(16, num_blocks, num_classes), label_set, (3,))


@torch.no_grad()
def test_a_picture_in_a_batch_gets_the_answer_it_gets_alone_and_features_are_only_read(
    tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    head = build(tiny_encoder.spec, published(16, 2), label_set, (1, 3))
    assert isinstance(head, Decoder)
    assert (head.kind, head.out_indices, head.takes_windows) == ("classification", (1, 3), False)
    images = torch.rand(2, 3, 16, 24)
    together = tiny_encoder(images, (1, 3))
    before = {index: tokens.clone() for index, tokens in together.lateral_features.items()}
    scores = [scores_of(answer(head, together, row, FULL)) for row in range(2)]
    assert all(torch.equal(together.tokens(index), tokens) for index, tokens in before.items())
    for row in range(2):
        alone = scores_of(answer(head, tiny_encoder(images[row : row + 1], (1, 3)), 0, FULL))
        torch.testing.assert_close(scores[row], alone, atol=1e-4, rtol=0)
    assert (scores[0] - scores[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(tiny_encoder: VisionTransformer, label_set: LabelSet, dtype: torch.dtype) -> None:
    weights = published(16, 1)
    features = tiny_encoder(torch.rand(1, 3, 16, 24), (3,))
    expected = scores_of(answer(build(tiny_encoder.spec, weights, label_set, (3,)), features, 0, FULL))
    half = EncoderFeatures(tiny_encoder.spec, features.grid_size, {3: features.tokens(3).to(dtype)})
    head = build(tiny_encoder.spec, weights, label_set, (3,)).to(dtype)
    torch.testing.assert_close(scores_of(answer(head, half, 0, FULL)), expected, atol=0.02, rtol=0)
