"""Names and shapes of published files, and the encoder that some of them carry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from decoders.published import rename, shapes_under, split_off_encoder
from encoders.key_map import CheckpointError


@pytest.mark.parametrize("prefix", ["backbone.", "dinov2.", "dinov2_with_registers."])
def test_an_encoder_in_the_file_is_split_off_without_its_prefix(prefix: str) -> None:
    weights = {f"{prefix}embeddings.cls_token": 1, "classifier.weight": 2, "classifier.bias": 3}
    assert split_off_encoder(weights) == ({"embeddings.cls_token": 1}, {"classifier.weight": 2, "classifier.bias": 3})


def test_a_file_with_a_head_alone_gives_no_encoder() -> None:
    assert split_off_encoder({"weight": 1, "bias": 2}) == ({}, {"weight": 1, "bias": 2})


def test_tensors_get_our_names_and_what_is_known_to_be_unused_is_left_out() -> None:
    weights = {"theirs": torch.ones(2), "unused": torch.zeros(3)}
    ours = rename(weights, {"theirs": "ours"}, "tiny", ignore=("unused", "not even there"))
    assert ours.keys() == {"ours"}
    assert ours["ours"] is weights["theirs"]


def test_names_that_do_not_fit_are_listed() -> None:
    with pytest.raises(CheckpointError, match=r"not a tiny checkpoint; missing: a\.bias; left over: b\.bias"):
        rename(
            {"a.weight": torch.ones(1), "b.bias": torch.ones(1)},
            {"a.weight": "weight", "a.bias": "bias"},
            "tiny",
        )


def test_shapes_come_under_their_published_names() -> None:
    names = {"head.weight": "weight", "head.bias": "bias"}
    assert shapes_under(names, nn.Linear(3, 2)) == {"head.weight": (2, 3), "head.bias": (2,)}
