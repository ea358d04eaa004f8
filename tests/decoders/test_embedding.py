"""Embeddings: a picture's vector, and its grid of vectors without padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from decoders.base import Decoder, PostprocessOptions
from decoders.embedding import DenseEmbeddingDecoder, EmbeddingDecoder
from encoders.features import EncoderFeatures
from encoders.geometry import FitGeometry, ImageGeometry
from encoders.vit import VisionTransformer

FULL = FitGeometry(16, 24).place((16, 24))
UPRIGHT = FitGeometry(16, 24).place((40, 25))  # scaled to 16 x 10: the third column of patches is padding
OPTIONS = PostprocessOptions()


@pytest.fixture
def features(tiny_encoder: VisionTransformer) -> EncoderFeatures:
    with torch.no_grad():
        return tiny_encoder(torch.rand(2, 3, 16, 24), (1, 3))


def vector_of(head: EmbeddingDecoder, features: EncoderFeatures, row: int, geometry: ImageGeometry) -> Tensor:
    raw = head(features)
    result = head.postprocess({name: tensor[row] for name, tensor in raw.items()}, geometry, OPTIONS)
    assert result.vector.dtype == np.float32
    return torch.from_numpy(result.vector)


def test_both_are_decoders_without_weights_that_read_the_last_block(tiny_encoder: VisionTransformer) -> None:
    for head, kind in (
        (EmbeddingDecoder(tiny_encoder.spec), "embedding"),
        (DenseEmbeddingDecoder(tiny_encoder.spec), "dense_embedding"),
    ):
        assert isinstance(head, Decoder)
        assert head.kind == kind
        assert (head.out_indices, head.hidden_indices, head.takes_windows) == ((3,), (), False)
        assert head.state_dict() == {}


def test_the_vector_is_the_cls_token_scaled_to_length_one(
    tiny_encoder: VisionTransformer, features: EncoderFeatures
) -> None:
    cls = features.tokens(3)[1, 0]
    vector = vector_of(EmbeddingDecoder(tiny_encoder.spec), features, 1, FULL)
    torch.testing.assert_close(vector, cls / cls.norm(), atol=1e-6, rtol=1e-6)
    bare = vector_of(EmbeddingDecoder(tiny_encoder.spec, normalize=False), features, 1, FULL)
    torch.testing.assert_close(bare, cls, atol=0, rtol=0)


def test_cls_stands_before_the_mean_which_leaves_out_padding(
    tiny_encoder: VisionTransformer, features: EncoderFeatures
) -> None:
    head = EmbeddingDecoder(tiny_encoder.spec, pooling="cls+mean", out_index=1, normalize=False)
    assert (head.out_indices, head.dim) == ((1,), 32)
    tokens = features.tokens(1)[0]
    mean = tokens[3:].unflatten(0, (2, 3))[:, :2].mean(dim=(0, 1))
    found = vector_of(head, features, 0, UPRIGHT)
    torch.testing.assert_close(found, torch.cat((tokens[0], mean)), atol=1e-6, rtol=1e-6)


def test_settings_that_name_nothing_are_refused(tiny_encoder: VisionTransformer) -> None:
    with pytest.raises(ValueError, match="no pooling 'max'"):
        EmbeddingDecoder(tiny_encoder.spec, pooling="max")
    with pytest.raises(ValueError, match=r"outside 0\.\.3 of tiny"):
        EmbeddingDecoder(tiny_encoder.spec, out_index=4)
    with pytest.raises(ValueError, match=r"outside 0\.\.3 of tiny"):
        DenseEmbeddingDecoder(tiny_encoder.spec, out_index=-1)


@pytest.mark.parametrize(("geometry", "columns"), [(FULL, 3), (UPRIGHT, 2)])
def test_the_grid_of_vectors_covers_the_picture_without_padding(
    tiny_encoder: VisionTransformer, features: EncoderFeatures, geometry: ImageGeometry, columns: int
) -> None:
    head = DenseEmbeddingDecoder(tiny_encoder.spec)
    result = head.postprocess({"patch_map": head(features)["patch_map"][0]}, geometry, OPTIONS)
    assert result.vectors.dtype == np.float32
    expected = features.patch_tokens(3)[0].unflatten(0, (2, 3))[:, :columns]
    np.testing.assert_array_equal(result.vectors, expected.numpy())


def test_vectors_of_the_grid_are_scaled_to_length_one_if_asked(
    tiny_encoder: VisionTransformer, features: EncoderFeatures
) -> None:
    plain, unit = (DenseEmbeddingDecoder(tiny_encoder.spec, normalize=asked) for asked in (False, True))
    raw = {"patch_map": plain(features)["patch_map"][0]}
    bare, scaled = (head.postprocess(raw, FULL, OPTIONS).vectors for head in (plain, unit))
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(scaled * np.linalg.norm(bare, axis=-1, keepdims=True), bare, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_answers_in_float32(tiny_encoder: VisionTransformer, dtype: torch.dtype) -> None:
    encoder = VisionTransformer(tiny_encoder.config).to(dtype)
    encoder.load_state_dict(tiny_encoder.state_dict())
    features = encoder(torch.rand(1, 3, 16, 24), (3,))
    vector = vector_of(EmbeddingDecoder(encoder.spec, pooling="cls+mean"), features, 0, UPRIGHT)
    torch.testing.assert_close(vector.norm(), torch.tensor(1.0), atol=1e-6, rtol=1e-6)
    dense = DenseEmbeddingDecoder(encoder.spec, normalize=True)
    result = dense.postprocess({"patch_map": dense(features)["patch_map"][0]}, UPRIGHT, OPTIONS)
    np.testing.assert_allclose(np.linalg.norm(result.vectors, axis=-1), 1, rtol=1e-5)


@torch.no_grad()
def test_a_picture_in_a_batch_gets_the_answer_it_gets_alone_and_features_are_only_read(
    tiny_encoder: VisionTransformer,
) -> None:
    images = torch.rand(2, 3, 16, 24)
    head = EmbeddingDecoder(tiny_encoder.spec, pooling="cls+mean")
    together = tiny_encoder(images, head.out_indices)
    before = together.tokens(3).clone()
    for row in range(2):
        alone = tiny_encoder(images[row : row + 1], head.out_indices)
        torch.testing.assert_close(
            vector_of(head, together, row, UPRIGHT), vector_of(head, alone, 0, UPRIGHT), atol=1e-4, rtol=1e-4
        )
    assert torch.equal(together.tokens(3), before)
