"""Few-shot classification: classes are the mean directions of their examples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from decoders.base import Decoder, PostprocessOptions
from decoders.labels import Label, LabelSet
from decoders.prototypes import PrototypeDecoder
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.geometry import FitGeometry, ImageGeometry
from encoders.key_map import CheckpointError, fill
from encoders.vit import VisionTransformer

FULL = FitGeometry(16, 24).place((16, 24))
UPRIGHT = FitGeometry(16, 24).place((40, 25))  # scaled to 16 x 10: the third column of patches is padding
OPTIONS = PostprocessOptions()
TWO = LabelSet("two", (Label(0, "cat", True, (1, 1, 1)), Label(1, "dog", True, (2, 2, 2))))


@pytest.fixture
def features(tiny_encoder: VisionTransformer) -> EncoderFeatures:
    with torch.no_grad():
        return tiny_encoder(torch.rand(6, 3, 16, 24), (1, 3))


def taught(spec: EncoderSpec, features: EncoderFeatures, pooling: str = "cls", **settings: float) -> PrototypeDecoder:
    """Rows 0 to 2 are examples of the first class, rows 3 and 4 of the second."""
    head = PrototypeDecoder(spec, label_set=TWO, pooling=pooling, **settings)  # type: ignore[arg-type]
    for label_id, rows in ((0, (0, 1)), (1, (3, 4)), (0, (2,))):
        head.learn(features.rows(rows, (3,), copy=False), [FULL] * len(rows), label_id)
    head.finalize()
    return head


def scores(head: PrototypeDecoder, features: EncoderFeatures, row: int, geometry: ImageGeometry = FULL) -> Tensor:
    raw = {name: tensor[row] for name, tensor in head(features).items()}
    classes = head.postprocess(raw, geometry, OPTIONS).classes
    return torch.tensor([found.score for found in sorted(classes, key=lambda found: found.label_id)])


def directions(features: EncoderFeatures, pooling: str) -> Tensor:
    cls, mean = features.tokens(3)[:, 0], features.tokens(3)[:, 3:].mean(dim=1)
    return F.normalize({"cls": cls, "mean": mean, "cls+mean": torch.cat((cls, mean), dim=1)}[pooling], dim=1)


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_a_class_is_the_mean_direction_of_its_examples_however_they_come(
    tiny_encoder: VisionTransformer, features: EncoderFeatures, pooling: str
) -> None:
    unit = directions(features, pooling)
    expected = F.normalize(torch.stack([unit[:3].mean(dim=0), unit[3:5].mean(dim=0)]), dim=1)
    found = taught(tiny_encoder.spec, features, pooling).prototypes
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_scores_are_the_softmax_of_cosines_over_the_temperature(
    tiny_encoder: VisionTransformer, features: EncoderFeatures, temperature: float
) -> None:
    head = taught(tiny_encoder.spec, features, temperature=temperature)
    cosines = F.cosine_similarity(head.prototypes, features.tokens(3)[5, 0][None], dim=1)
    torch.testing.assert_close(scores(head, features, 5), (cosines / temperature).softmax(dim=0), atol=1e-5, rtol=0)


def test_an_example_on_its_own_is_recognised(tiny_encoder: VisionTransformer, features: EncoderFeatures) -> None:
    head = PrototypeDecoder(tiny_encoder.spec, label_set=TWO)
    for label_id, row in ((0, 0), (1, 3)):
        head.learn(features.rows((row,), (3,), copy=False), [FULL], label_id)
    head.finalize()
    assert scores(head, features, 0).argmax() == 0
    assert scores(head, features, 3).argmax() == 1


def test_padding_counts_neither_in_examples_nor_in_pictures(
    tiny_encoder: VisionTransformer, features: EncoderFeatures
) -> None:
    def prototypes_and_scores() -> tuple[Tensor, Tensor]:
        head = PrototypeDecoder(tiny_encoder.spec, label_set=TWO, pooling="mean")
        head.learn(features.rows((0,), (3,), copy=False), [UPRIGHT], 0)
        head.learn(features.rows((1,), (3,), copy=False), [UPRIGHT], 1)
        head.finalize()
        return head.prototypes, scores(head, features, 5, UPRIGHT)

    before = prototypes_and_scores()
    features.patch_tokens(3).unflatten(1, (2, 3))[:, :, 2] = 50
    for found, expected in zip(prototypes_and_scores(), before, strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_classes_without_an_example_are_named(tiny_encoder: VisionTransformer, features: EncoderFeatures) -> None:
    head = PrototypeDecoder(tiny_encoder.spec, label_set=TWO)
    with pytest.raises(ValueError, match="no example of cat, dog; every class needs at least one picture"):
        head.finalize()
    head.learn(features, [FULL] * 6, 0)
    with pytest.raises(ValueError, match="no example of dog;"):
        head.finalize()


def test_prototypes_from_a_file_need_no_examples_and_learned_ones_take_their_place(
    tiny_encoder: VisionTransformer, features: EncoderFeatures
) -> None:
    saved = taught(tiny_encoder.spec, features).state_dict()
    assert saved.keys() == {"prototypes"}
    head = PrototypeDecoder(tiny_encoder.spec, label_set=TWO)
    fill(head, PrototypeDecoder.translate(saved), "prototypes.safetensors")
    head.finalize()
    assert torch.equal(head.prototypes, saved["prototypes"])
    head.learn(features.rows((5,), (3,), copy=False), [FULL], 1)
    head.finalize()
    assert torch.equal(head.prototypes[0], saved["prototypes"][0])
    torch.testing.assert_close(head.prototypes[1], directions(features, "cls")[5], atol=1e-6, rtol=0)


def test_prototypes_of_other_classes_or_another_pooling_do_not_fit(
    tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    saved = PrototypeDecoder(tiny_encoder.spec, label_set=TWO, pooling="cls+mean").state_dict()
    with pytest.raises(CheckpointError, match=r"prototypes is \[2, 32\], not \[5, 16\]"):
        fill(PrototypeDecoder(tiny_encoder.spec, label_set=label_set), saved, "prototypes.safetensors")


def test_an_example_of_no_class_or_without_its_geometry_is_refused(
    tiny_encoder: VisionTransformer, features: EncoderFeatures
) -> None:
    head = PrototypeDecoder(tiny_encoder.spec, label_set=TWO)
    with pytest.raises(ValueError, match="class 2 is none of the 2 of 'two'"):
        head.learn(features, [FULL] * 6, 2)
    with pytest.raises(ValueError, match="shorter"):
        head.learn(features, [FULL], 0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"pooling": "max"}, "no pooling 'max'"),
        ({"out_index": 4}, r"outside 0\.\.3 of tiny"),
    ],
)
def test_settings_out_of_range_are_refused(
    tiny_encoder: VisionTransformer, settings: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        PrototypeDecoder(tiny_encoder.spec, label_set=TWO, **settings)  # type: ignore[arg-type]


def test_the_head_is_a_decoder_and_answers_with_its_top_classes(
    tiny_encoder: VisionTransformer, features: EncoderFeatures
) -> None:
    before = features.tokens(3).clone()
    head = taught(tiny_encoder.spec, features, top_k=1)
    assert isinstance(head, Decoder)
    assert (head.kind, head.out_indices, head.takes_windows) == ("classification", (3,), False)
    raw = head(features)
    result = head.postprocess({name: tensor[0] for name, tensor in raw.items()}, FULL, OPTIONS)
    assert len(result.classes) == 1
    assert result.classes[0].label in ("cat", "dog")
    assert torch.equal(features.tokens(3), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(
    tiny_encoder: VisionTransformer, features: EncoderFeatures, dtype: torch.dtype
) -> None:
    expected = scores(taught(tiny_encoder.spec, features, "cls+mean"), features, 5)
    half = EncoderFeatures(tiny_encoder.spec, features.grid_size, {3: features.tokens(3).to(dtype)})
    head = taught(tiny_encoder.spec, half, "cls+mean").to(dtype)
    torch.testing.assert_close(scores(head, half, 5), expected, atol=0.03, rtol=0)
