"""Loading bundles: the encoder once, every head on its spec, weights checked name by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from decoders.base import Decoder
from decoders.labels import LabelSet, load_label_set, new_label_set, read_label_set
from decoders.prototypes import PrototypeDecoder
from decoders.registry import decoder_class
from encoders.base import Encoder
from encoders.checkpoints import build_encoder, load_encoder, read_weights
from encoders.features import EncoderSpec
from encoders.geometry import InputGeometry, ShortestEdgeGeometry, WindowGeometry
from encoders.key_map import CheckpointError, fill
from encoders.preprocess import pad_with_mean, to_pixels
from encoders.vit import VisionTransformer
from serving.bundles.schema import EncoderEntry, TaskEntry, read_bundle
from serving.bundles.weights import fetch, parse_reference
from serving.errors import BundleError, PolyheadError
from serving.pictures import decode_picture
from serving.planner import Head


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
    encoder: Encoder
    heads: dict[str, Head]
    default_tasks: tuple[str, ...]
    label_sets: dict[str, LabelSet]


def fetch_weights(name_or_path: str, cache_dir: Path) -> dict[str, Path]:
    """Make sure that all weights of a bundle are on this machine.

    Returns:
        File or folder by what it is for: ``"encoder"``, and the task of each head that has weights.

    Raises:
        BundleError: there is no such bundle, or its file is wrong.
        FileNotFoundError: weights can't be fetched; says what to do.
    """
    file, folder = read_bundle(name_or_path)
    wanted: dict[str, tuple[str, str | None]] = {"encoder": (file.encoder.weights, None)}
    wanted |= {task: (entry.weights, entry.sha256) for task, entry in file.tasks.items() if entry.weights is not None}
    found, missing = {}, []
    for part, (reference, sha256) in wanted.items():
        try:
            found[part] = fetch(parse_reference(reference, folder), cache_dir, sha256=sha256)
        except FileNotFoundError as error:
            missing.append(f"{part}: {error}")
    if missing:
        raise FileNotFoundError("\n".join(missing))
    return found


def load_bundle(
    name_or_path: str,
    *,
    cache_dir: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Bundle:
    """Load a bundle's encoder and heads; fetches what the cache lacks.

    Args:
        name_or_path: as in `read_bundle`.
        cache_dir: where fetched weights are kept.
        device, dtype: of all weights.

    Raises:
        BundleError: the file is wrong, a weights file is missing or does not fit its head.
        CheckpointError: the encoder's weights are unusable.
    """
    file, folder = read_bundle(name_or_path)
    encoder = open_encoder(file.encoder, fetch(parse_reference(file.encoder.weights, folder), cache_dir))
    heads: dict[str, Head] = {}
    label_sets: dict[str, LabelSet] = {}
    for task, entry in file.tasks.items():
        geometry = file.geometry_of(task)
        decoder = new_decoder(entry, encoder.spec, folder)
        check_geometry(task, decoder, geometry, encoder.spec)
        check_weights_named(task, entry, decoder)
        if entry.weights is not None:
            path = fetch(parse_reference(entry.weights, folder), cache_dir, sha256=entry.sha256)
            _fill(decoder, path, task, encoder)
        if entry.examples is not None:
            _learn(decoder, task, folder / entry.examples, encoder, geometry)
        labels = label_set_of(entry, folder)
        if labels is not None:
            label_sets[task] = labels
        try:
            decoder.finalize()
        except ValueError as error:
            raise BundleError(f"task '{task}': {error}") from None
        if isinstance(decoder, nn.Module):
            decoder.to(device=device, dtype=dtype).eval().requires_grad_(False)
        heads[task] = Head(task, decoder, geometry, entry.description)
    return Bundle(file.name, encoder.to(device=device, dtype=dtype), heads, file.default_tasks, label_sets)


def open_encoder(entry: EncoderEntry, path: Path) -> Encoder:
    """Load the encoder of a bundle from its file or folder.

    Raises:
        CheckpointError: it can't be used.
    """
    if entry.adapter == "transformers":
        from encoders.transformers_vit import load_transformers_encoder  # an optional extra

        try:
            return load_transformers_encoder(path)
        except ImportError as error:
            raise BundleError(str(error)) from None
    return load_encoder(path, num_heads=entry.num_heads, patch_size=entry.patch_size, resample_grid=entry.resample_grid)


def label_set_of(entry: TaskEntry, folder: Path) -> LabelSet | None:
    """The classes of a head: a packaged set, a file, or the folders of its examples.

    Raises:
        BundleError: there is no such set, or no folder of examples.
    """
    try:
        if entry.labels is not None and entry.labels.endswith((".yaml", ".yml")):
            return read_label_set(folder / entry.labels)
        if entry.labels is not None:
            return load_label_set(entry.labels)
    except ValueError as error:
        raise BundleError(str(error)) from None
    if entry.examples is None:
        return None
    return new_label_set(entry.examples.name, [path.name for path in _class_folders(folder / entry.examples)])


def new_decoder(entry: TaskEntry, spec: EncoderSpec, folder: Path) -> Decoder:
    """Build a bundle's head with untrained weights.

    Raises:
        BundleError: there is no such decoder or label set, or the settings don't fit it.
    """
    arguments = dict(entry.settings)
    labels = label_set_of(entry, folder)
    try:
        decoder_type = decoder_class(entry.decoder)
        if labels is not None:
            arguments["label_set"] = labels
        inspect.signature(decoder_type).bind(spec, **arguments)
        decoder = decoder_type(spec, **arguments)
    except Exception as error:  # a head may come from anywhere
        raise BundleError(f"decoder '{entry.decoder}': {error}") from error
    if not isinstance(decoder, Decoder):
        raise BundleError(f"decoder '{entry.decoder}': {type(decoder).__name__} is no decoders.base.Decoder")
    return decoder


def check_geometry(task: str, decoder: Decoder, geometry: InputGeometry, spec: EncoderSpec) -> None:
    """Raise unless a head and its encoder can work at a geometry.

    Raises:
        BundleError: sizes that are no multiple of the patch, or windows for a head that can't take them.
    """
    sides = (geometry.multiple,) if isinstance(geometry, ShortestEdgeGeometry) else geometry.typical_size
    if any(side % spec.patch_size for side in sides):
        told = " x ".join(map(str, sides))
        raise BundleError(f"task '{task}': {told} is no multiple of the encoder's patch size {spec.patch_size}")
    if isinstance(geometry, WindowGeometry) and not decoder.takes_windows:
        raise BundleError(f"task '{task}': a head of kind '{decoder.kind}' ({type(decoder).__name__}) takes no windows")


def check_weights_named(task: str, entry: TaskEntry, decoder: Decoder) -> None:
    """Raise if a head would be served untrained.

    Raises:
        BundleError: it has parameters, and the bundle names no weights.
    """
    if entry.weights is None and isinstance(decoder, nn.Module) and next(decoder.parameters(), None) is not None:
        raise BundleError(f"task '{task}': {type(decoder).__name__} has parameters; name its file under 'weights'")


def fit_weights(decoder: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill a head from weights in its own or in published names.

    Raises:
        CheckpointError: they don't fit; lists what is missing, left over or of another shape.
    """
    assert isinstance(decoder, Decoder)
    ours = {name: t.float() if t.is_floating_point() else t for name, t in decoder.translate(weights).items()}
    fill(decoder, ours, source)


def _fill(decoder: Decoder, path: Path, task: str, encoder: Encoder) -> None:
    if not isinstance(decoder, nn.Module):
        raise BundleError(f"task '{task}': {type(decoder).__name__} has no weights to load; remove 'weights'")
    try:
        weights = read_weights(path)
        fit_weights(decoder, weights, path.name)
        _check_same_encoder(decoder.carried_encoder(weights), encoder)
    except CheckpointError as error:
        raise BundleError(f"task '{task}': {error}") from None


def _check_same_encoder(inner: Mapping[str, Tensor] | None, encoder: Encoder) -> None:
    """The encoder that a head's file carries is the one it was trained on; then it must be the one that runs."""
    if inner is None or not isinstance(encoder, VisionTransformer):
        return
    config = encoder.config
    trained_on = build_encoder(
        inner, revision="inside", num_heads=config.num_heads, position_grid=config.position_grid
    ).state_dict()
    running = encoder.state_dict()
    for name, tensor in running.items():
        theirs = trained_on.get(name)
        if theirs is None or theirs.shape != tensor.shape or not torch.allclose(theirs, tensor, rtol=1e-3, atol=1e-3):
            raise CheckpointError(
                f"the head was trained on another encoder than {encoder.spec.name} ({name} differs); give the bundle "
                "the encoder that its checkpoint holds"
            )


def _learn(decoder: Decoder, task: str, examples: Path, encoder: Encoder, geometry: InputGeometry) -> None:
    if not isinstance(decoder, PrototypeDecoder):
        raise BundleError(f"task '{task}': {type(decoder).__name__} learns nothing from examples; remove 'examples'")
    for label_id, picture in _example_pictures(examples):
        try:
            image = decode_picture(picture.read_bytes())
        except PolyheadError as error:
            raise BundleError(f"task '{task}': {picture} is no picture that can be learned from ({error})") from None
        place = geometry.place((image.height, image.width))
        pixels = pad_with_mean(to_pixels(image, place), [place], encoder.pixel_mean)
        with torch.no_grad():
            decoder.learn(encoder(pixels, decoder.out_indices, decoder.hidden_indices), [place], label_id)


def _class_folders(examples: Path) -> list[Path]:
    folders = sorted(path for path in examples.glob("[!.]*") if path.is_dir()) if examples.is_dir() else []
    if not folders:
        raise BundleError(f"no examples in {examples}: it must hold one folder of pictures for each class")
    return folders


def _example_pictures(examples: Path) -> Iterator[tuple[int, Path]]:
    for label_id, folder in enumerate(_class_folders(examples)):
        for path in sorted(folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                yield label_id, path
