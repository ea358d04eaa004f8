"""The command `polyhead train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
import yaml
from rich.console import Console
from rich.progress import Progress
from torch import nn

from decoders.labels import LabelSet
from decoders.training.data.check import check_data, lines
from decoders.training.data.class_folders import few_of_each
from decoders.training.data.copy_paste import with_pasted
from decoders.training.data.folders import DataError
from decoders.training.data.formats import open_data
from decoders.training.data.label_maps import MapFormat
from decoders.training.data.samples import ClassSample, Dataset, PanopticSample, Sample
from decoders.training.feature_cache import FeatureCache
from decoders.training.fit import Progress as Report
from decoders.training.fit import Training
from decoders.training.journal import RunFolder
from decoders.training.recipes.recipe import Recipe
from decoders.training.recipes.table import RECIPES, recipe_for
from decoders.training.schedule import Schedule, StoppedError, TrainingError
from decoders.training.weights_file import begin_from, save_head
from encoders.base import Encoder
from encoders.checkpoints import sha256_of
from encoders.features import EncoderSpec
from encoders.geometry import FitGeometry, WindowGeometry
from serving.bundles.loading import check_geometry, label_set_of, new_decoder, open_encoder
from serving.bundles.schema import BundleFile, GeometryEntry, TaskEntry, read_bundle
from serving.bundles.weights import fetch, parse_reference
from serving.cli.label_map_options import FirstId, Ignore, map_format
from serving.cli.progress import progress_bar
from serving.cli.trained_bundle import check_new, write_bundle, write_label_set
from serving.config import Settings, read_settings
from serving.errors import BundleError, StartError

console = Console(stderr=True)

FROM_DATA = "from-data"
"""Of `--labels`: the classes are the data's own."""

Data = Annotated[Path, typer.Option(help="Folder of the labelled pictures.", exists=True, file_okay=False)]
What = Annotated[
    str,
    typer.Argument(
        help="What to train: a task of the bundle (decoder, settings and classes are kept), or a kind of head, one of "
        f"{', '.join(RECIPES)}."
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Classes: a packaged label set, a .yaml file, or from-data, the data's own.",
        show_default="those of the bundle's task, or else from-data",
    ),
]
_RECIPE = "the recipe's"


def train(
    what: What,
    data: Data,
    bundle: Annotated[str, typer.Option(help="Whose encoder is used: a packaged bundle, or a .yaml file.")] = "demo",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the new bundle.", show_default="one named as the task")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="The head's name in the new bundle.", show_default="as the first argument")
    ] = None,
    labels: Labels = None,
    split: Annotated[
        str | None,
        typer.Option(help="Part of the data: train2017, say, or frames 0:695.", show_default="the one named train…"),
    ] = None,
    val: Annotated[
        str | None, typer.Option(help="Part whose loss is told now and then, e.g. val2017.", show_default="none")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Network input, pixels: 448, or HEIGHTxWIDTH.", show_default="as in the bundle"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the head, e.g. out_indices=[11] or num_queries=100; once for each.",
            show_default="those of the bundle's task, or else the recipe's",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Weights of a trained head to begin with; what has another shape, such as other classes, begins anew.",
            exists=True,
            dir_okay=False,
            show_default="random",
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Classification: so many pictures of each class.", show_default="all")
    ] = None,
    paste: Annotated[
        int, typer.Option(min=0, help="Panoptic data: so many more of each picture, with another's segments pasted in.")
    ] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimisation steps.", show_default=_RECIPE)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Views in a step.", show_default=_RECIPE)] = None,
    views: Annotated[int | None, typer.Option(min=1, help="Views made of a picture.", show_default=_RECIPE)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="The highest.", show_default=_RECIPE)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of views, initial weights and order.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints, and between validations.")] = 100,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that stopped in --out.")] = False,
    cache_gb: Annotated[float, typer.Option(min=0, help="Most that kept features may take on disk, GB.")] = 20.0,
    features: Annotated[
        Path | None, typer.Option(help="Folder for kept features.", show_default="in the cache folder")
    ] = None,
    first_id: FirstId = None,
    ignore: Ignore = "255",
    depth_scale: Annotated[
        float | None, typer.Option(help="Depth maps: metres per unit.", show_default="0.001 for PNG, 1 for npy")
    ] = None,
) -> None:
    """Train a head on frozen features and write a bundle that can be served.

    The encoder runs once on each view of a picture; its features are kept on disk. Ctrl-C saves the run, and --resume
    goes on with it.
    """
    settings = read_settings()
    source = _Source(data, map_format(first_id, ignore), depth_scale)
    given = _given_settings(set_ or [])
    with _plain_errors():
        file, folder = read_bundle(bundle)
        entry, recipe = _entry_and_recipe(file, what)
        if init is not None and recipe.objective is None:
            raise StartError(f"--init: {entry.decoder} learns at once, from nothing; leave it out")
        if paste and recipe.data != "panoptic":
            raise StartError(f"--paste is for heads that learn from panoptic data, which {entry.decoder} is not")
        schedule = _schedule(recipe.schedule, steps, batch_size, views, learning_rate, seed)
        own_size = _size(size)
        geometry = _geometry(own_size or file.tasks.get(what, entry).geometry or file.geometry)
        dataset = _few(source.open(recipe, split, "train", _label_set(labels, entry, folder)), recipe, shots, seed)
        held_out = None if val is None else source.open(recipe, val, "val", dataset.label_set)
        name = task or what
        target = out or Path(name)
        check_new(target)
        label_name = None if dataset.label_set is None else write_label_set(target, name, dataset.label_set)
        entry = entry.model_copy(update={"labels": label_name, "geometry": own_size or entry.geometry})
        with progress_bar(console) as bar:
            report = _reporter(bar)
            encoder = _open_encoder(file, folder, settings)
            entry, head = _new_head(entry, recipe, given, encoder.spec, target, seed)
            check_geometry(name, head, (entry.geometry or file.geometry).build(), encoder.spec)
            if init is not None:
                _begin_from(head, init)
            facts = {
                **dataclasses.asdict(schedule),
                **{"task": name, "decoder": entry.decoder, "settings": entry.settings, "geometry": str(geometry)},
                **{"pictures": len(dataset.samples), "paste": paste, "encoder": encoder.spec.revision},
                **{"init": None if init is None else sha256_of(init)},
            }
            run = RunFolder(
                target,
                facts,
                resume=resume,
                report=lambda step, loss: report(f"training (loss {loss:.3f})", step, schedule.steps),
            )
            if not resume:
                _check("checking", dataset, report)
                if held_out is not None:
                    _check("checking for validation", held_out, report)
            cache = FeatureCache(
                features or settings.cache_dir / "features",
                encoder,
                geometry,
                head.out_indices,
                head.hidden_indices,
                int(cache_gb * 1e9),
            )
            others = () if held_out is None else held_out.samples
            Training(recipe, schedule, cache, report, console.print).fit(
                head.to(settings.torch_device), _with_pasted(dataset, paste, seed), run, held_out=others, every=every
            )
        save_head(head, target / f"{name}.safetensors", {key: str(value) for key, value in facts.items()})
        written = write_bundle(target, bundle, name, entry)
        run.finish()
    console.print(f"wrote {written}", soft_wrap=True)
    print(f"try: polyhead serve --bundle {written}")


@dataclass(frozen=True)
class _Source:
    """Where labelled pictures come from, and how their maps are to be read."""

    root: Path
    map_format: MapFormat
    depth_scale: float | None

    def open(self, recipe: Recipe, split: str | None, prefer: str, label_set: LabelSet | None) -> Dataset[Sample]:
        return open_data(
            recipe.data,
            self.root,
            split,
            label_set,
            prefer=prefer,
            map_format=self.map_format,
            depth_scale=self.depth_scale,
        )


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What a person can do something about becomes an error that `polyhead` tells in plain words."""
    try:
        yield
    except StoppedError as stopped:
        console.print(f"{stopped}; the same command with --resume goes on from there")
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        console.print("stopped; what was encoded is kept, and the same command goes on from there")
        raise typer.Exit(130) from None
    except DataError as error:
        hint = "\n--labels from-data takes the data's own classes" if "is not in label set" in str(error) else ""
        raise StartError(f"{error}{hint}") from None
    except TrainingError as error:
        raise StartError(str(error)) from None


def _entry_and_recipe(file: BundleFile, what: str) -> tuple[TaskEntry, Recipe]:
    """The head to train, as a bundle would name it, and its recipe; a new head has no settings yet."""
    if what not in file.tasks and what not in RECIPES:
        raise BundleError(
            f"no task '{what}' in bundle {file.name}; there are: {', '.join(file.tasks)}; nor is it a kind of head: "
            f"{', '.join(RECIPES)}"
        )
    entry = file.tasks.get(what) or TaskEntry(decoder=what)
    try:
        return entry, recipe_for(entry.decoder)
    except ValueError as error:
        raise BundleError(str(error)) from None


def _label_set(labels: str | None, entry: TaskEntry, folder: Path) -> LabelSet | None:
    """The classes asked for, or the task's; None: the data's own, or none at all."""
    if labels == FROM_DATA:
        return None
    if labels is None:
        return label_set_of(entry, folder)
    return label_set_of(TaskEntry(decoder=entry.decoder, labels=labels), Path())


def _few(dataset: Dataset[Sample], recipe: Recipe, shots: int | None, seed: int) -> Dataset[Sample]:
    if shots is None:
        return dataset
    if recipe.data != "classification":
        raise StartError("--shots is for heads that learn classes of whole pictures")
    return cast(Dataset[Sample], few_of_each(cast(Dataset[ClassSample], dataset), shots, seed))


def _with_pasted(dataset: Dataset[Sample], count: int, seed: int) -> Sequence[Sample]:
    if count == 0:
        return dataset.samples
    assert dataset.label_set is not None
    if len(dataset.samples) < 2:
        raise StartError("--paste needs two pictures or more")
    return with_pasted(cast(Sequence[PanopticSample], dataset.samples), dataset.label_set, count, seed)


def _begin_from(head: nn.Module, weights: Path) -> None:
    try:
        left = begin_from(head, weights)
    except ValueError as error:
        raise StartError(f"--init: {error}") from None
    if left:
        console.print(f"not in {weights}, or of another shape, so begun anew: {', '.join(left)}", soft_wrap=True)


def _size(size: str | None) -> GeometryEntry | None:
    if size is None:
        return None
    height, _, width = size.partition("x")
    if not (height.isdigit() and (width or height).isdigit() and int(height) and int(width or height)):
        raise StartError(f"--size {size} is no size; write e.g. 448 or 448x640, pixels")
    return GeometryEntry(height=int(height), width=int(width or height))


def _geometry(entry: GeometryEntry) -> FitGeometry:
    """What a head is trained at: a fixed size; a head on windows sees pictures of a window's size."""
    geometry = entry.build()
    if isinstance(geometry, WindowGeometry):
        return FitGeometry(geometry.size, geometry.size)
    if not isinstance(geometry, FitGeometry):
        raise StartError(f"heads are trained at a fixed height and width, not at {geometry}; give --size, pixels")
    return geometry


def _given_settings(given: Sequence[str]) -> dict[str, Any]:
    """What `--set` says, values read as in a bundle's file."""
    settings: dict[str, Any] = {}
    for each in given:
        key, _, text = each.partition("=")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = None
        if not key.isidentifier() or value is None:
            raise StartError(f"--set {each} is no setting; write e.g. num_queries=100 or out_indices=[11]")
        if key in settings:
            raise StartError(f"--set {key} is given twice; keep one of them")
        if key == "label_set":
            raise StartError("--set label_set: a head's classes are given by --labels")
        settings[key] = value
    return settings


def _new_head(
    entry: TaskEntry, recipe: Recipe, given: dict[str, Any], spec: EncoderSpec, folder: Path, seed: int
) -> tuple[TaskEntry, Any]:
    """The head, untrained, and its entry with the settings that it is made with; those `given` win."""
    settings = entry.settings or recipe.settings(spec)
    for key, value in given.items():
        if settings.get(key) is not None:
            _check_alike(key, value, settings[key])
    entry = entry.model_copy(update={"settings": settings | given, "examples": None})
    torch.manual_seed(seed)
    head = new_decoder(entry, spec, folder)
    assert isinstance(head, nn.Module)
    return entry, head


def _check_alike(key: str, value: Any, instead_of: Any) -> None:
    """Raise unless a value is of the kind that it takes the place of: a list of such items, a number, a word."""
    wanted = (int, float) if isinstance(instead_of, (int, float)) else type(instead_of)  # YAML's 10 may be 10.0
    alike = isinstance(value, wanted) and isinstance(value, bool) == isinstance(instead_of, bool)
    if alike and isinstance(instead_of, list) and instead_of:
        alike = all(type(item) is type(instead_of[0]) for item in value)
    if not alike:
        raise StartError(f"--set {key}={value}: it stands in place of {instead_of}; give a value of that kind")


def _open_encoder(file: BundleFile, folder: Path, settings: Settings) -> Encoder:
    path = fetch(parse_reference(file.encoder.weights, folder), settings.cache_dir)
    return open_encoder(file.encoder, path).to(device=settings.torch_device, dtype=settings.torch_dtype)


def _check(stage: str, dataset: Dataset[Sample], report: Report) -> None:
    total = len(dataset.samples)
    warnings = check_data(dataset, progress=lambda done: report(stage, done, total))
    if warnings:
        console.print(f"{dataset.name}: left out or harmless\n{lines(warnings)}", highlight=False, markup=False)


def _schedule(
    recipe: Schedule,
    steps: int | None,
    batch_size: int | None,
    views: int | None,
    learning_rate: float | None,
    seed: int,
) -> Schedule:
    given: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "views_per_picture": views,
        "learning_rate": learning_rate,
    }
    return dataclasses.replace(recipe, **{key: value for key, value in given.items() if value is not None}, seed=seed)


def _reporter(bar: Progress) -> Report:
    """Shows stages; one is known by the first word of its description, the rest of which may change."""
    stages: dict[str, Any] = {}

    def report(stage: str, done: int, total: int) -> None:
        name = stage.partition(" (")[0]
        if name not in stages:
            stages[name] = bar.add_task(stage, total=total)
        bar.update(stages[name], completed=done, description=stage)

    return report
