"""The commands `polyhead bundles list|show|check` and `polyhead pull`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from decoders.labels import LabelSet
from serving.bundles.check import BundleCheck, check_bundle
from serving.bundles.loading import fetch_weights, label_set_of
from serving.bundles.schema import packaged_bundles, read_bundle
from serving.bundles.weights import locate, parse_reference
from serving.config import read_settings

bundles = typer.Typer(no_args_is_help=True, help="Look at bundles: what they hold, what they cost, whether they fit.")
console = Console()

Name = Annotated[str, typer.Argument(help="A packaged bundle's name, or the path of a bundle's YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@bundles.command("list")
def list_bundles() -> None:
    """The packaged bundles, and which of them have all their weights on this machine."""
    cache_dir = read_settings().cache_dir
    table = Table()
    table.add_column("bundle", no_wrap=True)
    table.add_column("what")
    table.add_column("weights", no_wrap=True)
    for name in packaged_bundles():
        file, folder = read_bundle(name)
        references = [file.encoder.weights, *(entry.weights for entry in file.tasks.values() if entry.weights)]
        absent = [text for text in references if locate(parse_reference(text, folder), cache_dir) is None]
        state = f"{len(absent)} to pull" if absent else "here"
        table.add_row(name, f"{file.description}\n[dim]{', '.join(file.tasks)}[/]", state)
    console.print(table)


@bundles.command()
def show(bundle: Name, as_json: AsJson = False) -> None:
    """What a bundle holds, and the plan of a request for all its tasks: passes and GFLOPs. Loads nothing."""
    settings = read_settings()
    file, folder = read_bundle(bundle)
    check = check_bundle(bundle, settings.cache_dir, random=True)
    if as_json:
        print(json.dumps(_plan_json(check), indent=1))
        return
    console.print(f"[bold]{file.name}[/]  {file.description}", highlight=False)
    table = Table("part", "decoder", "classes", "input", "parameters")
    for part in check.parts:
        entry = file.tasks.get(part.part)
        labels = None if entry is None else label_set_of(entry, folder)
        table.add_row(
            part.part + ("*" if part.part in file.default_tasks else ""),
            (check.spec.name if check.spec else "?") if entry is None else entry.decoder,
            _classes(labels),
            "" if entry is None else str(file.geometry_of(part.part)),
            f"{part.parameters / 1e6:.1f} M" if part.parameters else "",
        )
    console.print(table)
    console.print("* runs when a request names no task", highlight=False)
    for part in check.parts:
        if part.source:
            state = "" if part.found else "  [yellow](to pull)[/]"
            console.print(f"{part.part} weights: {part.source}{state}", highlight=False, soft_wrap=True)
        if part.problem:
            console.print(f"[bold red]{part.part}[/] {part.problem}", highlight=False, soft_wrap=True)
    _print_plan(check)


@bundles.command()
def check(
    bundle: Name,
    random: Annotated[
        bool, typer.Option("--random", help="Match the published names and shapes, without any file of weights.")
    ] = False,
) -> None:
    """Build a bundle at full size without memory and match all names and shapes of its weights; exit 1 if one fails."""
    found = check_bundle(bundle, read_settings().cache_dir, random=random)
    table = Table("part", "tensors", "parameters", "result", title=f"{found.file.name}", title_justify="left")
    for part in found.parts:
        result = f"[bold red]{part.problem}[/]" if part.problem else "fits"
        table.add_row(part.part, str(part.tensors or ""), f"{part.parameters:,}" if part.parameters else "", result)
    console.print(table)
    _print_plan(found)
    if not found.passed:
        raise typer.Exit(1)


def pull(bundle: Annotated[str, typer.Argument(help="A bundle's name or YAML file.")] = "demo") -> None:
    """Fetch all weights of a bundle, so that serving it starts at once. Goes on where an earlier try broke off."""
    for part, path in fetch_weights(bundle, read_settings().cache_dir).items():
        print(f"{part} of '{bundle}': {path}")


def _classes(labels: LabelSet | None) -> str:
    return "" if labels is None else f"{len(labels)} ({labels.name})"


def _print_plan(check: BundleCheck) -> None:
    if not check.costs or check.spec is None:
        console.print("no plan: the encoder could not be built", highlight=False)
        return
    table = Table("pass", "input", "part", "GFLOPs", title="one request for all tasks", title_justify="left")
    shared = apart = 0.0
    for number, cost in enumerate(check.costs, 1):
        height, width = cost.input_size
        shape = f"{height} x {width}" if cost.num_views == 1 else f"{cost.num_views} x {height} x {width}"
        table.add_row(str(number), shape, check.spec.name, f"{cost.encoder_gflops:.1f}")
        shared += cost.encoder_gflops
        for task, gflops in cost.heads_gflops.items():
            table.add_row("", "", task, "?" if gflops is None else f"{gflops:.1f}")
            shared += gflops or 0.0
            apart += cost.encoder_gflops + (gflops or 0.0)
        table.add_section()
    console.print(table)
    console.print(
        f"{len(check.costs)} encoder pass(es), {shared:.0f} GFLOPs (2 per multiply-add, post-processing not counted); "
        f"one service per task would take {apart:.0f}, {apart / shared:.2f} times as many",
        highlight=False,
    )


def _plan_json(check: BundleCheck) -> dict[str, object]:
    return {
        "bundle": check.file.name,
        "description": check.file.description,
        "passes": [
            {
                "input_size": cost.input_size,
                "num_views": cost.num_views,
                "tasks": cost.planned.tasks,
                "encoder_gflops": round(cost.encoder_gflops, 3),
                "heads_gflops": {t: None if g is None else round(g, 3) for t, g in cost.heads_gflops.items()},
            }
            for cost in check.costs
        ],
        "parts": [{"part": p.part, "weights": p.source, "here": p.found, "problem": p.problem} for p in check.parts],
    }
