"""The command `polyhead eval`."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from decoders.base import PostprocessOptions
from decoders.labels import LabelSet
from decoders.results import Result
from decoders.training.data.check import check_data, lines
from decoders.training.data.folders import DataError
from decoders.training.data.formats import open_data
from decoders.training.data.label_maps import MapFormat
from decoders.training.data.samples import ClassSample, Dataset, Sample
from decoders.training.evaluation.bootstrap import Interval, Resampled, resample, rounded
from decoders.training.evaluation.clip_folders import holds_clips, open_clips
from decoders.training.evaluation.clips import Clip, pseudo_clip
from decoders.training.evaluation.scoring import CLIP_KINDS, PICTURE_KINDS, Scorer, clip_scorer, picture_scorer
from decoders.training.evaluation.truth_result import truth_result
from decoders.video import StreamDecoder
from serving.cli.evaluation_answers import answer_clips, answer_pictures, batches
from serving.cli.evaluation_sheet import Column, Row, describe, draw_sheet
from serving.cli.label_map_options import FirstId, Ignore, map_format
from serving.cli.progress import progress_bar
from serving.config import read_settings
from serving.engine import Engine
from serving.errors import BundleError, StartError
from serving.types import PredictOptions, parse_tasks

console = Console(stderr=True)

_SHEET_ROWS = 8
"""Pictures on a sheet that shows no failures."""
_WORST_CLASSES = 5
"""Classes told in the terminal; the JSON holds all."""


@dataclass
class _Run:
    """One head on its data.

    Attributes:
        bundle, engine, task, kind, label_set: whose head.
        items: what is scored, pictures as clips of one frame.
        on_clips: the head remembers, so that its frames are a stream.
        scorer: holds what came of them, in the order of `items`.
        seconds: of answering.
        figures: with intervals, once all is scored.
        difference: of the figures to those of the first bundle; empty for that one, and where pictures
            or classes differ.
    """

    bundle: str
    engine: Engine
    task: str
    kind: str
    label_set: LabelSet | None
    items: Sequence[Clip]
    on_clips: bool
    scorer: Scorer
    seconds: float = 0.0
    figures: dict[str, Interval] = field(default_factory=dict)
    difference: dict[str, Interval] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What is counted."""
        return "clips" if self.on_clips else "pictures"


def evaluate(
    tasks: Annotated[str, typer.Argument(help="Tasks of the bundles, separated by commas.")],
    data: Annotated[Path, typer.Option(help="Folder of the labelled pictures or video.", exists=True, file_okay=False)],
    bundle: Annotated[
        list[str] | None,
        typer.Option(
            help="A packaged bundle's name, or the path of its YAML file; several side by side; demo if left out."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Part of the data: a name, or 7-Scenes' first and last frame (800:999); val… if left out."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write all figures, with those of every class, to this JSON file.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Draw input, truth and answers to this picture; several tasks: NAME_TASK.")
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="The sheet shows this many of the worst pictures; 0: any 8.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first so many pictures or clips only.")] = None,
    frames: Annotated[
        int, typer.Option(min=1, help="Frames of the clips that are cut from photos, for heads that remember.")
    ] = 6,
    median_scaled: Annotated[
        bool, typer.Option("--median-scaled", help="Depth: scale each picture to the truth's median first.")
    ] = False,
    depth_scale: Annotated[
        float | None, typer.Option(help="Depth maps: metres per unit; 0.001 for PNG and 1 for npy if left out.")
    ] = None,
    score_threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="In place of the heads' own; published AP is taken at 0.")
    ] = None,
    first_id: FirstId = None,
    ignore: Ignore = "255",
    resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap over pictures; 0: no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Most pictures in one encoder pass.")] = 8,
) -> None:
    """Score heads on held-out pictures: PQ, mask AP, mIoU, depth errors, accuracy; on clips VPQ, STQ and AP.

    Heads of one bundle share encoder passes. Data is checked as a whole before anything runs. Intervals hold
    95 percent of a bootstrap over pictures (over clips, for heads that remember). Each further bundle is told with its
    paired difference to the first.
    """
    settings = read_settings()
    asked = parse_tasks(tasks) or []
    options = PredictOptions(PostprocessOptions(score_threshold=score_threshold))
    reader = _Reader(data, split, limit, frames, map_format(first_id, ignore), depth_scale)
    runs: list[_Run] = []
    with progress_bar(console) as bar:
        try:
            for name in dict.fromkeys(bundle or ["demo"]):
                engine = Engine.from_bundle(
                    name, device=settings.device, dtype=settings.torch_dtype, cache_dir=settings.cache_dir
                )
                heads = engine.check_tasks(asked)
                runs += [_new_run(name, engine, task, reader, median_scaled=median_scaled) for task in heads]
            reader.check(bar)
        except DataError as error:
            raise StartError(str(error)) from None
        for _, of_bundle in groupby(runs, lambda run: run.bundle):
            _score(list(of_bundle), options, batch_size, bar)
        firsts: dict[str, tuple[_Run, Resampled]] = {}
        for run in runs:
            with _step(bar, f"intervals of {run.task}, {run.bundle}"):
                found = resample(run.scorer.figures, len(run.scorer), resamples=resamples, seed=seed)
                run.figures = found.intervals()
            first, of_first = firsts.setdefault(run.task, (run, found))
            if run is not first and _comparable(run, first):
                run.difference = found.minus(of_first).intervals()
            elif run is not first:
                told = (
                    f"{run.task}: {run.bundle} has other classes or pictures than {first.bundle}; no difference is told"
                )
                bar.console.print(told, soft_wrap=True, highlight=False, markup=False)
    for _, alike in groupby(sorted(runs, key=lambda run: asked.index(run.task)), lambda run: run.task):
        _print_table(list(alike), data.name, resamples)
    facts = {
        "data": data.name,
        "split": split,
        "seed": seed,
        "resamples": resamples,
        "score_threshold": score_threshold,
    }
    written = []
    if out is not None:
        _write(out, json.dumps(facts | {"runs": [_told(run) for run in runs]}, indent=1).encode() + b"\n")
        written.append(out)
    if sheet is not None:
        for task in asked:
            path = sheet if len(asked) == 1 else sheet.with_stem(f"{sheet.stem}_{task}")
            image = _sheet([run for run in runs if run.task == task], worst, options)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
            written.append(path)
    if written:
        print(f"wrote {', '.join(map(str, written))}")


class _Reader:
    """Opens the data of one folder for heads of any kind and label set, each once.

    Args:
        root, split, meaning, depth_scale: as in `open_data`, whose `map_format` is `meaning`.
        limit: most pictures or clips.
        frames: of clips that are cut from photos.
    """

    def __init__(
        self,
        root: Path,
        split: str | None,
        limit: int | None,
        frames: int,
        meaning: MapFormat,
        depth_scale: float | None,
    ) -> None:
        self._root, self._split, self._limit, self._frames = root, split, limit, frames
        self._meaning, self._scale = meaning, depth_scale
        self._datasets: dict[tuple[str, LabelSet | None], Dataset[Sample]] = {}
        self._clips: dict[tuple[str, LabelSet | None], Sequence[Clip]] = {}

    def pictures(self, kind: str, label_set: LabelSet | None) -> Sequence[Clip]:
        """The pictures that a head of a kind is scored on."""
        return [Clip(sample.name, (sample,)) for sample in self._photos(kind, label_set).samples]

    def clips(self, kind: str, label_set: LabelSet | None) -> Sequence[Clip]:
        """Likewise the clips: the folder's own, or else cut from its photos."""
        key = (kind, label_set)
        if key in self._clips:
            return self._clips[key]
        if holds_clips(self._root, self._split):
            data = open_clips(kind, self._root, self._split, label_set)
            clips = data.clips[: self._limit]
            frames = tuple(frame for clip in clips for frame in clip.frames)
            self._datasets[key] = Dataset(data.frames.name, frames, data.frames.label_set, data.frames.problems)
        else:
            clips = tuple(pseudo_clip(sample, self._frames) for sample in self._photos(kind, label_set).samples)
        self._clips[key] = clips
        return clips

    def check(self, bar: Progress) -> None:
        """Open everything once.

        Raises:
            DataError: there are errors; lists them all.
        """
        errors = []
        for dataset in self._datasets.values():
            step = bar.add_task("checking", total=len(dataset.samples))
            try:
                warnings = check_data(dataset, progress=_advance(bar, step))
            except DataError as error:
                errors.append(str(error))
                continue
            if warnings:
                bar.console.print(f"left out or harmless:\n{lines(warnings)}", highlight=False, markup=False)
        if errors:
            raise DataError("\n".join(dict.fromkeys(errors)))

    def _photos(self, kind: str, label_set: LabelSet | None) -> Dataset[Sample]:
        key = (kind, label_set)
        if key not in self._datasets:
            found = open_data(
                kind,
                self._root,
                self._split,
                label_set,
                prefer="val",
                map_format=self._meaning,
                depth_scale=self._scale,
            )
            self._datasets[key] = Dataset(found.name, found.samples[: self._limit], found.label_set, found.problems)
        return self._datasets[key]


def _new_run(name: str, engine: Engine, task: str, reader: _Reader, *, median_scaled: bool) -> _Run:
    decoder = engine.bundle.heads[task].decoder
    label_set = engine.bundle.label_sets.get(task)
    on_clips = isinstance(decoder, StreamDecoder)
    if decoder.kind not in (CLIP_KINDS if on_clips else PICTURE_KINDS):
        raise BundleError(
            f"task '{task}': results of kind '{decoder.kind}' have no score; those of {', '.join(PICTURE_KINDS)} have"
        )
    if decoder.kind != "depth" and label_set is None:
        raise BundleError(f"task '{task}' of {name} has no label set to compare with; name one under 'labels'")
    if on_clips:
        assert label_set is not None
        items, scorer = reader.clips(decoder.kind, label_set), clip_scorer(decoder.kind, label_set)
    else:
        items = reader.pictures(decoder.kind, label_set)
        scorer = picture_scorer(decoder.kind, label_set, median_scaled=median_scaled)
    return _Run(name, engine, task, decoder.kind, label_set, items, on_clips, scorer)


def _comparable(run: _Run, other: _Run) -> bool:
    """Whether two runs were scored on the same pictures or clips and classes, so that figures may be subtracted."""
    classes, others = (
        {(k.name, k.is_thing) for k in r.label_set.labels} if r.label_set else None for r in (run, other)
    )
    items, other_items = ([item.name for item in each.items] for each in (run, other))
    return (run.on_clips, items, classes) == (other.on_clips, other_items, others)


def _score(runs: Sequence[_Run], options: PredictOptions, batch_size: int, bar: Progress) -> None:
    """Answer and score all runs of one bundle; heads that are scored on the same pictures share passes."""
    shared: dict[tuple[str, ...], list[_Run]] = defaultdict(list)
    for run in runs:
        key = (run.task,) if run.on_clips else tuple(item.name for item in run.items)
        shared[key].append(run)
    for together in shared.values():
        first = together[0]
        step = bar.add_task(f"{', '.join(run.task for run in together)}, {first.bundle}", total=len(first.items))
        for places in batches(range(len(first.items)), batch_size):
            begun = time.perf_counter()
            answers = _answer(together, places, options, batch_size)
            for run in together:
                run.seconds += time.perf_counter() - begun
                for place, results in zip(places, answers[run.task], strict=True):
                    run.scorer.add(results, run.items[place].frames)
            bar.update(step, advance=len(places))


def _answer(
    together: Sequence[_Run], places: Sequence[int], options: PredictOptions, batch_size: int
) -> dict[str, list[list[Result]]]:
    """By task, for each of some items the results of its frames."""
    first = together[0]
    items = [[(frame.name, frame.read_image()) for frame in first.items[place].frames] for place in places]
    if first.on_clips:
        return {first.task: answer_clips(first.engine, items, first.task, options, batch_size)}
    tasks = [run.task for run in together]
    found = answer_pictures(first.engine, [item[0] for item in items], tasks, options, batch_size)
    return {task: [[results[task]] for results in found] for task in tasks}


def _print_table(runs: Sequence[_Run], data: str, resamples: int) -> None:
    first = runs[0]
    told = f"{first.task} on {data}: {len(first.scorer)} {first.unit}"
    if resamples:
        told += f", with 95 % intervals by {resamples} resamples"
    columns: list[tuple[str, dict[str, Interval], str, str]] = []
    for run in runs:
        columns.append((run.bundle, run.figures, "", f"{len(run.scorer) / run.seconds:.2f}"))
        if run.difference:
            columns.append(("difference to the first", run.difference, "+", ""))
    table = Table("figure", *(heading for heading, *_ in columns), title=told, title_justify="left")
    for name in dict.fromkeys(name for run in runs for name in run.figures):
        table.add_row(name, *(_cell(figures.get(name), sign) for _, figures, sign, _ in columns))
    table.add_row(f"{first.unit}/s", *(speed for *_, speed in columns))
    Console().print(table)
    for run in runs:
        classes = run.scorer.measures[0].per_class()
        if len(classes) > 1:
            _print_worst_classes(run, classes)


def _print_worst_classes(run: _Run, classes: dict[str, dict[str, float | str]]) -> None:
    columns = list(next(iter(classes.values())))
    worst = sorted(classes, key=lambda name: float(classes[name][columns[0]]))[:_WORST_CLASSES]
    table = Table("class", *columns, title=f"the worst classes of {run.task}, {run.bundle}", title_justify="left")
    for name in worst:
        cells = (value if isinstance(value, str) else f"{value:.4g}" for value in classes[name].values())
        table.add_row(name, *cells)
    Console().print(table)


def _cell(figure: Interval | None, sign: str = "") -> str:
    """A figure for the table; `sign` "+" shows that of what is positive, too."""
    if figure is None or not np.isfinite(figure.value):
        return "–"
    form = f"{sign}.4g"
    ends = f"  [{figure.low:{form}}, {figure.high:{form}}]" if np.isfinite(figure.low) else ""
    return f"{figure.value:{form}}{ends}".replace("[", r"\[")


def _told(run: _Run) -> dict[str, Any]:
    """A run for the JSON file."""
    spec = run.engine.bundle.encoder.spec
    return {
        "bundle": run.bundle,
        "encoder": spec.name,
        "encoder_revision": spec.revision,
        "task": run.task,
        "kind": run.kind,
        run.unit: len(run.scorer),
        "frames": sum(len(item.frames) for item in run.items),
        "seconds": round(run.seconds, 3),
        "figures": {name: rounded(figure) for name, figure in run.figures.items()},
        "difference_to_first": {name: rounded(figure) for name, figure in run.difference.items()},
        "per_class": {
            name: {key: value if isinstance(value, str) else round(float(value), 4) for key, value in told.items()}
            for each in run.scorer.measures[:1]
            for name, told in each.per_class().items()
        },
    }


def _sheet(runs: Sequence[_Run], worst: int, options: PredictOptions) -> Image.Image:
    """The sheet of one task: answers of every bundle; the last frame stands for a clip."""
    first = runs[0]
    size = len(first.items)
    spread = np.unique(np.linspace(0, size - 1, min(size, _SHEET_ROWS)).round().astype(int)).tolist()
    own = [run.scorer.own_figures() for run in runs]
    rows = []
    for place in first.scorer.worst(worst) if worst else spread:
        last = first.items[place].frames[-1]
        picture = last.read_image()
        truth = truth_result(last, first.label_set)
        columns = [Column(truth, first.label_set, _truth_lines(last, truth, first.label_set))]
        for run, figures in zip(runs, own, strict=True):
            result = _answer([run], [place], options, 1)[run.task][0][-1]
            score = (
                f"{run.scorer.main} {figures[place]:.4g}" if np.isfinite(figures[place]) else f"no {run.scorer.main}"
            )
            columns.append(Column(result, run.label_set, (score, *describe(result))))
        rows.append(Row(first.items[place].name, picture, tuple(columns)))
    return draw_sheet(rows, ["input", "truth", *(run.bundle for run in runs)])


def _truth_lines(sample: Sample, truth: Result | None, label_set: LabelSet | None) -> tuple[str, ...]:
    if isinstance(sample, ClassSample) and label_set is not None:
        return (label_set[sample.label_id].name,)
    return describe(truth, with_scores=False)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _advance(bar: Progress, step: TaskID) -> Callable[[int], None]:
    return lambda done: bar.update(step, completed=done)


@contextmanager
def _step(bar: Progress, description: str) -> Iterator[None]:
    """A step that tells no more than that it is under way, and then that it is done."""
    step = bar.add_task(description, total=1)
    yield
    bar.update(step, completed=1)
