"""Weights and pictures that a case states as formulas instead of holding them."""

from __future__ import annotations

import ast
import operator
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decoders.parity.cases import Case, CaseError
from decoders.parity.report import TOLERANCES, compare_tensors

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def has_formula(case: Case) -> bool:
    """Whether the case's weights are stated."""
    return "params" in case.facts


def weights(case: Case) -> dict[str, Tensor]:
    """Every tensor in the case's "params" (name, shape, mean, std), and its "checksums" compared.

    A tensor is float32(mean + std * sqrt(12) * (u - 0.5)) with u uniform from numpy's legacy generator, seeded with the
    CRC-32 of the name (without "encoder:") and the case's seed.

    Raises:
        CaseError: the case states another formula.
    """
    told = str(case.fact("weights"))
    if not all(word in told for word in ("sqrt(12)", "zlib.crc32(name)", "2654435761", "RandomState")):
        raise CaseError(f"not understood: weights by another formula ({told[:120]} …)")
    seed = int(case.fact("config.seed", "seed"))
    drawn = {name: _draw(name, shape, mean, std, seed) for name, shape, mean, std in case.fact("params")}
    for name, every, start, factor in _scaled_rows(told):
        drawn[name][start::every] *= factor
    for name, checksum in case.fact("checksums", default={}).items():
        total = drawn[name].double().sum()
        wanted = torch.tensor(checksum, dtype=torch.float64)
        case.add(compare_tensors(f"checksum of {name}", total, wanted, TOLERANCES["checksum"]))
    return drawn


def _draw(name: str, shape: list[int], mean: float | str, std: float, seed: int) -> Tensor:
    if mean == "const":
        return torch.full(shape, std, dtype=torch.int64 if isinstance(std, int) else torch.float32)
    crc = zlib.crc32(name.removeprefix("encoder:").encode())
    random = np.random.RandomState((crc ^ (seed * 2654435761)) & 0xFFFFFFFF)  # the generator stated
    uniform = random.random_sample(int(np.prod(shape)))
    values = float(mean) + std * np.sqrt(12) * (uniform - 0.5)
    return torch.from_numpy(values.astype(np.float32)).view(shape)


def _scaled_rows(told: str) -> list[tuple[str, int, int, float]]:
    """(name, every, start, factor) of tensors some of whose rows are multiplied, as the formula's exceptions tell."""
    found = re.findall(r"in (\S+) rows [^()]*\(r%(\d+)==(\d+)\) are multiplied by ([\d.]+)", told)
    if "xception" in told and not found:
        raise CaseError(f"not understood: the exception to the weights' formula ({told[-160:]})")
    return [(name, int(every), int(start), float(factor.rstrip("."))) for name, every, start, factor in found]


def picture(case: Case) -> Tensor:
    """The input that the case's "image" states, [1, 3, H, W] uint8 of size `config.img_size`.

    It is read as it stands, one integer formula a channel: ``R = (3x+5y)//4 %256; G = …; B = …``.

    Raises:
        CaseError: it is no such formula.
    """
    told = str(case.fact("image"))
    height, width = case.size("config.img_size")
    rows, columns = np.mgrid[0:height, 0:width]
    formulas = dict(re.findall(r"\b([RGB])\s*=\s*([^;=]+?)\s*(?:;|\.?$)", told))
    try:
        channels = [evaluate(formulas[channel], {"x": columns, "y": rows}) for channel in "RGB"]
    except (KeyError, SyntaxError):
        raise CaseError(f"not understood: a picture by another formula ({told[:160]})") from None
    return torch.from_numpy(np.stack(channels).astype(np.uint8))[None]


def evaluate(formula: str, values: Mapping[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """An integer formula of sums, products, floor divisions and remainders; ``3x`` means ``3*x``.

    Raises:
        CaseError: there is anything else in it.
        SyntaxError: it is no formula.
    """

    def walk(node: ast.AST) -> Any:
        match node:
            case ast.Expression(body=body):
                return walk(body)
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](walk(left), walk(right))
        raise CaseError(f"not understood: '{ast.unparse(node)}' in the formula {formula}")

    return walk(ast.parse(re.sub(r"(\d)\s*(?=[xy(])", r"\1*", formula.strip()), mode="eval"))
