"""Answers to score: pictures in batches where their sizes allow it, clips frame by frame and beside each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

from PIL import Image

from decoders.online import StreamState
from decoders.results import Result
from serving.engine import Engine, PassInput, PassOutput
from serving.errors import PolyheadError, StartError
from serving.planner import plan
from serving.types import PredictOptions

Item = TypeVar("Item")


def answer_pictures(
    engine: Engine,
    pictures: Sequence[tuple[str, Image.Image]],
    tasks: Sequence[str],
    options: PredictOptions,
    batch_size: int,
) -> list[Mapping[str, Result]]:
    """Every picture's results by task, all tasks on the encoder passes that they share.

    Args:
        engine: of the bundle.
        pictures: names, for messages, and RGB pictures, of any sizes.
        tasks: heads of the bundle.
        options: thresholds.
        batch_size: most pictures in one pass.

    Raises:
        StartError: a head failed; says on which picture.
    """
    passes = plan(tasks, engine.bundle.heads)

    def shape(picture: tuple[str, Image.Image]) -> Hashable:
        size = (picture[1].height, picture[1].width)
        places = [each.geometry.place(size) for each in passes]
        return tuple((place.input_size, place.num_views) for place in places)

    answers: dict[int, Mapping[str, Result]] = {}
    for numbers in _groups([shape(picture) for picture in pictures], batch_size):
        found = engine.predict([pictures[n][1] for n in numbers], tasks, options, max_batch_size=batch_size)
        for number, prediction in zip(numbers, found, strict=True):
            _check(pictures[number][0], prediction.errors)
            answers[number] = prediction.results
    return [answers[number] for number in range(len(pictures))]


def answer_clips(
    engine: Engine,
    clips: Sequence[Sequence[tuple[str, Image.Image]]],
    task: str,
    options: PredictOptions,
    batch_size: int,
) -> list[list[Result]]:
    """The results of every frame of some clips, each clip a stream with a state of its own.

    Args:
        engine: of the bundle.
        clips: their frames in order, each with a name for messages.
        task: a head that remembers.
        options: thresholds.
        batch_size: most frames in one pass; those of one pass are of different clips.

    Raises:
        StartError: the head failed; says on which frame.
    """
    states: list[dict[str, StreamState]] = [{} for _ in clips]
    answers: list[list[Result]] = [[] for _ in clips]
    for number in range(max(len(clip) for clip in clips)):
        inside = [n for n, clip in enumerate(clips) if number < len(clip)]
        prepared = {n: engine.prepare(clips[n][number][1], [task], options, states[n]) for n in inside}
        for places in _groups([prepared[n][0].pixels.shape for n in inside], batch_size):
            running = [inside[place] for place in places]
            outputs = engine.run_pass([prepared[n][0] for n in running])
            for n, output in zip(running, outputs, strict=True):
                answers[n].append(_finish(engine, clips[n][number][0], prepared[n], output, task, options))
                states[n] = output.states
    return answers


def batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items, so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _finish(
    engine: Engine, name: str, inputs: list[PassInput], output: PassOutput, task: str, options: PredictOptions
) -> Result:
    results, errors = engine.finish(inputs, [output], options)
    _check(name, errors)
    return results[task]


def _groups(keys: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """The places of equal keys together, at most so many at a time."""
    by_key: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        by_key[key].append(place)
    for places in by_key.values():
        yield from (list(batch) for batch in batches(places, size))


def _check(name: str, errors: Mapping[str, PolyheadError]) -> None:
    for task, error in errors.items():
        raise StartError(f"{name}: task '{task}' failed: {error}")
