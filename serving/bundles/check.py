"""Does everything in a bundle fit together, and what will it cost? Told from names and shapes, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from decoders.base import Decoder
from decoders.mask_classification import MaskClassificationDecoder
from decoders.pmt_checkpoints import check_sizes
from encoders.checkpoints import build_encoder, read_weights
from encoders.features import EncoderSpec
from encoders.key_map import CheckpointError
from encoders.published import PUBLISHED, published_shapes
from encoders.vit import VisionTransformer
from serving.bundles.costs import PassCost, costs
from serving.bundles.loading import check_geometry, check_weights_named, fit_weights, new_decoder
from serving.bundles.published_heads import PUBLISHED_HEADS
from serving.bundles.schema import BundleFile, EncoderEntry, TaskEntry, read_bundle
from serving.bundles.weights import HubRef, WeightsRef, describe, locate, parse_reference
from serving.errors import BundleError
from serving.planner import Head


@dataclass(frozen=True)
class PartCheck:
    """The encoder or one head of a bundle.

    Attributes:
        part: ``"encoder"`` or the task.
        source: where its weights come from, in words; "" if it has none.
        found: they are on this machine.
        tensors: how many were matched by name and shape.
        parameters: how many numbers they hold.
        problem: why the part can't be used; "" if it can.
    """

    part: str
    source: str = ""
    found: bool = False
    tensors: int = 0
    parameters: int = 0
    problem: str = ""


@dataclass(frozen=True)
class BundleCheck:
    """What was learned about a bundle without loading it.

    Attributes:
        file: the bundle as written.
        parts: the encoder first, then the heads in the file's order.
        spec: of the encoder; None if its sizes could not be told.
        costs: of a request for all tasks; empty if a part could not be built.
    """

    file: BundleFile
    parts: list[PartCheck] = field(default_factory=list)
    spec: EncoderSpec | None = None
    costs: list[PassCost] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every part can be used."""
        return all(not part.problem for part in self.parts)


def check_bundle(name_or_path: str, cache_dir: Path, *, random: bool) -> BundleCheck:
    """Build a bundle at full size on the meta device and match every name and shape of its weights.

    Args:
        name_or_path: as in `read_bundle`.
        cache_dir: where fetched weights are.
        random: match the names and shapes that are published instead of files; needs no file at all, apart from an
            encoder that nobody publishes on the hub.

    Raises:
        BundleError: there is no such bundle, or its file is wrong.
    """
    file, folder = read_bundle(name_or_path)
    check = BundleCheck(file)
    reference = parse_reference(file.encoder.weights, folder)
    encoder_part, encoder = _check_encoder(file.encoder, reference, cache_dir, random=random)
    check.parts.append(encoder_part)
    if encoder is None:
        return check
    heads: dict[str, Head] = {}
    for task, entry in file.tasks.items():
        source = None if entry.weights is None else parse_reference(entry.weights, folder)
        path = None if source is None else locate(source, cache_dir)
        part = PartCheck(task, "" if source is None else describe(source), path is not None)
        try:
            decoder = _meta_decoder(entry, encoder.spec, folder)
            check_geometry(task, decoder, file.geometry_of(task), encoder.spec)
            check_weights_named(task, entry, decoder)
            weights: Mapping[str, Tensor] = {}
            if isinstance(decoder, nn.Module) and source is not None:
                weights = _weights_of(decoder, path, random=random)
                fit_weights(decoder, weights, part.source)
            heads[task] = Head(task, decoder, file.geometry_of(task), entry.description)
            check.parts.append(replace(part, tensors=len(weights), parameters=_numel(weights)))
        except (BundleError, CheckpointError, FileNotFoundError) as error:
            check.parts.append(replace(part, problem=str(error)))
    return BundleCheck(file, check.parts, encoder.spec, costs(heads, heads, encoder))


def _check_encoder(
    entry: EncoderEntry, reference: WeightsRef, cache_dir: Path, *, random: bool
) -> tuple[PartCheck, VisionTransformer | None]:
    path = locate(reference, cache_dir)
    part = PartCheck("encoder", describe(reference), path is not None)
    try:
        if entry.adapter == "transformers":
            raise BundleError("an encoder of the transformers adapter is checked when it is loaded, not before")
        weights = _encoder_weights(reference, path, random=random)
        encoder = build_encoder(
            weights,
            revision="meta",
            num_heads=entry.num_heads,
            patch_size=entry.patch_size,
            resample_grid=entry.resample_grid,
            source=part.source,
        )
    except (BundleError, CheckpointError, FileNotFoundError) as error:
        return replace(part, problem=str(error)), None
    return replace(part, tensors=len(weights), parameters=_numel(weights)), encoder


def _encoder_weights(reference: WeightsRef, path: Path | None, *, random: bool) -> dict[str, Tensor]:
    if random and isinstance(reference, HubRef) and reference.repo in PUBLISHED:
        return _empty(published_shapes(reference.repo))
    if random and path is None:
        raise FileNotFoundError(f"the sizes of {describe(reference)} are not known here; run polyhead pull first")
    return _shapes_in(path)


def _meta_decoder(entry: TaskEntry, spec: EncoderSpec, folder: Path) -> Decoder:
    with torch.device("meta"):
        decoder = new_decoder(entry, spec, folder)
    stated = PUBLISHED_HEADS.get((entry.weights or "").partition("@")[0])
    if stated is not None and isinstance(decoder, MaskClassificationDecoder):
        check_sizes(decoder.mask_decoder, stated)
    return decoder


def _weights_of(decoder: Decoder, path: Path | None, *, random: bool) -> dict[str, Tensor]:
    return _empty(decoder.published_shapes()) if random else _shapes_in(path)


def _shapes_in(path: Path | None) -> dict[str, Tensor]:
    if path is None:
        raise FileNotFoundError("the weights are not on this machine; run polyhead pull, or check with --random")
    return {name: tensor.to("meta") for name, tensor in read_weights(path).items()}


def _empty(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    return {
        name: torch.empty(shape, device="meta", dtype=torch.int64 if name.endswith("num_batches_tracked") else None)
        for name, shape in shapes.items()
    }


def _numel(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in weights.values())
