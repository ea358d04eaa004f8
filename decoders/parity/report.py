"""What comparing found: one `Comparison` for each expected tensor or list, and the one table of tolerances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """How far apart two results may be.

    Attributes:
        atol, rtol: allowed is atol + rtol * |expected|; both 0 means equal.
        pixels: instead, the share of the entries of a map that may differ at all.
    """

    atol: float = 0.0
    rtol: float = 0.0
    pixels: float | None = None

    def __str__(self) -> str:
        if self.pixels is not None:
            return f"{self.pixels:.0e} of the pixels"
        if not self.atol:
            return "equal"
        return f"{self.atol:.0e}" + (f" + {self.rtol:.0e}·|x|" if self.rtol else "")


TOLERANCES = {
    "mask_logits": Tolerance(2e-4, 1e-4),
    "positive_fraction": Tolerance(1e-4),  # of the pixels
    "class_logits": Tolerance(1e-4),
    "instance_scores": Tolerance(1e-4),
    "features": Tolerance(5e-5),
    "tokens": Tolerance(5e-5),
    "query_state": Tolerance(5e-5),
    "rope": Tolerance(1e-6),
    "semantic_scores": Tolerance(2e-5),
    "structured": Tolerance(1e-5),  # post-processing alone: the logits are given
    "resampling": Tolerance(1e-5),
    "checksum": Tolerance(1e-6, 1e-9),
    "map": Tolerance(pixels=1e-4),
    "exact": Tolerance(),
}
"""For float32 on the CPU, as the golden files' specification (section 12) recommends."""


@dataclass(frozen=True)
class Comparison:
    """One result against the expected one.

    Attributes:
        name: what was compared.
        difference: the largest absolute one; of maps the share of the pixels that differ; of lists the number of
            entries that differ; infinite where the two can't be compared.
        tolerance: what was allowed.
        excess: difference by what was allowed; up to 1 passes.
        detail: where that helps, what differs.
    """

    name: str
    difference: float
    tolerance: Tolerance
    excess: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the two agree (a difference that is no number does not)."""
        return self.excess <= 1

    def __str__(self) -> str:
        told = f"; {self.detail}" if self.detail else ""
        return f"{self.name}: {self.difference:.1e} (tolerance {self.tolerance}{told})"


@dataclass(frozen=True)
class CaseReport:
    """What became of one case.

    Attributes:
        name: of its files.
        kinds: what it was taken for.
        comparisons: in the order made.
        skipped: what other cases of the kind have and this one lacks.
        problems: why it could not be run, or what in it nothing understood.
        seconds: it took.
    """

    name: str
    kinds: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    skipped: tuple[str, ...]
    problems: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all of it was understood, something was compared, and everything agrees."""
        return not self.problems and bool(self.comparisons) and all(c.passed for c in self.comparisons)

    @property
    def worst(self) -> Comparison | None:
        """The comparison nearest to its tolerance, or furthest beyond it."""

        def badness(comparison: Comparison) -> tuple[float, bool]:
            # NaN orders with nothing; it counts as the worst there is. Of equals, numbers tell more than lists.
            excess = math.inf if math.isnan(comparison.excess) else comparison.excess
            return excess, comparison.tolerance != TOLERANCES["exact"]

        return max(self.comparisons, key=badness, default=None)


def compare_tensors(name: str, ours: Tensor, expected: Tensor, tolerance: Tolerance, detail: str = "") -> Comparison:
    """Compare two tensors of any dtypes, entry by entry; shapes that differ are infinitely far apart."""
    if ours.shape != expected.shape:
        return Comparison(name, math.inf, tolerance, math.inf, f"shape {list(ours.shape)}, not {list(expected.shape)}")
    if not expected.numel():
        return Comparison(name, 0.0, tolerance, 0.0, detail or "both empty")
    if tolerance.pixels is not None:
        share = (ours != expected).double().mean().item()
        return Comparison(name, share, tolerance, share / tolerance.pixels, detail)
    apart = (ours.double() - expected.double()).abs()
    allowed = tolerance.atol + tolerance.rtol * expected.double().abs()
    excess = torch.where(apart == 0, 0.0, apart / allowed)  # 0 / 0 is no excess
    return Comparison(name, apart.max().item(), tolerance, excess.max().item(), detail)


def compare_lists(name: str, ours: Sequence[object], expected: Sequence[object]) -> Comparison:
    """Compare two lists of ids, sizes and the like, which must be equal."""
    if len(ours) != len(expected):
        number, detail = abs(len(ours) - len(expected)), f"{len(ours)} entries, not {len(expected)}"
    else:
        differing = [(a, b) for a, b in zip(ours, expected, strict=True) if a != b]
        number = len(differing)
        detail = f"first {differing[0][0]}, not {differing[0][1]}" if differing else ""
    return Comparison(name, float(number), TOLERANCES["exact"], math.inf if number else 0.0, detail)


def as_json(reports: Iterable[CaseReport]) -> list[dict[str, Any]]:
    """The figures of every comparison, as plain values; a difference that is no finite number becomes null."""
    return [
        {
            "case": report.name,
            "kinds": list(report.kinds),
            "passed": report.passed,
            "seconds": round(report.seconds, 2),
            "comparisons": [
                {
                    "name": c.name,
                    "difference": c.difference if math.isfinite(c.difference) else None,
                    "tolerance": str(c.tolerance),
                    "passed": c.passed,
                    "detail": c.detail,
                }
                for c in report.comparisons
            ],
            "skipped": list(report.skipped),
            "problems": list(report.problems),
        }
        for report in reports
    ]


def as_markdown(reports: Iterable[CaseReport]) -> str:
    """A table of the figures for each case."""
    parts = []
    for report in reports:
        parts.append(f"## {report.name}: {'pass' if report.passed else 'FAIL'}\n\n")
        parts.extend(f"- {problem}\n" for problem in report.problems)
        if report.comparisons:
            parts.append("| compared | largest difference | tolerance | |\n|---|---|---|---|\n")
        for c in report.comparisons:
            detail = f" ({c.detail})" if c.detail else ""
            verdict = "pass" if c.passed else "FAIL"
            parts.append(f"| {c.name}{detail} | {c.difference:.1e} | {c.tolerance} | {verdict} |\n".replace("|x|", "x"))
        if report.skipped:
            parts.append(f"\nNot in this case: {', '.join(report.skipped)}.\n")
        parts.append("\n")
    return "".join(parts)
