"""Files of weights: what each format gives, and files that are something else, which are refused and never executed."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from encoders.checkpoints import digest_of, load_encoder, read_weights, sha256_of, weight_files
from encoders.key_map import CheckpointError

Weights = dict[str, Tensor]


def some_weights(dtype: torch.dtype = torch.float32) -> Weights:
    return {"a.weight": torch.randn(4, 3).to(dtype), "a.bias": torch.randn(4).to(dtype), "count": torch.tensor(7)}


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first
    )


def save_old(weights: Any, path: Path) -> None:
    """As torch did before 1.6: a bare pickle."""
    torch.save(weights, path, _use_new_zipfile_serialization=False)


SAVERS: dict[str, Callable[[Any, Path], None]] = {"safetensors": save_file, "torch": torch.save, "old_torch": save_old}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth", ".ckpt"])
@pytest.mark.parametrize("form", SAVERS)
def test_every_format_is_read_by_its_content_and_in_its_type(
    tmp_path: Path, form: str, suffix: str, dtype: torch.dtype
) -> None:
    weights, file = some_weights(dtype), tmp_path / f"file{suffix}"
    SAVERS[form](weights, file)
    assert same(read_weights(file), weights)


def test_a_safetensors_header_may_be_of_any_length(tmp_path: Path) -> None:
    """Its first bytes are the header's length, which may look like the start of another format."""
    for length in range(200):
        weights = {"x" * length + "w": torch.ones(1)}
        save_file(weights, tmp_path / "file")
        assert same(read_weights(tmp_path / "file"), weights)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize("form", ["torch", "old_torch"])
def test_weights_are_taken_out_of_what_a_training_program_saved(tmp_path: Path, form: str, wrapper: str) -> None:
    weights = some_weights()
    beside = {"epoch": 3, "optimizer": {"lr": 0.1, "moments": [torch.ones(2)]}, "note": "best"}
    SAVERS[form](beside | {wrapper: OrderedDict(weights)}, tmp_path / "last.ckpt")
    assert same(read_weights(tmp_path / "last.ckpt"), weights)


def test_parameters_and_a_tensor_called_model_are_weights(tmp_path: Path) -> None:
    weights = {"model": nn.Parameter(torch.ones(2)), "state_dict": torch.zeros(1)}
    torch.save(weights, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth").keys() == {"model", "state_dict"}


@pytest.mark.parametrize("form", SAVERS)
def test_the_mark_of_torch_compile_is_removed_from_names(tmp_path: Path, form: str) -> None:
    names = ("_orig_mod.a.weight", "b._orig_mod.c._orig_mod.weight", "plain_orig_mod.weight")
    SAVERS[form]({name: torch.ones(1) for name in names}, tmp_path / "w")
    assert read_weights(tmp_path / "w").keys() == {"a.weight", "b.c.weight", "plain_orig_mod.weight"}


def test_two_names_that_become_one_are_refused(tmp_path: Path) -> None:
    save_file({"_orig_mod.a": torch.ones(1), "a": torch.zeros(1)}, tmp_path / "w")
    with pytest.raises(CheckpointError, match="holds a twice"):
        read_weights(tmp_path / "w")


def write_shards(directory: Path, weights: Weights, shards: dict[str, list[str]]) -> None:
    directory.mkdir(exist_ok=True)
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, directory / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


SHARDS = {"model-00001-of-00002.safetensors": ["a.weight"], "model-00002-of-00002.safetensors": ["a.bias", "count"]}


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    weights = some_weights()
    write_shards(tmp_path, weights, SHARDS)
    assert same(read_weights(tmp_path), weights)
    assert same(read_weights(tmp_path / "model.safetensors.index.json"), weights)
    assert [file.name for file in weight_files(tmp_path)] == sorted(SHARDS)


def test_the_digest_of_shards_changes_with_each_of_them(tmp_path: Path) -> None:
    weights = some_weights()
    write_shards(tmp_path, weights, SHARDS)
    files = weight_files(tmp_path)
    digest = digest_of(files)
    assert digest_of(files[:1]) == sha256_of(files[0])
    for name in ("a.weight", "count"):
        write_shards(tmp_path, weights | {name: weights[name] + 1}, SHARDS)
        assert digest_of(weight_files(tmp_path)) != digest


def test_an_absent_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, some_weights(), SHARDS)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ["b"]}}']
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"is no index of shards; fetch it again"):
        read_weights(tmp_path)


@pytest.mark.parametrize("elsewhere", ["../secret.safetensors", "/etc/secret.safetensors", "sub/secret.safetensors"])
def test_an_index_can_not_name_files_elsewhere(tmp_path: Path, elsewhere: str) -> None:
    save_file(some_weights(), tmp_path / "secret.safetensors")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.weight": elsewhere}}))
    with pytest.raises(CheckpointError, match="does not lie beside it"):
        read_weights(model)


def test_a_directory_prefers_safetensors_to_a_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert read_weights(tmp_path)["a"] == 0
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path)["a"] == 1


@pytest.mark.parametrize("name", ["absent.pth", "."])
@pytest.mark.parametrize("read", [read_weights, load_encoder])
def test_an_absent_file_is_named(tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no (encoder )?weights at .*(absent\.pth|model\.safetensors)"):
        read(tmp_path / name)


class Bomb:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def torch_archive(content: Any, file: Path) -> None:
    torch.save(content, file)


def bare_pickle(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=2))


def text_pickle(content: Any, file: Path) -> None:
    file.write_bytes(pickle.dumps(content, protocol=0))


@pytest.mark.parametrize("hidden_in", ["alone", "weights", "beside"])
@pytest.mark.parametrize("write", [torch_archive, save_old, bare_pickle, text_pickle])
def test_code_in_a_file_is_not_executed(
    tmp_path: Path, write: Callable[[Any, Path], None], hidden_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    bomb, file = Bomb(tmp_path / "executed"), tmp_path / "weights.pth"
    content = {
        "alone": bomb,
        "weights": {"a": torch.ones(1), "b": bomb},
        "beside": {"model": some_weights(), "x": bomb},
    }
    write(content[hidden_in], file)
    with pytest.raises(CheckpointError) as error:
        read_weights(file)
    assert not bomb.target.exists()
    assert "\n" not in str(error.value)
    if write is not text_pickle:
        assert "nothing of it was executed" in str(error.value)
        assert "asks to run " in str(error.value)
    if write in (torch_archive, save_old):
        torch.load(file, weights_only=False)
    else:
        pickle.loads(file.read_bytes())
    assert bomb.target.exists(), "the bomb itself must work, or this test shows nothing"


def test_a_whole_module_is_refused_as_something_to_run(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"asks to run torch\.nn\.modules\.linear\.Linear; nothing of it"):
        read_weights(tmp_path / "model.pth")


@pytest.mark.parametrize("setting", [argparse.Namespace(rate=1.0), Path("runs") / "one"])
def test_a_checkpoint_with_python_objects_beside_its_weights_is_refused_with_the_way_to_them(
    setting: object, tmp_path: Path
) -> None:
    """As Lightning saves a program's arguments."""
    file, tensors = tmp_path / "last.ckpt", tmp_path / "tensors.pt"
    torch.save({"state_dict": some_weights(), "hyper_parameters": {"setting": setting}}, file)
    with pytest.raises(
        CheckpointError, match=r"asks to run (argparse|pathlib)\S+; nothing of it was executed"
    ) as refused:
        read_weights(file)
    (program,) = re.findall(r'python -c "(.*)"$', str(refused.value))
    program = program.replace("'IN'", repr(str(file))).replace("'OUT'", repr(str(tensors)))
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert read_weights(tensors).keys() == some_weights().keys()


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt is no whole file of torch\.save"):
        read_weights(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty; fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git-LFS pointer .* 'git lfs pull'"),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"\r\n\n  <html><body>404</body></html>", "is a web page"),
        (b'{"error": "Access to model is restricted"}', "neither a safetensors file nor one of torch.save"),
        (b"\x93NUMPY\x01\x00", "neither a safetensors file nor one of torch.save"),
        (b"\x00" * 100, "neither a safetensors file nor one of torch.save"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_no_checkpoint_is_told_with_a_remedy(tmp_path: Path, content: bytes, reason: str, suffix: str) -> None:
    file = tmp_path / f"file{suffix}"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"file\{suffix} {reason}|{reason}") as error:
        read_weights(file)
    assert "\n" not in str(error.value)


def test_another_zip_archive_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "arrays.npz").open("wb") as file:
        np.savez(file, a=np.ones(3))
    with pytest.raises(CheckpointError, match=r"is no whole file of torch\.save .* fetch it again"):
        read_weights(tmp_path / "arrays.npz")


@pytest.mark.parametrize("form", SAVERS)
def test_a_file_cut_short_anywhere_is_refused_in_one_line(tmp_path: Path, form: str) -> None:
    file = tmp_path / "w"
    SAVERS[form](some_weights(), file)
    whole = file.read_bytes()
    for length in range(0, len(whole) - 1, 1 + len(whole) // 97):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as error:
            read_weights(file)
        assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", SAVERS)
def test_a_file_with_a_damaged_byte_is_read_or_refused_and_nothing_else(tmp_path: Path, form: str) -> None:
    file = tmp_path / "w"
    SAVERS[form](some_weights(), file)
    whole, generator = file.read_bytes(), np.random.default_rng(0)
    refused = 0
    for position in generator.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= int(generator.integers(1, 256))
        file.write_bytes(damaged)
        try:
            read_weights(file)
        except CheckpointError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(1)], "holds a list and not weights by name"),
        (torch.ones(1), "holds a Tensor and not weights by name"),
        ({"a": torch.ones(1), "epoch": 3}, "holds more than named tensors: epoch"),
        ({"model": {"a": torch.ones(1), "names": ["x"]}}, "holds more than named tensors: names"),
        ({1: torch.ones(1)}, "holds more than named tensors: 1"),
        ({}, "holds no tensors"),
        ({"model": {}}, "holds no tensors"),
    ],
)
def test_contents_that_are_not_named_tensors_are_refused(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=reason):
        read_weights(tmp_path / "w.pth")


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_weights(tmp_path / "none.safetensors")


def test_numbers_of_numpy_beside_the_weights_are_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    meta = {"best": np.float64(0.25), "epoch": np.int64(3), "rate": np.float32(1e-3)}
    torch.save({"meta": meta, "state_dict": {"weight": torch.ones(2)}}, path)
    assert read_weights(path).keys() == {"weight"}
