"""The command `polyhead label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from decoders.base import PostprocessOptions
from decoders.labels import LabelSet
from decoders.results import PanopticResult
from decoders.training.data.folders import pictures_in
from decoders.training.data.panoptic_folder import PanopticFolder
from decoders.training.data.samples import ImageFile
from serving.cli.evaluation_answers import answer_pictures, batches
from serving.cli.progress import progress_bar
from serving.config import read_settings
from serving.engine import Engine
from serving.errors import StartError
from serving.types import PredictOptions

console = Console(stderr=True)

_NAMED = 10
"""Most files that are named as left out."""


def label(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures, at any depth.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for the labelled data.", file_okay=False)],
    task: Annotated[str, typer.Option(help="A task of the bundle whose results are panoptic.")] = "panoptic",
    bundle: Annotated[str, typer.Option(help="A packaged bundle's name, or the path of its YAML file.")] = "demo",
    score_threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Segments with a lower score stay unlabelled.", show_default="the head's own"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most pictures in one encoder pass.")] = 8,
) -> None:
    """Label pictures with a panoptic head, as a COCO panoptic folder that `polyhead train` and annotation tools read.

    Another head can learn from the labels (self-training), or people mend them. The pictures stay where they are: the
    folder holds a link to theirs. Those that can't be read are left out and named.
    """
    settings = read_settings()
    engine = Engine.from_bundle(
        bundle, device=settings.device, dtype=settings.torch_dtype, cache_dir=settings.cache_dir
    )
    label_set = _label_set(engine, task)
    files = pictures_in(pictures, deep=True)
    if not files:
        raise StartError(f"{pictures} holds no pictures")
    if out.resolve().is_relative_to(pictures.resolve()):
        raise StartError(f"{out} lies in {pictures}, where its files would be pictures too: give another --out")
    options = PredictOptions(PostprocessOptions(score_threshold=score_threshold))
    folder = PanopticFolder(out, pictures, label_set)
    left_out: list[str] = []
    num_segments = 0
    with progress_bar(console) as bar:
        step = bar.add_task("labelling", total=len(files))
        for some in batches(files, batch_size):
            read = []
            for path in some:
                name = path.relative_to(pictures).as_posix()
                try:
                    read.append((name, ImageFile(path)()))
                except (OSError, ValueError, Image.DecompressionBombError) as error:
                    left_out.append(f"{name}: {error}")
            answers = answer_pictures(engine, read, [task], options, batch_size)
            for (name, _), results in zip(read, answers, strict=True):
                result = results[task]
                assert isinstance(result, PanopticResult)
                folder.add(name, result)
                num_segments += len(result.segments)
            bar.update(step, advance=len(some))
    if len(left_out) == len(files):
        raise StartError(f"no picture in {pictures} can be read; the first: {left_out[0]}")
    folder.finish()
    if left_out:
        told = "\n".join([*left_out[:_NAMED], *(["…"] if len(left_out) > _NAMED else [])])
        console.print(f"{len(left_out)} pictures left out:\n{told}", highlight=False, markup=False, soft_wrap=True)
    print(f"wrote {out}: {len(files) - len(left_out)} pictures, {num_segments} segments")
    print(f"try: polyhead train panoptic --data {out} --out HEAD")


def _label_set(engine: Engine, task: str) -> LabelSet:
    """The classes of the task.

    Raises:
        StartError: its results are no panoptic ones.
        UnsupportedTaskError: there is no such task.
    """
    engine.check_tasks([task])
    kinds = {name: head.decoder.kind for name, head in engine.bundle.heads.items()}
    if kinds[task] != "panoptic":
        fitting = ", ".join(name for name, kind in kinds.items() if kind == "panoptic") or "none"
        raise StartError(f"task '{task}' gives {kinds[task]} results, not panoptic ones; fitting tasks: {fitting}")
    return engine.bundle.label_sets[task]
