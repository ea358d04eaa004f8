"""Cases without weights: formulas are read as they stand, and what is no such formula is refused."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from decoders.panoptic_merge import merge_panoptic
from decoders.parity import seeded
from decoders.parity.cases import Case, CaseError
from decoders.plain_mask_decoder import PlainMaskDecoder
from decoders.pmt_checkpoints import load_pmt_decoder, published_shapes
from encoders.checkpoints import build_encoder
from encoders.features import EncoderSpec
from encoders.geometry import FitGeometry

Cases = Any
"""That of conftest.py."""
WEIGHTS = (
    "no file: tensor = float32(mean + std*sqrt(12)*(u-0.5)), u = numpy.random.RandomState((zlib.crc32(name) ^ "
    "(seed*2654435761)) & 0xFFFFFFFF).random_sample(count) in C order; name = the checkpoint name, or for the encoder "
    'the Hugging Face name (the part after "encoder:"); "const" entries hold a constant. Exception: in '
    "network.decoder.q.weight rows 2,5,8,... (r%3==2) are multiplied by 0.05 after the cast to float32"
)
PICTURE = "uint8 (3,H,W), y row, x column: R = (3x+5y)//4 %256; G = ((x*y)//97 + 31*(x//40))%256; B = 200 - (x+2y)//3"
HEIGHT, WIDTH, QUERIES, CLASSES, TAPS, STUFF = 64, 96, 12, 5, [0, 2], [3, 4]


def encoder_shapes(dim: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names of a DINOv3 with patch 16 and four registers."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, dim),
        "embeddings.register_tokens": (1, 4, dim),
        "embeddings.patch_embeddings.weight": (dim, 3, 16, 16),
        "embeddings.patch_embeddings.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    for i in range(depth):
        for name in "qkvo":
            shapes[f"layer.{i}.attention.{name}_proj.weight"] = (dim, dim)
        for name in (*(f"attention.{n}_proj.bias" for n in "qvo"), "layer_scale1.lambda1", "layer_scale2.lambda1"):
            shapes[f"layer.{i}.{name}"] = (dim,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "mlp.down_proj.bias"):
            shapes[f"layer.{i}.{name}"] = (dim,)
        shapes |= {f"layer.{i}.mlp.up_proj.weight": (2 * dim, dim), f"layer.{i}.mlp.up_proj.bias": (2 * dim,)}
        shapes[f"layer.{i}.mlp.down_proj.weight"] = (dim, 2 * dim)
    return shapes


def draw(name: str, shape: list[int], mean: float, std: float, seed: int) -> Tensor:
    state = (zlib.crc32(name.removeprefix("encoder:").encode()) ^ (seed * 2654435761)) & 0xFFFFFFFF
    uniform = np.random.RandomState(state).random_sample(int(np.prod(shape)))
    return torch.from_numpy((mean + std * np.sqrt(12) * (uniform - 0.5)).astype(np.float32)).view(shape)


@pytest.fixture
def seeded_case(cases: Cases) -> str:
    """A small model by its formulas, with results of our own and sub-sampled as the full-size case's are."""
    dim, seed = 16, 11
    spec = EncoderSpec("dinov3", "r", dim, 3, 2, patch_size=16, num_prefix_tokens=5)
    described = PlainMaskDecoder(
        spec, out_indices=TAPS, num_queries=QUERIES, num_classes=CLASSES, num_blocks=2, mlp_dim=dim
    )
    shapes = {f"encoder:{name}": shape for name, shape in encoder_shapes(dim, 3).items()}
    shapes |= {name: tuple(shape) for name, shape in published_shapes(described).items()}
    params: list[list[Any]] = []
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            params.append([name, list(shape), "const", 7])
        elif name.endswith("running_var"):
            params.append([name, list(shape), 0.5, 0.1])
        else:
            positive = name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "lambda1"))
            params.append([name, list(shape), 1.0 if positive else 0.0, 0.2])
    weights = {
        name: torch.full(shape, std) if mean == "const" else draw(name, shape, mean, std, seed)
        for name, shape, mean, std in params
    }
    weights["network.decoder.q.weight"][2::3] *= 0.05
    encoder = build_encoder(
        {n.removeprefix("encoder:"): t for n, t in weights.items() if n.startswith("encoder:")},
        revision="r",
        num_heads=2,
    )
    decoder = load_pmt_decoder({n: t for n, t in weights.items() if "encoder:" not in n}, encoder.spec, TAPS)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = ((3 * x + 5 * y) // 4 % 256, ((x * y) // 97 + 31 * (x // 40)) % 256, 200 - (x + 2 * y) // 3)
    image = torch.from_numpy(np.stack(channels).astype(np.uint8))[None]
    with torch.no_grad():
        features = encoder(image, TAPS)
        tokens = decoder.decode(features)
        mask_logits, class_logits = decoder(features)
    segment_map, segments = merge_panoptic(
        mask_logits[0],
        class_logits[0],
        FitGeometry(HEIGHT, WIDTH).place((HEIGHT, WIDTH)),
        stuff_ids=STUFF,
        score_threshold=0.2,
        overlap_threshold=0.1,
    )
    assert segments
    labels = torch.tensor([*(s.label_id for s in segments), CLASSES])
    facts = {
        "config": {
            **{"heads": 2, "interaction": TAPS, "img_size": [HEIGHT, WIDTH], "seed": seed, "stuff": STUFF},
            **{"mask_thresh": 0.2, "overlap_thresh": 0.1},
        },
        "weights": WEIGHTS,
        "image": PICTURE,
        "params": params,
        "checksums": {name: weights[name].double().sum().item() for name in list(weights)[::9]},
        "stats": {"segments": [[s.segment_id, s.label_id] for s in segments]},
        "semantics": {
            "mask_logits_sub": "mask_logits[:, ::5, 1::3, 2::4]",
            "feature_norm_sub.i": "normed encoder output, token rows 0,4,5,last",
            "panoptic.*_s4": "at img_size, [::4, ::4]",
        },
    }
    tensors = {
        "class_logits": class_logits,
        "mask_logits_sub": mask_logits[:, ::5, 1::3, 2::4],
        "mask_positive_fraction": (mask_logits[0] > 0).float().mean((1, 2)),
        "mask_mean": mask_logits[0].mean((1, 2)),
        "tokens_out_sub": tokens[0, [0, 11, 12, 17, -1]],
        "panoptic.segment_map_s4": segment_map[::4, ::4].short(),
        "panoptic.class_map_s4": labels[segment_map][::4, ::4].to(torch.uint8),
        **{f"feature_norm_sub.{i}": features.tokens(tap)[0, [0, 4, 5, -1]] for i, tap in enumerate(TAPS)},
    }
    cases.write("by_formula", facts, tensors)
    return "by_formula"


def test_a_case_by_formula_passes_whole_and_fails_with_any_tensor_changed(cases: Cases, seeded_case: str) -> None:
    report = cases.run(seeded_case)
    assert (report.problems, [str(c) for c in report.comparisons if not c.passed]) == ((), [])
    assert "rope_cos" in report.skipped

    def change(tensors: dict[str, Tensor]) -> None:
        for tensor in tensors.values():
            tensor.view(-1)[:: 1 if tensor.is_floating_point() else 50] += 1

    cases.change_tensors(seeded_case, change)
    failed = {c.name.partition(" ")[0] for c in cases.run(seeded_case).comparisons if not c.passed}
    assert failed >= set(cases.tensors(seeded_case))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("stats.segments", [[0, 1], [1, 1]]),
        ("config.seed", 12),
        ("checksums", {"network.decoder.class_head.bias": 1.0}),
    ],
)
def test_a_changed_fact_of_it_fails(cases: Cases, seeded_case: str, path: str, value: object) -> None:
    *steps, last = path.split(".")

    def change(facts: dict[str, Any]) -> None:
        for step in steps:
            facts = facts[step]
        facts[last] = value

    cases.change_facts(seeded_case, change)
    assert any(not c.passed for c in cases.run(seeded_case).comparisons)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights", "torch.randn"),
        ("weights", WEIGHTS.replace("(r%3==2) are multiplied", "are somehow multiplied")),
        ("image", "a photograph"),
        ("image", PICTURE.replace("200 - ", "sqrt")),
    ],
)
def test_another_formula_is_not_understood(cases: Cases, seeded_case: str, key: str, value: str) -> None:
    cases.change_facts(seeded_case, lambda facts: facts.update({key: value}))
    report = cases.run(seeded_case)
    assert not report.passed
    assert "not understood" in report.problems[0]


def test_the_exception_to_the_formula_is_read_from_its_words(cases: Cases, seeded_case: str) -> None:
    words = WEIGHTS.replace("(r%3==2) are multiplied by 0.05", "(r%4==1) are multiplied by 0.5")
    cases.change_facts(seeded_case, lambda facts: facts.update(weights=words))
    drawn = seeded.weights(Case.read(cases.folder, seeded_case))["network.decoder.q.weight"]
    plain = draw("network.decoder.q.weight", [QUERIES, 16], 0.0, 0.2, 11)
    assert torch.equal(drawn[1::4], plain[1::4] * 0.5)
    assert torch.equal(drawn[2::4], plain[2::4])


def test_formulas_mean_what_they_say() -> None:
    y, x = np.mgrid[0:50, 0:70]
    values = {"x": x, "y": y}
    assert (
        seeded.evaluate("((3x+5y)//4 + 40*((x//64 + y//48)%3))%256", values)
        == (((3 * x + 5 * y) // 4 + 40 * ((x // 64 + y // 48) % 3)) % 256)
    ).all()
    assert (seeded.evaluate(" 2(x - y) ", values) == 2 * (x - y)).all()


@pytest.mark.parametrize("formula", ["x**9", "x/2", "abs(x)", "x.__class__", "z + 1", "x if y else 2", "'x'*3", "-1.5"])
def test_formulas_of_anything_else_are_refused(formula: str) -> None:
    values = {"x": np.arange(3), "y": np.arange(3)}
    with pytest.raises(CaseError, match="not understood"):
        seeded.evaluate(formula, values)
