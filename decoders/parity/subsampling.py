"""Expected tensors that hold a part of ours: which part, as the case's own words or the shapes tell."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Index = tuple[slice | int | list[int], ...]

_MOST_TRIES = 4096
"""Combinations of strides that are tried where nothing tells them."""


def matching_part(
    ours: Tensor, expected: Tensor, texts: Sequence[str] = (), strides: Sequence[int] = ()
) -> tuple[Tensor, str] | None:
    """The part of `ours` that `expected` holds, by what is stated; or else the nearest of those that fit its shape.

    Args:
        ours: the whole result; leading dimensions of 1 may be absent from `expected`.
        expected: a part of it.
        texts: descriptions that may hold an index, as in ``mask_logits[:, ::5, 1::8, 2::8]`` or ``rows 0,1,4,last``.
        strides: steps along the last two dimensions that may be meant.

    Returns:
        (the part, its index for the reader, empty if it is the whole), or None if no part has that shape.
    """
    views = [ours]
    while views[-1].ndim > expected.ndim and views[-1].shape[0] == 1:
        views.append(views[-1][0])
    for view in views:
        if view.shape == expected.shape:
            return view, ""
    stated = [index for text in texts for index in _stated(text)]
    stated += [(slice(None, None, step),) * 2 for step in strides]
    for view, index in itertools.product(views, stated):
        part = _apply(view, index)
        if part is not None and _without_ones(part, expected.ndim).shape == expected.shape:
            return _without_ones(part, expected.ndim), _tell(index)
    fitting: list[Index] = list(itertools.islice(_fitting(views[-1], expected), _MOST_TRIES))
    fitting += _nearest_rows(views[-1], expected)
    if not fitting:
        return None
    # Other parts of equal shape hold unrelated numbers, so the nearest is the one meant.
    best = min(fitting, key=lambda index: _distance(views[-1][index], expected))
    return views[-1][best], f"{_tell(best)}, found"


def _stated(text: str) -> Iterator[Index]:
    """Every index that a text states: slices in brackets, or numbers of token rows."""
    for inside in re.findall(r"\[([-\d:,. ]*:[-\d:,. ]*)\]", text):
        try:
            yield tuple(_slice(part.strip()) for part in inside.split(","))
        except (TypeError, ValueError):  # more than two colons, or no numbers between them
            continue
    for listed in re.findall(r"\brows ((?:\d+|last|and|[, ])+)", text):
        rows = [-1 if row == "last" else int(row) for row in re.findall(r"\d+|last", listed)]
        yield (rows, slice(None))


def _slice(part: str) -> slice | int:
    return slice(*(int(n) if n.strip() else None for n in part.split(":"))) if ":" in part else int(part)


def _apply(view: Tensor, index: Index) -> Tensor | None:
    """`view` at `index`, which counts from the last dimension; None if it does not fit."""
    if len(index) > view.ndim:
        return None
    try:
        return view[(..., *index)]
    except IndexError:
        return None


def _without_ones(part: Tensor, ndim: int) -> Tensor:
    while part.ndim > ndim and part.shape[0] == 1:
        part = part[0]
    return part


def _fitting(view: Tensor, expected: Tensor) -> Iterator[tuple[slice, ...]]:
    """Strides from 0, one for each dimension, that give the expected shape."""
    if view.ndim != expected.ndim:
        return
    steps = [
        [step for step in range(1, full + 1) if math.ceil(full / step) == wanted]
        for full, wanted in zip(view.shape, expected.shape, strict=True)
    ]
    for combination in itertools.product(*steps):
        yield tuple(slice(None, None, step) for step in combination)


def _nearest_rows(view: Tensor, expected: Tensor) -> list[Index]:
    """For a list of vectors, the rows that are nearest to them."""
    if view.ndim != 2 or expected.ndim != 2 or view.shape[1] != expected.shape[1] or not expected.is_floating_point():
        return []
    return [(torch.cdist(expected.double(), view.double()).argmin(dim=1).tolist(), slice(None))]


def _distance(part: Tensor, expected: Tensor) -> float:
    distance = (part.double() - expected.double()).abs().nan_to_num(torch.inf).mean().item()
    return distance if distance == distance else math.inf


def _tell(index: Sequence[slice | int | list[int]]) -> str:
    def tell(part: slice | int | list[int]) -> str:
        if isinstance(part, list):
            return "rows " + ",".join("last" if row == -1 else str(row) for row in part)
        if isinstance(part, int):
            return str(part)
        start, stop = ("" if end is None else str(end) for end in (part.start, part.stop))
        return f"{start}:{stop}" + (f":{part.step}" if part.step not in (None, 1) else "")

    return f"[{', '.join(tell(part) for part in index)}]"
