"""Reading encoder weights from disk: which family a file holds is told by its names and shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from encoders import dinov2, dinov3
from encoders.key_map import CheckpointError, fill
from encoders.vit import VisionTransformer

_FORMATS = (
    (dinov2.matches_hugging_face, dinov2.from_hugging_face),
    (dinov2.matches_timm, dinov2.from_timm),
    (dinov3.matches_hugging_face, dinov3.from_hugging_face),
)


def load_encoder(
    path: str | Path, *, num_heads: int | None = None, position_grid: tuple[int, int] | None = None
) -> VisionTransformer:
    """Load a frozen encoder from a safetensors file, or from a Hugging Face directory that holds one.

    Args:
        path: a ``.safetensors`` file, or a directory with ``model.safetensors``.
        num_heads: only for sizes that were never published (the head count can't be read off the shapes).
        position_grid: (grid_h, grid_w), only for learned positions that were resampled to a grid that is not square.

    Returns:
        The encoder in eval mode, float32, on the CPU, no parameter requiring a gradient. Its `spec.revision` is the
        start of the file's SHA-256.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a checkpoint we know; the message lists what is missing or left over.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "model.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"no encoder weights at {file}")
    weights = read_safetensors(file)
    return build_encoder(
        weights,
        revision=sha256_of(file)[:12],
        num_heads=num_heads,
        position_grid=position_grid,
        source=str(file),
    )


def build_encoder(
    weights: Mapping[str, Tensor],
    *,
    revision: str,
    num_heads: int | None = None,
    position_grid: tuple[int, int] | None = None,
    source: str = "these weights",
) -> VisionTransformer:
    """Build the encoder that published `weights` describe; as `load_encoder`, from memory."""
    for matches, convert in _FORMATS:
        if matches(weights):
            config, ours = convert(weights, num_heads=num_heads, position_grid=position_grid)
            break
    else:
        some = ", ".join(sorted(weights)[:4])
        raise CheckpointError(f"{source}: no known encoder (DINOv2, DINOv3) has names such as {some}")
    encoder = VisionTransformer(config, revision)
    fill(encoder, ours, f"{source} ({config.name})")
    return encoder.eval().requires_grad_(False)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; a file that is none, or is cut short, raises `CheckpointError`."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); fetch it again") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
