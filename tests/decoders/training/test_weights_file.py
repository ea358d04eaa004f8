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
from decoders.training.weights_file import begin_from, save_head
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


def test_a_head_begins_where_another_ended_but_for_what_does_not_fit(
    tmp_path: Path, head: PanopticDecoder, tiny_encoder: VisionTransformer, label_set: LabelSet
) -> None:
    save_head(head, tmp_path / "head.safetensors", {})
    more = PanopticDecoder(tiny_encoder.spec, label_set=label_set, out_indices=(1,), num_queries=5, num_blocks=1)
    own_queries = more.mask_decoder.queries.detach().clone()
    assert begin_from(more, tmp_path / "head.safetensors") == ["mask_decoder.queries"]
    assert torch.equal(more.mask_decoder.queries, own_queries)
    for name, tensor in more.state_dict().items():
        if name != "mask_decoder.queries":
            torch.testing.assert_close(tensor, head.state_dict()[name].half().to(tensor.dtype))


def test_a_file_of_which_nothing_fits_is_refused(tmp_path: Path, head: PanopticDecoder) -> None:
    save_head(torch.nn.Linear(2, 2), tmp_path / "linear.safetensors", {})
    with pytest.raises(ValueError, match=r"no tensor of .*linear\.safetensors"):
        begin_from(head, tmp_path / "linear.safetensors")


def test_a_file_that_holds_no_tensors_is_refused_by_name(tmp_path: Path, head: PanopticDecoder) -> None:
    (tmp_path / "notes.txt").write_text("no tensors")
    with pytest.raises(ValueError, match=r"notes\.txt can't be read as safetensors"):
        begin_from(head, tmp_path / "notes.txt")
