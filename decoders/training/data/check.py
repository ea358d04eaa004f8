"""Reading everything once before training starts, so that broken data is told by name and all at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from decoders.training.data.folders import DataError
from decoders.training.data.samples import (
    IGNORE,
    ClassSample,
    Dataset,
    DepthSample,
    InstanceSample,
    PanopticSample,
    Problem,
    Sample,
    SemanticSample,
)

MOST_LINES = 50
"""Problems told one by one; the others are counted."""
_THREADS = 4


def check_data(dataset: Dataset[Sample], *, progress: Callable[[int], None] = lambda done: None) -> list[Problem]:
    """Open every picture and its truth.

    Args:
        dataset: from a loader.
        progress: told the number of pictures done.

    Returns:
        What is left out or harmless.

    Raises:
        DataError: there are errors; lists them by name, at most `MOST_LINES`, and says how many there are.
    """
    problems = list(dataset.problems)
    names = Counter(sample.name for sample in dataset.samples)
    told = {problem.where for problem in problems}
    problems += [Problem(name, f"occurs {n} times") for name, n in names.items() if n > 1 and name not in told]
    if not dataset.samples and not any(problem.is_error for problem in problems):
        problems.append(Problem(dataset.name, "no pictures"))
    num_labels = 0 if dataset.label_set is None else len(dataset.label_set)
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda sample: check_sample(sample, num_labels), dataset.samples)
        for done, of_sample in enumerate(found, 1):
            problems += of_sample
            progress(done)
    errors = [problem for problem in problems if problem.is_error]
    if errors:
        raise DataError(f"{dataset.name}: {_count(errors, 'error')} in the data\n{lines(errors)}")
    return problems


def lines(problems: Sequence[Problem]) -> str:
    """Problems a line each, at most `MOST_LINES`."""
    told = [f"  {problem}" for problem in problems[:MOST_LINES]]
    rest = len(problems) - len(told)
    return "\n".join([*told, f"  … and {rest} more"] if rest else told)


def check_sample(sample: Sample, num_labels: int) -> list[Problem]:
    """What is wrong with one sample; `num_labels`: classes of its label set."""
    problems: list[Problem] = []
    size: tuple[int, int] | None = None
    try:
        image = sample.read_image()
        size = (image.height, image.width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problems.append(Problem(sample.name, f"the picture can't be read ({_one_line(error)})"))
    try:
        truth_sizes, found = _check_truth(sample, num_labels)
    except (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError) as error:
        return [*problems, Problem(sample.name, f"its truth can't be read ({_one_line(error)})")]
    for truth_size in sorted(truth_sizes):
        if size is not None and truth_size != size:
            what = f"the picture has {size[1]} x {size[0]} pixels, its truth {truth_size[1]} x {truth_size[0]}"
            problems.append(Problem(sample.name, what))
    return problems + [Problem(sample.name, what, is_error) for what, is_error in found]


_Found = list[tuple[str, bool]]
"""What is wrong, and whether it is an error."""


def _check_truth(sample: Sample, num_labels: int) -> tuple[set[tuple[int, int]], _Found]:
    """(sizes of the truth, what is wrong with it)."""
    match sample:
        case PanopticSample():
            return _check_segments(sample, num_labels)
        case InstanceSample():
            objects = sample.read_masks()
            found = [
                ("an object has an empty mask, which is left out", False) for each in objects if not each.mask.area()
            ]
            return {each.mask.size for each in objects}, found + _unknown(
                (each.label_id for each in objects), num_labels
            )
        case SemanticSample():
            label_map = sample.read_label_map()
            labels = set(np.unique(label_map).tolist()) - {IGNORE}
            found = [] if labels else [("no pixel has a class", False)]
            return {_size(label_map)}, found + _unknown(labels, num_labels)
        case DepthSample():
            depth_m = sample.read_depth_m()
            found = [] if np.isfinite(depth_m).any() else [("its depth is unknown everywhere", True)]
            return {_size(depth_m)}, found
        case ClassSample():
            return set(), _unknown([sample.label_id], num_labels)
    raise TypeError(f"no check for {type(sample).__name__}")


def _check_segments(sample: PanopticSample, num_labels: int) -> tuple[set[tuple[int, int]], _Found]:
    segment_map, labels, _ = sample.read_segments()
    present = set(np.unique(segment_map).tolist()) - {0}
    found: _Found = [(f"segment {i} is in the JSON and not in the PNG", True) for i in sorted(labels.keys() - present)]
    unlisted = len(present - labels.keys())
    if unlisted:
        found.append((f"{unlisted} segments of the PNG are not in the JSON and count as unlabelled", False))
    if not labels:
        found.append(("has no segments", False))
    return {_size(segment_map)}, found + _unknown(labels.values(), num_labels)


def _unknown(label_ids: Iterable[int], num_labels: int) -> _Found:
    wrong = sorted({label_id for label_id in label_ids if not 0 <= label_id < num_labels})
    return [(f"class {label_id} is none of the {num_labels}", True) for label_id in wrong]


def _size(map_: np.ndarray) -> tuple[int, int]:
    return map_.shape[0], map_.shape[1]


def _count(problems: Sequence[Problem], word: str) -> str:
    return f"1 {word}" if len(problems) == 1 else f"{len(problems)} {word}s"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
