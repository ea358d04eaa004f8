"""A head's weights on disk: half precision, with metadata, whole whenever they are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from decoders.labels import LabelSet
from decoders.panoptic import PanopticDecoder
from decoders.training import weights_file
from decoders.training.weights_file import save_head
from encoders.vit import VisionTransformer


@pytest.fixture
def head(tiny_encoder: VisionTransformer, label_set: LabelSet) -> PanopticDecoder:
    return PanopticDecoder(tiny_encoder.spec, label_set=label_set, out_indices=(1,), num_queries=3, num_blocks=1)


def test_a_saved_head_is_half_precision_with_its_metadata(tmp_path: Path, head: PanopticDecoder) -> None:
    file = tmp_path / "new" / "head.safetensors"
    save_head(head, file, {"encoder": "tiny"})
    weights = load_file(file)
    assert weights.keys() == head.state_dict().keys()
    for name, tensor in head.state_dict().items():
        expected = tensor.half() if tensor.is_floating_point() else tensor
        assert weights[name].dtype == expected.dtype
        assert torch.equal(weights[name], expected)
    assert weights["mask_decoder.laterals.0.norm.num_batches_tracked"].dtype == torch.int64
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"encoder": "tiny"}


def test_a_file_that_could_not_be_finished_leaves_the_last_one(
    tmp_path: Path, head: PanopticDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "head.safetensors"
    save_head(head, file, {})
    before = file.read_bytes()

    def broken_off(weights: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(weights_file, "save_file", broken_off)
    with pytest.raises(OSError, match="disk full"):
        save_head(head, file, {})
    assert file.read_bytes() == before
