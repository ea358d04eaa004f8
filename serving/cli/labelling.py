"""The command `polyhead label`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from decoders.base import PostprocessOptions
from decoders.results import PanopticResult
from decoders.training.data.folders import pictures_in
from decoders.training.data.panoptic_folder import INDEX, PanopticFolder
from serving.cli.evaluation_answers import answer_pictures, batches
from serving.cli.progress import progress_bar
from serving.cli.training import FROM_DATA
from serving.config import read_settings
from serving.engine import Engine
from serving.errors import PolyheadError, StartError
from serving.pictures import decode_picture
from serving.types import PredictOptions

console = Console(stderr=True)

_NAMED = 10
"""Most files that are named as left out."""


def label(
    pictures: Annotated[Path, typer.Argument(help="Folder of pictures, at any depth.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for the labelled data.", file_okay=False)],
    task: Annotated[
        str | None,
        typer.Option(help="A task of the bundle whose results are panoptic.", show_default="the first default one"),
    ] = None,
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
    chosen = _panoptic_task(engine, task)
    files = pictures_in(pictures, deep=True)
    if not files:
        raise StartError(f"{pictures} holds no pictures")
    if out.resolve().is_relative_to(pictures.resolve()):
        raise StartError(f"{out} lies in {pictures}, where its files would be pictures too: give another --out")
    if (pictures / INDEX).exists() and (pictures / "panoptic").is_dir():
        raise StartError(f"{pictures} is labelled data; the pictures to label are in {pictures / 'images'}")
    options = PredictOptions(PostprocessOptions(score_threshold=score_threshold))
    folder = PanopticFolder(out, pictures, engine.bundle.label_sets[chosen])
    left_out: list[str] = []
    num_segments = 0
    with progress_bar(console) as bar:
        step = bar.add_task(f"labelling by task '{chosen}'", total=len(files))
        for some in batches(files, batch_size):
            read = []
            for path in some:
                name = path.relative_to(pictures).as_posix()
                try:
                    read.append((name, decode_picture(path.read_bytes(), max_pixels=settings.max_pixels)))
                except (OSError, PolyheadError) as error:
                    left_out.append(f"{name}: {error}")
            for name, result in _answers(engine, read, chosen, options, left_out):
                folder.add(name, result)
                num_segments += len(result.segments)
            bar.update(step, advance=len(some))
    if len(left_out) == len(files):
        raise StartError(f"no picture in {pictures} can be labelled; the first: {left_out[0]}")
    folder.finish()
    if left_out:
        told = "\n".join([*left_out[:_NAMED], *(["…"] if len(left_out) > _NAMED else [])])
        console.print(f"{len(left_out)} pictures left out:\n{told}", highlight=False, markup=False, soft_wrap=True)
    print(f"wrote {out}: {len(files) - len(left_out)} pictures, {num_segments} segments")
    print(f"try: polyhead train panoptic --data {shlex.quote(str(out))} --labels {FROM_DATA} --out HEAD")


def _answers(
    engine: Engine,
    pictures: Sequence[tuple[str, Image.Image]],
    task: str,
    options: PredictOptions,
    left_out: list[str],
) -> list[tuple[str, PanopticResult]]:
    """Names and results; where a batch fails, each picture is tried alone, and `left_out` gets those that fail."""
    try:
        found = answer_pictures(engine, pictures, [task], options, max(1, len(pictures)))
    except (StartError, PolyheadError) as error:
        if len(pictures) > 1:
            return [each for picture in pictures for each in _answers(engine, [picture], task, options, left_out)]
        [(name, _)] = pictures
        left_out.append(f"{name}: {str(error).removeprefix(f'{name}: ')}")
        return []
    told = []
    for (name, _), results in zip(pictures, found, strict=True):
        result = results[task]
        assert isinstance(result, PanopticResult)
        told.append((name, result))
    return told


def _panoptic_task(engine: Engine, asked: str | None) -> str:
    """The task that labels: the one asked for, or the first default one whose results are panoptic.

    Raises:
        StartError: its results are no panoptic ones, or there is none.
        UnsupportedTaskError: there is no such task.
    """
    kinds = {name: head.decoder.kind for name, head in engine.bundle.heads.items()}
    if asked is not None:
        engine.check_tasks([asked])
    chosen = asked or next((name for name in engine.bundle.default_tasks if kinds[name] == "panoptic"), None)
    if chosen is None or kinds[chosen] != "panoptic":
        fitting = ", ".join(name for name, kind in kinds.items() if kind == "panoptic") or "none"
        wrong = "no default task gives" if chosen is None else f"task '{chosen}' gives {kinds[chosen]} results, not"
        raise StartError(f"{wrong} panoptic ones; --task may be: {fitting}")
    return chosen
