"""Reading weights from disk: what a file holds is told by its content, names and shapes, and nothing in it is run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from encoders import dinov2, dinov3, plain_vit
from encoders.key_map import CheckpointError, LoadOptions, fill
from encoders.pixels import Standardisation
from encoders.vit import VisionTransformer

_FORMATS = (
    (plain_vit.matches_timm, plain_vit.from_timm),
    (dinov2.matches_hugging_face, dinov2.from_hugging_face),
    (dinov2.matches_original, dinov2.from_original),
    (dinov3.matches_hugging_face, dinov3.from_hugging_face),
    (dinov3.matches_meta, dinov3.from_meta),
    (dinov3.matches_timm, dinov3.from_timm),
)
_IN_DIRECTORIES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_PLAIN_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64")),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
"""NumPy numbers that training frameworks leave beside the weights (Meta's depth heads have one); they run nothing."""

_SAVE_TENSORS = (
    "python -c \"import torch; c = torch.load('IN', weights_only=False); torch.save(c.get('state_dict', c), 'OUT')\""
)
"""Takes the weights out of a training program's file whose settings (argparse.Namespace, paths) are Python objects."""

_WRAPPERS = ("state_dict", "model")
"""Under which names training programs save the weights: Lightning and mmcv, detectron2."""


def load_encoder(
    path: str | Path,
    *,
    num_heads: int | None = None,
    position_grid: tuple[int, int] | None = None,
    patch_size: int | None = None,
    resample_grid: tuple[int, int] | None = None,
) -> VisionTransformer:
    """Load a frozen encoder from a file, or from a Hugging Face directory that holds one.

    Args:
        path: as in `read_weights`. The standardisation is ImageNet's, unless a directory's ``preprocessor_config.json``
            names another (DINOv3 trained on satellite pictures has its own).
        num_heads: only for sizes that were never published (the head count can't be read off the shapes).
        position_grid: (grid_h, grid_w), only for learned positions that were resampled to a grid that is not square.
        patch_size: run at another patch size than the file's: the patch kernel is resampled, as PMT does with DINOv2.
        resample_grid: (grid_h, grid_w) that learned positions are resampled to once, now, as PMT does: a picture's own
            grid is resampled from this one and not from the file's.

    Returns:
        The encoder in eval mode, float32, on the CPU, no parameter requiring a gradient. Its `spec.revision` is the
        start of the file's SHA-256; its `spec.name` tells `patch_size` and `resample_grid`.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint we know; the message lists what is missing or left over.
    """
    files = weight_files(path)
    if not files:
        raise FileNotFoundError(f"no encoder weights at {_wanted(path)}")
    return build_encoder(
        read_weights(path),
        revision=digest_of(files)[:12],
        num_heads=num_heads,
        position_grid=position_grid,
        patch_size=patch_size,
        resample_grid=resample_grid,
        standardisation=read_standardisation(path),
        source=str(path),
    )


def build_encoder(
    weights: Mapping[str, Tensor],
    *,
    revision: str,
    num_heads: int | None = None,
    position_grid: tuple[int, int] | None = None,
    patch_size: int | None = None,
    resample_grid: tuple[int, int] | None = None,
    standardisation: Standardisation | None = None,
    source: str = "these weights",
) -> VisionTransformer:
    """Build the encoder that published `weights` describe; as `load_encoder`, from memory.

    Weights on the meta device give an encoder on it: names and shapes are checked, and no memory is taken.
    """
    options = LoadOptions(num_heads, position_grid, patch_size, resample_grid)
    for matches, convert in _FORMATS:
        if matches(weights):
            config, ours = convert(weights, options)
            break
    else:
        some = ", ".join(sorted(weights)[:4])
        raise CheckpointError(f"{source}: no known encoder (DINOv2, DINOv3, timm's plain ViT) has names such as {some}")
    if standardisation is not None:
        mean, std = standardisation
        config = dataclasses.replace(config, pixel_mean=mean, pixel_std=std)
    with torch.device("meta"):  # no time is spent on random weights
        encoder = VisionTransformer(config, revision)
    if not any(tensor.is_meta for tensor in ours.values()):
        encoder.to_empty(device="cpu")
    fill(encoder, ours, f"{source} ({config.name})")
    return encoder.eval().requires_grad_(False)


def weight_files(path: str | Path) -> tuple[Path, ...]:
    """The files that `read_weights` would read at a path; none, if there is nothing.

    Raises:
        CheckpointError: an index of shards can't be read.
        FileNotFoundError: a shard is absent.
    """
    file = Path(path)
    if file.is_dir():
        file = next((file / name for name in _IN_DIRECTORIES if (file / name).is_file()), file)
    if not file.is_file():
        return ()
    return _shards(file) if file.name.endswith(".index.json") else (file,)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, on the CPU, in the types they were saved in.

    Args:
        path: a safetensors file, or one that `torch.save` wrote (told apart by their content, not by their names), or a
            directory with ``model.safetensors``, its shards and their index, or ``pytorch_model.bin``. Weights that a
            training program put under "state_dict" or "model" are taken out; what lies beside them is dropped.
            "_orig_mod", which `torch.compile` leaves in names, is removed.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, or no checkpoint, or would have to run code to be read; nothing was executed.
    """
    files = weight_files(path)
    if not files:
        raise FileNotFoundError(f"no weights at {_wanted(path)}")
    weights: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read_file(file).items():
            plain = ".".join(part for part in name.split(".") if part != "_orig_mod")
            if plain in weights:
                raise CheckpointError(f"{path} holds {plain} twice")
            weights[plain] = tensor
    if not weights:
        raise CheckpointError(f"{path} holds no tensors")
    return weights


def read_standardisation(path: str | Path) -> Standardisation | None:
    """What ``preprocessor_config.json`` in a Hugging Face directory says; None where there is none.

    Raises:
        CheckpointError: the file can't be read.
    """
    file = Path(path) / "preprocessor_config.json"
    if not file.is_file():
        return None
    try:
        facts = json.loads(file.read_text())
        if not facts.get("do_normalize", True):
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        (r, g, b), (r_std, g_std, b_std) = facts["image_mean"], facts["image_std"]
        return (float(r), float(g), float(b)), (float(r_std), float(g_std), float(b_std))
    except (ValueError, TypeError, AttributeError, LookupError):
        raise CheckpointError(f"{file} names no image_mean and image_std of three channels") from None


def digest_of(files: tuple[Path, ...]) -> str:
    """Identifies the content of one file (its SHA-256) or of several."""
    digests = [sha256_of(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wanted(path: str | Path) -> Path:
    """What to name when nothing is at `path`."""
    return Path(path) / _IN_DIRECTORIES[0] if Path(path).is_dir() else Path(path)


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        shards = tuple(index.parent / name for name in names)
    except (ValueError, TypeError, AttributeError, LookupError):
        raise CheckpointError(f"{index} is no index of shards; fetch it again") from None
    for shard in shards:
        if shard.parent != index.parent:
            raise CheckpointError(f"{index} names {shard}, which does not lie beside it")
        if not shard.is_file():
            raise FileNotFoundError(f"no weights at {shard}, which {index.name} names; fetch it too")
    return shards


def _read_file(file: Path) -> dict[str, Tensor]:
    with file.open("rb") as opened:
        head = opened.read(64)
    if head[8:9] == b"{":  # after the length of a JSON header
        return _read_safetensors(file)
    if head.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a bare pickle (torch before 1.6)
        return _read_torch(file, is_archive=head.startswith(b"PK"))
    if not head:
        reason = "is empty; fetch it again"
    elif head.startswith(b"version https://git-lfs"):
        reason = "is a git-LFS pointer and not the weights; run 'git lfs pull' where it came from"
    elif head.lstrip().startswith(b"<"):
        reason = "is a web page and not weights; fetch it again (the site may want a login first)"
    else:
        reason = "is neither a safetensors file nor one of torch.save; fetch it again"
    raise CheckpointError(f"{file} {reason}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a file that is none, or is cut short, raises `CheckpointError`."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); fetch it again") from None


def _read_torch(file: Path, *, is_archive: bool) -> dict[str, Tensor]:
    mmap = is_archive and file.suffix != ".safetensors"  # torch.load goes by the names of paths
    try:
        with file.open("rb") as opened, torch.serialization.safe_globals(_PLAIN_NUMBERS):
            loaded = torch.load(file if mmap else opened, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks to run {named[1]}" if named else "holds more than tensors, or is damaged"
        raise CheckpointError(
            f"{file} {what}; nothing of it was executed. Use its safetensors version, or save the tensors alone where "
            f"you trust the file: {_SAVE_TENSORS}"
        ) from None
    except Exception as error:  # noqa: BLE001  # torch's reader raises what it likes on a damaged file
        reason = re.split(r"\. |\n", str(error))[0]
        raise CheckpointError(f"{file} is no whole file of torch.save ({reason}); fetch it again") from None
    return _tensors_of(loaded, file)


def _tensors_of(loaded: Any, file: Path) -> dict[str, Tensor]:
    if isinstance(loaded, dict):
        loaded = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), dict)), loaded)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__} and not weights by name")
    others = [str(name) for name, value in loaded.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{file} holds more than named tensors: {', '.join(others[:8])}")
    return loaded
