"""Top-1 and top-5 accuracy, and what classes are taken for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from decoders.labels import LabelSet
from decoders.training.evaluation.measure import ClassFigures, Counts, Figures


class ClassificationAccuracy:
    """The part of pictures whose class is the first, or among the first five, in percent; a `Measure`.

    Args:
        label_set: the classes.
    """

    main: ClassVar[str] = "top1"
    larger_is_better: ClassVar[bool] = True

    def __init__(self, label_set: LabelSet) -> None:
        self._label_set = label_set
        self._ranks: list[int] = []
        self._answers: dict[int, Counter[int]] = defaultdict(Counter)

    def __len__(self) -> int:
        return len(self._ranks)

    def add(self, predicted_label_ids: Sequence[int], true_label_id: int) -> None:
        """Add one picture; the predicted classes in order, the most probable first."""
        ranked = list(predicted_label_ids)
        self._ranks.append(ranked.index(true_label_id) if true_label_id in ranked else len(self._label_set))
        self._answers[true_label_id][ranked[0]] += 1

    def figures(self, counts: Counts) -> Figures:
        """As in `Measure`."""
        ranks = np.array(self._ranks)
        return {f"top{k}": 100 * float(np.average(ranks < k, weights=counts)) for k in (1, 5)}

    def per_class(self) -> ClassFigures:
        """As in `Measure`: top-1 accuracy, pictures, and the three classes that it is most often taken for."""
        told: ClassFigures = {}
        for label_id, answers in sorted(self._answers.items()):
            wrong = [(answer, n) for answer, n in answers.most_common() if answer != label_id][:3]
            told[self._label_set[label_id].name] = {
                "top1": 100 * answers[label_id] / answers.total(),
                "pictures": answers.total(),
                "taken_for": ", ".join(f"{self._label_set[answer].name} ({n})" for answer, n in wrong),
            }
        return told
