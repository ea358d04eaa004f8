"""The command `polyhead parity`."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from decoders.parity.cases import NoCasesError
from decoders.parity.report import CaseReport, as_json, as_markdown
from decoders.parity.runner import run_folder

console = Console(stderr=True)

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="Folder of recorded cases: X.json, X.safetensors.", exists=True, file_okay=False
    ),
]


def parity(
    folder: Folder,
    out: Annotated[
        Path | None, typer.Option(help="Write the figures to this file as well: JSON, or Markdown if it ends in .md.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line for every comparison.")] = False,
) -> None:
    """Compare this implementation with recorded outputs of the published PMT code; fails if one case does."""
    started = time.perf_counter()
    with console.status("reading …") as status:

        def show(report: CaseReport) -> None:
            typer.echo("\n".join(_lines(report, verbose=verbose)))

        try:
            reports = run_folder(folder, show, begin=lambda name: status.update(f"{name} …"))
        except NoCasesError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
    failed = [report for report in reports if not report.passed]
    compared = sum(len(report.comparisons) for report in reports)
    took = time.perf_counter() - started
    typer.echo(f"cases: {len(reports)}, comparisons: {compared}, failed cases: {len(failed)}, {took:.1f} s")
    if out is not None:
        out.write_text(_figures(out, folder.resolve().name, reports), encoding="utf-8")
    if failed:
        raise typer.Exit(1)


def _lines(report: CaseReport, *, verbose: bool) -> list[str]:
    """The line of a case; below it what is wrong, what it lacks, and, if wanted, every comparison."""
    worst = report.worst
    told = "nothing compared" if worst is None else f"{len(report.comparisons)} compared, worst {worst}"
    verdict = "pass" if report.passed else "FAIL"
    lines = [
        f"{verdict}  {report.name} ({', '.join(report.kinds) or 'not understood'}): {told}, {report.seconds:.1f} s"
    ]
    lines += [f"      {problem}" for problem in report.problems]
    lines += [
        f"      {'pass' if comparison.passed else 'FAIL'}  {comparison}"
        for comparison in report.comparisons
        if verbose or not comparison.passed
    ]
    if report.skipped:
        lines.append(f"      skipped, not in this case: {', '.join(report.skipped)}")
    return lines


def _figures(out: Path, folder_name: str, reports: Sequence[CaseReport]) -> str:
    if out.suffix == ".md":
        return as_markdown(reports)
    made_with = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    figures = {"folder": folder_name, **made_with, "passed": all(r.passed for r in reports), "cases": as_json(reports)}
    return json.dumps(figures, indent=1) + "\n"
