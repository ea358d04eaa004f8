"""The command `polyhead distill`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file

from decoders.training.interrupt import noted_interrupt
from encoders.checkpoints import load_encoder, sha256_of
from encoders.distillation.distill import Distillation, DistillationSchedule, check_teacher
from encoders.distillation.pictures import find_pictures, load_pictures, random_view, seeded
from encoders.distillation.student import TINY, to_hugging_face
from encoders.vit import VisionTransformer
from serving.cli.progress import progress_bar
from serving.cli.trained_bundle import FILE_NAME, check_new
from serving.config import read_settings
from serving.errors import StartError

console = Console(stderr=True)

CHECKPOINT, CURVE, WEIGHTS = "checkpoint.pt", "curve.csv", "encoder.safetensors"
_SHORT_SIDE = 448
"""Pixels; larger pictures are kept no larger than this in memory."""


def distill(
    pictures: Annotated[
        list[Path],
        typer.Argument(help="Folders of unlabelled pictures and video, at any depth.", exists=True, file_okay=False),
    ],
    teacher: Annotated[
        Path, typer.Option(help="timm's vit_tiny_patch16_224 as safetensors.", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the new encoder's bundle.", file_okay=False)],
    leave_out: Annotated[
        list[str] | None,
        typer.Option(help="Part of a path that keeps files out, held-out data say; several times.", show_default=False),
    ] = None,
    val: Annotated[
        Path | None,
        typer.Option(
            help="Folder of other pictures; at the end, how much of the teacher's tokens on them is not told.",
            exists=True,
            file_okay=False,
            show_default="none",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimisation steps.")] = DistillationSchedule.steps,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, views and order.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    frames_apart: Annotated[int, typer.Option(min=1, help="Of a video, one frame in so many is taken.")] = 6,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that stopped in --out.")] = False,
) -> None:
    """Train a small encoder of DINOv3's shape, from random weights, to tell what a teacher tells.

    Needs no labels. Ctrl-C saves the run, and --resume goes on with it. The bundle at the end serves
    embeddings, and `polyhead train --bundle OUT/bundle.yaml` puts heads on it.
    """
    settings = read_settings()
    device = torch.device(settings.torch_device)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise StartError(f"{checkpoint} is there from a run that stopped: go on with --resume, or give another --out")
    check_new(out)
    encoder = _open_teacher(teacher)
    files = _find(pictures, leave_out or ())
    held_out = [] if val is None else _find([val], ())
    with progress_bar(console) as bar:
        images = _read("reading", files, frames_apart, bar)
        others = _read("reading for validation", held_out, frames_apart, bar) if held_out else []
        schedule = DistillationSchedule(steps=steps, seed=seed)
        measuring = bar.add_task("measuring the teacher", total=1)
        run = Distillation(encoder, images, schedule, device)
        bar.advance(measuring)
        if resume and checkpoint.exists():
            _take_up(run, checkpoint)
        training = bar.add_task("training", total=steps, completed=run.step)
        out.mkdir(parents=True, exist_ok=True)
        with _curve(out / CURVE, run.step) as row:

            def report(step: int, loss: float) -> None:
                row([step, schedule.rate_at(step), schedule.chain_at(step), loss])
                bar.update(training, completed=step, description=f"training (loss {loss:.3f})")

            try:
                with noted_interrupt() as asked_to_stop:
                    run.run(report, save_to=checkpoint, save_every=every, stop=asked_to_stop.is_set)
            except FloatingPointError as error:
                raise StartError(f"{error}; another --seed may help") from None
        if run.step < steps:
            console.print(f"stopped after step {run.step}; the same command with --resume goes on from there")
            raise typer.Exit(130)
        if others:
            console.print(_table(run, others))
    print(f"try: polyhead train semantic --bundle {_write(out, run.student, len(images), schedule)} --data …")
    checkpoint.unlink()


def _open_teacher(path: Path) -> VisionTransformer:
    try:
        teacher = load_encoder(path)
        check_teacher(teacher)
    except ValueError as error:
        raise StartError(f"{path}: {error}") from None
    return teacher


def _find(folders: Sequence[Path], leave_out: Sequence[str]) -> list[Path]:
    try:
        return find_pictures(folders, leave_out=leave_out)
    except FileNotFoundError as error:
        raise StartError(str(error)) from None


def _read(stage: str, files: Sequence[Path], frames_apart: int, bar: Progress) -> list[Image.Image]:
    """The pictures of all files, of which there is at least one."""
    reading = bar.add_task(stage, total=len(files))
    images: list[Image.Image] = []
    try:
        for found in load_pictures(files, _SHORT_SIDE, frames_apart):
            images += found
            bar.advance(reading)
    except OSError as error:
        raise StartError(f"{error}; remove it, or keep it out with --leave-out") from None
    if not images:
        raise StartError("the video that was found holds no frames")
    return images


def _take_up(run: Distillation, checkpoint: Path) -> None:
    try:
        run.resume(checkpoint)
    except Exception as error:  # whatever the file holds
        raise StartError(f"{checkpoint} is no checkpoint of such a run ({error}); delete it to begin anew") from error
    if run.step > run.schedule.steps:
        raise StartError(f"{checkpoint} has {run.step} steps behind it; give at least so many --steps")


@contextmanager
def _curve(path: Path, done: int) -> Iterator[Any]:
    """A writer of lines to a CSV file, which keeps the lines of the steps that are done."""
    kept = list(csv.reader(path.read_text().splitlines()))[1 : 1 + done] if done and path.exists() else []
    with path.open("w", newline="", buffering=1) as file:  # whole lines, so that a run that is killed leaves them
        writer = csv.writer(file)
        writer.writerows([["step", "learning_rate", "chain", "loss"], *kept])
        yield writer.writerow


def _table(run: Distillation, others: Sequence[Image.Image]) -> Table:
    """The part of the teacher's variance that is not told on a random view of each of some pictures, by size."""
    depth = run.student.spec.depth
    blocks = sorted({(part * depth - 1) // 4 for part in range(1, 5)})
    table = Table("side, pixels", *(f"after block {block + 1}" for block in blocks), title="not told of the teacher")
    for side, _, batch_size in run.schedule.sides:
        rng = seeded(run.schedule.seed)
        views = torch.stack([random_view(image, side, rng) for image in others])
        parts = [run.unexplained(batch, blocks) for batch in views.split(batch_size)]
        weights = [len(batch) / len(views) for batch in views.split(batch_size)]
        means = (sum(w * part for w, part in zip(weights, column, strict=True)) for column in zip(*parts, strict=True))
        table.add_row(str(side), *(f"{mean:.3f}" for mean in means))
    return table


def _write(out: Path, student: VisionTransformer, num_images: int, schedule: DistillationSchedule) -> Path:
    """The encoder's weights, and a bundle of it."""
    metadata = {"steps": str(schedule.steps), "seed": str(schedule.seed), "pictures": str(num_images)}
    save_file(to_hugging_face(student), out / WEIGHTS, metadata)
    content = {
        "name": out.resolve().name,
        "description": f"{TINY.name}, distilled from {num_images} pictures.",
        "encoder": {"weights": WEIGHTS},
        "geometry": {"height": _SHORT_SIDE, "width": _SHORT_SIDE},
        "default_tasks": ["embedding"],
        "tasks": {"embedding": {"decoder": "embedding"}, "dense_embedding": {"decoder": "dense_embedding"}},
    }
    path = out / FILE_NAME
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    console.print(f"wrote {path}; SHA-256 of the weights {sha256_of(out / WEIGHTS)}", soft_wrap=True)
    return path
