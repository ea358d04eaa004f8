"""From labelled pictures to a trained head: views, cached features, steps."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decoders.prototypes import PrototypeDecoder
from decoders.training.data.samples import ClassSample, Sample
from decoders.training.examples import Examples
from decoders.training.feature_cache import FeatureCache, Features
from decoders.training.recipes.recipe import Objective, Recipe
from decoders.training.schedule import Journal, Schedule, train_steps
from encoders.features import EncoderFeatures

Progress = Callable[[str, int, int], None]
"""Told (stage, done, total)."""

_THREADS = min(8, os.cpu_count() or 1)
_Batch = tuple[list[EncoderFeatures], list[Any]]


@dataclass(frozen=True)
class Training:
    """One head's training on frozen features.

    Attributes:
        recipe: of the head's kind.
        schedule: the recipe's, or one's own.
        cache: of the encoder's features.
        progress: told how far encoding is.
        tell: told what a person should know.
    """

    recipe: Recipe
    schedule: Schedule
    cache: FeatureCache
    progress: Progress = lambda stage, done, total: None
    tell: Callable[[str], None] = lambda message: None

    def fit(
        self,
        decoder: nn.Module,
        samples: Sequence[Sample],
        journal: Journal,
        *,
        held_out: Sequence[Sample] = (),
        every: int = 100,
    ) -> None:
        """Train a head in place, encoding each view at most once; it is left in eval mode.

        Args:
            decoder: the head, on the encoder's device.
            samples: labelled pictures of the recipe's kind.
            journal: of the run.
            held_out: labelled pictures whose loss is told as well, now and then.
            every: steps between two of these, and between two kept states.

        Raises:
            StoppedError: Ctrl-C was pressed during the steps.
            TrainingError: a loss is not finite.
        """
        schedule = self.schedule
        examples = self._examples(samples, schedule.views_per_picture, schedule.least_side)
        with ExitStack() as opened:
            features = opened.enter_context(self._open("encoding", examples))
            if self.recipe.objective is None:
                _learn(decoder, examples, features, schedule.batch_size)
                return
            objective = self.recipe.objective(decoder)
            threads = opened.enter_context(ThreadPoolExecutor(_THREADS))
            validate = None
            if held_out:
                least_side = 1 if self.recipe.frames == 1 else schedule.least_side
                others = self._examples(held_out, 1, least_side)
                of_others = opened.enter_context(self._open("encoding for validation", others))
                load_others = _loader(objective, others, of_others, threads)
                validate = _validation(objective, len(others), schedule.batch_size, load_others)
            load = _loader(objective, examples, features, threads)
            train_steps(
                decoder,
                len(examples),
                load,
                lambda batch, progress: objective.losses(*batch, progress),
                schedule,
                journal,
                validate=validate,
                every=every,
            )

    def _examples(self, samples: Sequence[Sample], views_per_picture: int, least_side: float) -> Examples:
        return Examples(
            samples, self.cache.geometry, views_per_picture, self.recipe.frames, least_side, self.schedule.seed
        )

    def _open(self, stage: str, examples: Examples) -> Any:
        total = len(examples) * examples.frames
        return self.cache.open(
            examples.key(),
            total,
            examples.pixels,
            progress=lambda done: self.progress(stage, done, total),
            tell=self.tell,
        )


def _loader(
    objective: Objective, examples: Examples, features: Features, threads: ThreadPoolExecutor
) -> Callable[[list[int]], _Batch]:
    def target(index: int) -> Any:
        sample = examples.sample(index)
        views = examples.views(index, sample.read_image())
        return objective.target(sample, views, [examples.place(view) for view in views])

    def load(indices: list[int]) -> _Batch:
        targets = threads.map(target, indices)
        return [features.read(rows) for rows in examples.rows(indices)], list(targets)

    return load


def _validation(
    objective: Objective, num_examples: int, batch_size: int, load: Callable[[list[int]], _Batch]
) -> Callable[[], float]:
    """The mean loss over all examples, with the same points each time."""

    def validate() -> float:
        total = 0.0
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for start in range(0, num_examples, batch_size):
                indices = list(range(start, min(start + batch_size, num_examples)))
                losses: dict[str, Tensor] = objective.losses(*load(indices), 1.0)
                total += float(torch.stack(list(losses.values())).sum()) * len(indices)
        return total / num_examples

    return validate


def _learn(decoder: nn.Module, examples: Examples, features: Features, batch_size: int) -> None:
    assert isinstance(decoder, PrototypeDecoder)
    for start in range(0, len(examples), batch_size):
        indices = list(range(start, min(start + batch_size, len(examples))))
        (frame,) = (features.read(rows) for rows in examples.rows(indices))
        for row, index in enumerate(indices):
            sample = examples.sample(index)
            assert isinstance(sample, ClassSample)
            (view,) = examples.views(index, sample.read_image())
            own = frame.rows([row], decoder.out_indices, copy=False)
            decoder.learn(own, [examples.place(view)], sample.label_id)
    decoder.finalize()
    decoder.eval()
