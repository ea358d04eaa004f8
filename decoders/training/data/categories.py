"""From what the data calls its classes to the label ids of a label set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decoders.labels import Label, LabelSet, new_label_set
from decoders.training.data.samples import Problem


@dataclass(frozen=True)
class Category:
    """A class as COCO's JSON lists it."""

    category_id: int
    name: str
    supercategory: str
    is_thing: bool


def read_categories(entries: Sequence[Mapping[str, Any]]) -> list[Category]:
    """COCO's ``categories``; one without ``isthing`` is a thing, one without ``supercategory`` has none."""
    return [
        Category(entry["id"], str(entry["name"]), str(entry.get("supercategory", "")), bool(entry.get("isthing", True)))
        for entry in entries
    ]


def label_set_of_categories(name: str, categories: Iterable[Category]) -> LabelSet:
    """A label set of the data's own classes, in their order."""
    kinds = {category.name: category.is_thing for category in categories}
    return with_things(new_label_set(name, list(kinds)), kinds)


def with_things(label_set: LabelSet, is_thing: Mapping[str, bool]) -> LabelSet:
    """The same label set, each name a thing or stuff as `is_thing` says."""
    labels = (Label(each.label_id, each.name, is_thing[each.name], each.color) for each in label_set.labels)
    return LabelSet(label_set.name, tuple(labels))


def match_categories(
    categories: Sequence[Category], label_set: LabelSet, used: Counter[int]
) -> tuple[dict[int, int], list[Problem]]:
    """Look every category up in a label set: by its name if that holds for all, or else by its super-category first.

    Args:
        categories: of the data.
        label_set: to look in.
        used: how often the data uses each category id; what isn't used need not be known.

    Returns:
        (``{category id: label_id}``, an error for each category in use that the label set or the list hasn't).
    """
    by_name = {label.name: label.label_id for label in label_set.labels}
    all_named = all(category.name in by_name for category in categories if used[category.category_id])
    label_of: dict[int, int] = {}
    problems = []
    for category in categories:
        words = (category.name,) if all_named else (category.supercategory, category.name)
        label_id = next((by_name[word] for word in words if word in by_name), None)
        count = used[category.category_id]
        if label_id is not None:
            label_of[category.category_id] = label_id
        elif count:
            whole = f" ('{category.supercategory}')" if category.supercategory else ""
            what = f"is not in label set {label_set.name} and is used {count} times"
            problems.append(Problem(f"category '{category.name}'{whole}", what))
    known = {category.category_id for category in categories}
    for category_id in sorted(used.keys() - known):
        problems.append(Problem(f"category id {category_id}", f"is used {used[category_id]} times and not listed"))
    return label_of, problems
