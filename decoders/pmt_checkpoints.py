"""The decoder checkpoints that PMT publishes (pictures and video): their names and shapes, and those of our modules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from decoders.online import OnlineMaskDecoder
from decoders.plain_mask_decoder import PlainMaskDecoder
from encoders.dinov3 import block_from_hugging_face
from encoders.features import EncoderSpec
from encoders.key_map import CheckpointError, KeyMap, fill


def translate(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published names to those of `PlainMaskDecoder` (or `OnlineMaskDecoder`, if it is a video checkpoint).

    Args:
        weights: names as saved, with or without the parts that the converter for publication strips; an encoder inside
            is left out.

    Raises:
        CheckpointError: names are missing or left over.
    """
    cleaned = {name.replace("._orig_mod", ""): tensor for name, tensor in weights.items()}
    root = "backbone." if "backbone.decoder.q.weight" in cleaned else "network."
    unused = {"criterion.empty_weight", f"{root}decoder.attn_mask_probs"}
    unused |= {name for name in cleaned if name.startswith(f"{root}encoder.")}
    keys = KeyMap(cleaned, ignore=tuple(unused))
    net = f"{root}decoder."
    ours = {"queries": keys.take(f"{net}q.weight")}
    for i in range(keys.count(root + "bn.{}.weight")):
        lateral = f"laterals.{i}."
        ours |= keys.copy(root, lateral, {f"bn.{i}": "norm"})
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            ours[f"{lateral}norm.{statistic}"] = keys.take(f"{root}bn.{i}.{statistic}")
        ours |= keys.copy(f"{net}lateral_projections.{i}.", lateral, {"0": "mlp.fc1", "2": "mlp.fc2"})
        ours[f"{lateral}scale"] = keys.take(f"{net}scalers.{i}")
    for i in range(keys.count(net + "blocks.{}.norm1.weight")):
        ours |= block_from_hugging_face(keys, f"{net}blocks.{i}.", f"blocks.{i}.")
    ours |= keys.copy(net, "", {"decoder_norm": "norm", "class_head": "class_head"})
    for i in range(keys.count(net + "upscale.{}.conv1.weight")):
        theirs, upscale = f"{net}upscale.{i}.", f"upscale.{i}."
        ours |= keys.copy(theirs, upscale, {"conv1": "conv1", "norm": "norm"})
        ours[f"{upscale}conv2.weight"] = keys.take(f"{theirs}conv2.weight")
    ours |= keys.copy(net, "", {f"mask_head.{i}": f"mask_head.{i}" for i in (0, 2, 4)})
    if root == "backbone.":
        ours |= keys.copy(net, "", {"query_updater": "query_updater"})
    keys.finish("PMT video decoder" if root == "backbone." else "PMT image decoder")
    return ours


def load_pmt_decoder(weights: Mapping[str, Tensor], spec: EncoderSpec, out_indices: Iterable[int]) -> PlainMaskDecoder:
    """Build and fill the decoder that a published checkpoint describes; its sizes are read off the shapes.

    Args:
        weights: as in `translate`.
        spec: of the encoder that it was trained on.
        out_indices: the blocks it reads (the checkpoint does not say).

    Returns:
        The decoder in eval mode, float32, not folded; an `OnlineMaskDecoder` for a video checkpoint.

    Raises:
        CheckpointError: names are missing or left over, or the sizes are not those of the encoder or `out_indices`.
    """
    ours = translate(weights)
    num_queries, dim = ours["queries"].shape[-2:]
    if dim != spec.embed_dim:
        raise CheckpointError(f"the decoder is {dim} wide, but {spec.name} gives features of width {spec.embed_dim}")
    decoder_class = OnlineMaskDecoder if "query_updater.weight" in ours else PlainMaskDecoder
    decoder = decoder_class(
        spec,
        out_indices=out_indices,
        num_queries=num_queries,
        num_classes=ours["class_head.bias"].shape[0] - 1,
        num_blocks=_count(ours, "blocks.{}.norm1.weight"),
        mlp_dim=ours["blocks.0.mlp.fc1.weight"].shape[0],
    )
    levels = _count(ours, "laterals.{}.scale")
    if levels != len(decoder.out_indices):
        raise CheckpointError(f"the checkpoint reads {levels} levels, but out_indices names {decoder.out_indices}")
    fill(decoder, ours, "this PMT checkpoint")
    return decoder.eval().requires_grad_(False)


def published_shapes(decoder: PlainMaskDecoder) -> dict[str, torch.Size]:
    """Name and shape of every tensor in the published checkpoint of a model of this decoder's sizes.

    The encoder, the loss weights and the normalisation constants of the encoder are not among them.
    """
    online = isinstance(decoder, OnlineMaskDecoder) and decoder.query_updater is not None
    root = "backbone." if online else "network."
    net = f"{root}decoder."
    queries, dim = decoder.queries.shape
    mlp_dim = decoder.get_parameter("blocks.0.mlp.fc1.weight").shape[0]
    sizes: dict[str, tuple[int, ...]] = {
        f"{net}attn_mask_probs": (len(decoder.blocks),),
        f"{net}q.weight": (queries, dim),
    }

    def linear(name: str, out_dim: int, in_dim: int, *, bias: bool = True) -> None:
        sizes[f"{name}.weight"] = (out_dim, in_dim)
        if bias:
            sizes[f"{name}.bias"] = (out_dim,)

    def norm(name: str) -> None:
        sizes[f"{name}.weight"] = sizes[f"{name}.bias"] = (dim,)

    for i in range(len(decoder.out_indices)):
        norm(f"{root}bn.{i}")
        sizes[f"{root}bn.{i}.running_mean"] = sizes[f"{root}bn.{i}.running_var"] = (dim,)
        sizes[f"{root}bn.{i}.num_batches_tracked"] = ()
        linear(f"{net}lateral_projections.{i}.0", dim // 2, dim)
        linear(f"{net}lateral_projections.{i}.2", dim, dim // 2)
        sizes[f"{net}scalers.{i}"] = (dim,)
    for i in range(len(decoder.blocks)):
        name = f"{net}blocks.{i}."
        norm(f"{name}norm1")
        norm(f"{name}norm2")
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear(f"{name}attention.{projection}", dim, dim, bias=projection != "k_proj")
        linear(f"{name}mlp.up_proj", mlp_dim, dim)
        linear(f"{name}mlp.down_proj", dim, mlp_dim)
        sizes[f"{name}layer_scale1.lambda1"] = sizes[f"{name}layer_scale2.lambda1"] = (dim,)
    norm(f"{net}decoder_norm")
    for i in range(len(decoder.upscale)):
        sizes[f"{net}upscale.{i}.conv1.weight"] = (dim, dim, 2, 2)
        sizes[f"{net}upscale.{i}.conv1.bias"] = (dim,)
        sizes[f"{net}upscale.{i}.conv2.weight"] = (dim, 1, 3, 3)
        norm(f"{net}upscale.{i}.norm")
    for i in (0, 2, 4):
        linear(f"{net}mask_head.{i}", dim, dim)
    linear(f"{net}class_head", decoder.class_head.out_features, dim)
    if online:
        linear(f"{net}query_updater", dim, dim)
    return {name: torch.Size(size) for name, size in sizes.items()}


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    number = 0
    while pattern.format(number) in names:
        number += 1
    return number


@dataclass(frozen=True)
class MaskDecoderSizes:
    """What a published decoder has; `num_classes` are without "no object", `out_indices` the levels that it reads."""

    num_queries: int
    num_classes: int
    num_blocks: int
    mlp_dim: int
    out_indices: tuple[int, ...]


def check_sizes(decoder: PlainMaskDecoder, published: MaskDecoderSizes) -> None:
    """Raise unless a decoder has the sizes of a published one.

    Raises:
        CheckpointError: names each size that differs.
    """
    ours = MaskDecoderSizes(
        decoder.num_queries,
        decoder.class_head.out_features - 1,
        len(decoder.blocks),
        decoder.get_parameter("blocks.0.mlp.fc1.weight").shape[0],
        tuple(decoder.out_indices),
    )
    wrong = [
        f"{name} is {getattr(ours, name)}, published {value}"
        for name, value in vars(published).items()
        if getattr(ours, name) != value
    ]
    if wrong:
        raise CheckpointError("the head has not the sizes of its checkpoint: " + "; ".join(wrong))
