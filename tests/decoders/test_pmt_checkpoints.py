"""Published decoder checkpoints load unchanged in every form they come in, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from decoders.pmt_checkpoints import load_pmt_decoder
from encoders.features import EncoderSpec
from encoders.key_map import CheckpointError

ReadGolden = Callable[[str], tuple[dict[str, Any], dict[str, Tensor]]]
SPEC = EncoderSpec("dinov2_vit32_reg4", "golden", 32, 6, 4, patch_size=16, num_prefix_tokens=5)
TAPS = (1, 2, 4, 5)
STRIPPED_FOR_PUBLICATION = ("criterion.empty_weight", "network.encoder.pixel_mean", "network.encoder.pixel_std")


@pytest.fixture
def weights(read_golden: ReadGolden) -> dict[str, Tensor]:
    """A checkpoint as the official code saves it."""
    return dict(read_golden("image_dinov2_tiny.ckpt")[1])


def test_sizes_are_read_off_the_shapes(weights: dict[str, Tensor]) -> None:
    decoder = load_pmt_decoder(weights, SPEC, TAPS)
    assert decoder.num_queries == 20
    assert decoder.class_head.out_features == 10 + 1
    assert (len(decoder.blocks), len(decoder.laterals), len(decoder.upscale)) == (3, 4, 2)
    assert decoder.out_indices == TAPS


def test_a_loaded_decoder_is_frozen_and_in_eval_mode(weights: dict[str, Tensor]) -> None:
    decoder = load_pmt_decoder(weights, SPEC, TAPS)
    assert not decoder.training
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_query_key_and_value_are_stacked_and_the_absent_key_bias_is_zero(weights: dict[str, Tensor]) -> None:
    block = load_pmt_decoder(weights, SPEC, TAPS).blocks[2]
    theirs = "network.decoder.blocks.2.attention."
    assert torch.equal(block.attention.qkv.weight, torch.cat([weights[f"{theirs}{n}_proj.weight"] for n in "qkv"]))
    query, value = (weights[f"{theirs}{n}_proj.bias"] for n in "qv")
    assert torch.equal(block.attention.qkv.bias, torch.cat((query, torch.zeros(32), value)))


@pytest.mark.parametrize("form", ["as_saved", "as_published", "compiled"])
def test_every_published_form_gives_one_decoder(weights: dict[str, Tensor], form: str) -> None:
    expected = load_pmt_decoder(weights, SPEC, TAPS).state_dict()
    if form == "as_published":
        assert weights.keys() >= set(STRIPPED_FOR_PUBLICATION)
        weights = {name: tensor for name, tensor in weights.items() if name not in STRIPPED_FOR_PUBLICATION}
    elif form == "compiled":
        weights = {name.replace("network.", "network._orig_mod."): tensor for name, tensor in weights.items()}
    found = load_pmt_decoder(weights, SPEC, TAPS).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_no_weight_of_the_checkpoint_is_lost(weights: dict[str, Tensor]) -> None:
    used = sum(
        tensor.numel()
        for name, tensor in weights.items()
        if name not in (*STRIPPED_FOR_PUBLICATION, "network.decoder.attn_mask_probs")
    )
    decoder = load_pmt_decoder(weights, SPEC, TAPS)
    fused_key_biases = 3 * 32
    assert sum(tensor.numel() for tensor in decoder.state_dict().values()) - fused_key_biases == used


def test_every_missing_name_is_an_error_that_names_it(weights: dict[str, Tensor]) -> None:
    optional = {*STRIPPED_FOR_PUBLICATION, "network.decoder.attn_mask_probs"}
    for missing in sorted(weights.keys() - optional - {"network.decoder.q.weight"}):
        rest = {name: tensor for name, tensor in weights.items() if name != missing}
        with pytest.raises(CheckpointError) as error:
            load_pmt_decoder(rest, SPEC, TAPS)
        # Without the first of a numbered group, the rest of that number is what is left over.
        stem = missing.rsplit(".", 2)[0]
        assert missing in str(error.value) or f"left over: {stem}" in str(error.value)


def test_missing_queries_are_an_error_that_names_them(weights: dict[str, Tensor]) -> None:
    del weights["network.decoder.q.weight"]
    with pytest.raises(CheckpointError, match=r"network\.decoder\.q\.weight"):
        load_pmt_decoder(weights, SPEC, TAPS)


def test_a_name_left_over_is_an_error_that_names_it(weights: dict[str, Tensor]) -> None:
    weights["network.decoder.query_updater.weight"] = torch.zeros(32, 32)
    with pytest.raises(CheckpointError, match=r"left over: network\.decoder\.query_updater\.weight"):
        load_pmt_decoder(weights, SPEC, TAPS)


def test_a_decoder_of_another_width_is_refused_with_both_widths(weights: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="the decoder is 32 wide, but big gives features of width 64"):
        load_pmt_decoder(weights, replace(SPEC, name="big", embed_dim=64), TAPS)


def test_taps_of_another_number_are_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"reads 4 levels, but out_indices names \(1, 5\)"):
        load_pmt_decoder(weights, SPEC, (1, 5))


def test_a_wrong_shape_is_a_checkpoint_error(weights: dict[str, Tensor]) -> None:
    weights["network.decoder.decoder_norm.weight"] = torch.zeros(31)
    with pytest.raises(CheckpointError, match="31"):
        load_pmt_decoder(weights, SPEC, TAPS)
