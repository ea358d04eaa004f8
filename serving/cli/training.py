"""The commands `polyhead train` and `polyhead eval`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from decoders.depth import DepthDecoder
from decoders.panoptic import PanopticDecoder
from decoders.results import Result
from decoders.training import recipes
from decoders.training.data.coco import load_coco_panoptic
from decoders.training.data.rgbd import load_rgbd
from decoders.training.evaluate import score_depth, score_panoptic
from decoders.training.feature_cache import FeatureCache
from decoders.training.schedule import Schedule
from encoders.geometry import FitGeometry
from serving.bundles.loading import new_decoder, open_encoder
from serving.bundles.schema import read_bundle
from serving.bundles.weights import fetch, parse_reference
from serving.config import read_settings
from serving.engine import Engine
from serving.errors import BundleError

console = Console(stderr=True)

TaskName = Annotated[str, typer.Argument(help="A task of the bundle: its head is trained or scored.")]
Data = Annotated[Path, typer.Option(help="Folder of the labelled pictures.", exists=True, file_okay=False)]
BundleName = Annotated[str, typer.Option(help="A packaged bundle's name, or the path of a bundle's YAML file.")]
SplitHelp = "panoptic: name of the split; depth: numbers of the first and last frame."


def train(
    task: TaskName,
    data: Data,
    bundle: BundleName = "demo",
    split: Annotated[str | None, typer.Option(help=SplitHelp + " [default: train2017 or 0:695]")] = None,
    out: Annotated[Path | None, typer.Option(help="Weights file [default: TASK.safetensors here].")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimisation steps [default: the recipe's].")] = None,
    seed: Annotated[int, typer.Option(help="Of views, initial weights and order.")] = 0,
    features: Annotated[Path | None, typer.Option(help="Folder for cached features [default: in the cache].")] = None,
) -> None:
    """Train a head of a bundle on frozen features; they are computed once and kept on disk."""
    settings = read_settings()
    file, folder = read_bundle(bundle)
    if task not in file.tasks:
        raise BundleError(f"no task '{task}' in bundle {file.name}; there are: {', '.join(file.tasks)}")
    entry = file.tasks[task]
    geometry = file.geometry_of(task)
    if not isinstance(geometry, FitGeometry):
        raise BundleError(f"task '{task}': heads are trained at a fixed height and width, not at {geometry}")
    encoder = open_encoder(file.encoder, fetch(parse_reference(file.encoder.weights, folder), settings.cache_dir))
    torch.manual_seed(seed)
    decoder = new_decoder(entry, encoder.spec, folder)
    cache = FeatureCache(features or settings.cache_dir / "features", encoder, geometry, decoder.out_indices)
    with _progress() as bar:
        report = _reporter(bar)
        if isinstance(decoder, PanopticDecoder):
            schedule = _schedule(recipes.PANOPTIC, steps, seed)
            panoptic_samples = load_coco_panoptic(data, split, decoder.label_set).samples
            recipes.fit_panoptic(decoder, panoptic_samples, cache, schedule, report)
            pictures = len(panoptic_samples)
        elif isinstance(decoder, DepthDecoder):
            schedule = _schedule(recipes.DEPTH, steps, seed)
            depth_samples = load_rgbd(data, split or "0:695").samples
            recipes.fit_depth(decoder, depth_samples, cache, schedule, report)
            pictures = len(depth_samples)
        else:
            raise BundleError(f"no recipe trains decoder '{entry.decoder}'; there are recipes for panoptic and depth")
    target = out or Path(f"{task}.safetensors")
    facts = dataclasses.asdict(schedule) | {"task": task, "pictures": pictures, "encoder": encoder.spec.revision}
    recipes.save_head(decoder, target, {name: str(value) for name, value in facts.items()})
    console.print(f"wrote {target} ({target.stat().st_size / 2**20:.1f} MiB)")


def evaluate(
    task: TaskName,
    data: Data,
    bundle: BundleName = "demo",
    split: Annotated[str | None, typer.Option(help=SplitHelp + " [default: val2017 or 800:999]")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file as well.")] = None,
) -> None:
    """Score a head of a bundle on held-out pictures: PQ for panoptic heads, AbsRel for depth."""
    settings = read_settings()
    engine = Engine.from_bundle(bundle, device=settings.device, cache_dir=settings.cache_dir)
    engine.check_tasks([task])

    def predict(image: Any) -> Result:
        prediction = engine.predict(image, [task])[0]
        if task in prediction.errors:
            raise prediction.errors[task]
        return prediction.results[task]

    with _progress() as bar:
        report = _reporter(bar)
        if engine.bundle.heads[task].decoder.kind == "panoptic":
            label_set = engine.bundle.label_sets[task]
            panoptic_samples = load_coco_panoptic(data, split, label_set, prefer="val").samples
            total = len(panoptic_samples)
            figures = score_panoptic(
                predict, panoptic_samples, label_set, lambda done: report("scoring", done, total, None)
            )
        else:
            depth_samples = load_rgbd(data, split or "800:999").samples
            total = len(depth_samples)
            figures = score_depth(predict, depth_samples, lambda done: report("scoring", done, total, None))
    figures = {name: round(value, 4) for name, value in figures.items()}
    answer = {"bundle": bundle, "task": task, "data": data.name, "pictures": total, **figures}
    print(json.dumps(answer, indent=1))
    if out is not None:
        out.write_text(json.dumps(answer, indent=1) + "\n")


def _schedule(recipe: Schedule, steps: int | None, seed: int) -> Schedule:
    return dataclasses.replace(recipe, steps=steps or recipe.steps, seed=seed)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _reporter(bar: Progress) -> recipes.Progress:
    stages: dict[str, Any] = {}

    def report(stage: str, done: int, total: int, loss: float | None) -> None:
        if stage not in stages:
            stages[stage] = bar.add_task(stage, total=total)
        description = stage if loss is None else f"{stage} (loss {loss:.3f})"
        bar.update(stages[stage], completed=done, description=description)

    return report
