"""Reading the decoder checkpoints that PMT publishes (image models): their names to those of `PlainMaskDecoder`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from decoders.plain_mask_decoder import PlainMaskDecoder
from encoders.dinov3 import block_from_hugging_face
from encoders.features import EncoderSpec
from encoders.key_map import CheckpointError, KeyMap, fill

_UNUSED_AT_INFERENCE = (
    "criterion.empty_weight",
    "network.encoder.pixel_mean",
    "network.encoder.pixel_std",
    "network.decoder.attn_mask_probs",
)


def load_pmt_decoder(weights: Mapping[str, Tensor], spec: EncoderSpec, out_indices: Iterable[int]) -> PlainMaskDecoder:
    """Build and fill the decoder that a published image checkpoint describes; its sizes are read off the shapes.

    Args:
        weights: names as saved, with or without the parts that the converter for publication strips.
        spec: of the encoder that it was trained on.
        out_indices: the blocks it reads (the checkpoint does not say).

    Returns:
        The decoder in eval mode, float32.

    Raises:
        CheckpointError: names are missing or left over, or the width is not the encoder's.
    """
    cleaned = {name.replace("._orig_mod", ""): tensor for name, tensor in weights.items()}
    keys = KeyMap(cleaned, ignore=_UNUSED_AT_INFERENCE)
    net = "network.decoder."
    ours = {"queries": keys.take(f"{net}q.weight")}
    num_queries, dim = ours["queries"].shape[-2:]
    levels = keys.count("network.bn.{}.weight")
    for i in range(levels):
        lateral = f"laterals.{i}."
        ours |= keys.copy("network.", lateral, {f"bn.{i}": "norm"})
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            ours[f"{lateral}norm.{statistic}"] = keys.take(f"network.bn.{i}.{statistic}")
        ours |= keys.copy(f"{net}lateral_projections.{i}.", lateral, {"0": "mlp.fc1", "2": "mlp.fc2"})
        ours[f"{lateral}scale"] = keys.take(f"{net}scalers.{i}")
    num_blocks = keys.count(net + "blocks.{}.norm1.weight")
    for i in range(num_blocks):
        ours |= block_from_hugging_face(keys, f"{net}blocks.{i}.", f"blocks.{i}.")
    ours |= keys.copy(net, "", {"decoder_norm": "norm", "class_head": "class_head"})
    for i in range(keys.count(net + "upscale.{}.conv1.weight")):
        theirs, upscale = f"{net}upscale.{i}.", f"upscale.{i}."
        ours |= keys.copy(theirs, upscale, {"conv1": "conv1", "norm": "norm"})
        ours[f"{upscale}conv2.weight"] = keys.take(f"{theirs}conv2.weight")
    ours |= keys.copy(net, "", {f"mask_head.{i}": f"mask_head.{i}" for i in (0, 2, 4)})
    keys.finish("PMT image decoder")
    if dim != spec.embed_dim:
        raise CheckpointError(f"the decoder is {dim} wide, but {spec.name} gives features of width {spec.embed_dim}")
    decoder = PlainMaskDecoder(
        spec,
        out_indices=out_indices,
        num_queries=num_queries,
        num_classes=ours["class_head.bias"].shape[0] - 1,
        num_blocks=num_blocks,
        mlp_dim=ours["blocks.0.mlp.fc1.weight"].shape[0],
    )
    if levels != len(decoder.out_indices):
        raise CheckpointError(f"the checkpoint reads {levels} levels, but out_indices names {decoder.out_indices}")
    fill(decoder, ours, "this PMT checkpoint")
    return decoder.eval().requires_grad_(False)
