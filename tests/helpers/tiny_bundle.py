"""A tiny bundle with random weights on disk, that a whole server can be started on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from decoders.depth import DepthDecoder
from decoders.labels import LabelSet, load_label_set
from decoders.panoptic import PanopticDecoder
from decoders.training.weights_file import save_head
from encoders.checkpoints import load_encoder
from encoders.vit import VisionTransformer


def enliven(head: nn.Module, seed: int) -> None:
    """Seeded weights, the same each time, large enough that an untrained head's queries differ from each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.ndim > 1:
                scale = 3.0 if name.endswith("queries") else 2 / parameter[0].numel() ** 0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            elif name.endswith("bias"):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        if isinstance(head, PanopticDecoder):
            head.mask_decoder.class_head.bias[-1] = -1e4  # never "no object"
    head.eval().requires_grad_(False)


def make_heads(encoder: VisionTransformer, labels: LabelSet) -> tuple[PanopticDecoder, DepthDecoder]:
    """A panoptic head that lets every segment through and a depth head, which read different blocks."""
    panoptic = PanopticDecoder(
        encoder.spec,
        label_set=labels,
        out_indices=(0, 2),
        num_queries=8,
        num_blocks=1,
        score_threshold=0,
        overlap_threshold=0,
    )
    depth = DepthDecoder(encoder.spec, out_indices=(1, 2), hidden_dim=16, num_bins=8)
    enliven(panoptic, 1)
    enliven(depth, 2)
    return panoptic, depth


def write_tiny_bundle(folder: Path) -> Path:
    """Write an encoder as `transformers` saves it, the weights of two heads, and the bundle's YAML file: its path."""
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Dinov2Config(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=1, mlp_ratio=2, patch_size=14, image_size=56
        )
        Dinov2Model(config).save_pretrained(folder / "encoder")
    panoptic, depth = make_heads(load_encoder(folder / "encoder"), load_label_set("coco_supercategories"))
    save_head(panoptic, folder / "panoptic.safetensors", {})
    save_head(depth, folder / "depth.safetensors", {})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY_BUNDLE, sort_keys=False))
    return folder / "tiny.yaml"


TINY_BUNDLE: dict[str, Any] = {
    "name": "tiny",
    "encoder": {"weights": "encoder"},
    "geometry": {"height": 56, "width": 56},
    "default_tasks": ["panoptic", "depth"],
    "tasks": {
        "panoptic": {
            "decoder": "panoptic",
            "weights": "panoptic.safetensors",
            "labels": "coco_supercategories",
            "description": "Things and stuff.",
            "settings": {
                "out_indices": [0, 2],
                "num_queries": 8,
                "num_blocks": 1,
                "score_threshold": 0,
                "overlap_threshold": 0,
            },
        },
        "depth": {
            "decoder": "depth",
            "weights": "depth.safetensors",
            "settings": {"out_indices": [1, 2], "hidden_dim": 16, "num_bins": 8},
        },
    },
}
