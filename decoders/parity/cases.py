"""A folder of recorded cases: finding them, reading them, and keeping account of what of each was compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from decoders.parity.report import TOLERANCES, Comparison, compare_lists, compare_tensors
from decoders.parity.subsampling import matching_part
from encoders.checkpoints import read_weights

_WEIGHTS = (".ckpt", ".encoder")
_MISSING = object()


class CaseError(ValueError):
    """A case can't be run: a file or a fact is missing or broken, or what it asks for is not understood."""


class NoCasesError(CaseError):
    """A folder holds no case at all."""


def find_cases(folder: Path) -> list[str]:
    """The names of a folder's cases, sorted: every pair X.json and X.safetensors, and every half of one.

    Files of weights (X.ckpt.safetensors, X.encoder.safetensors) are no cases.

    Raises:
        NoCasesError: there is none.
    """
    names = {path.stem for path in folder.glob("*.json")}
    names |= {path.stem for path in folder.glob("*.safetensors") if not path.stem.endswith(_WEIGHTS)}
    if not names:
        raise NoCasesError(f"no case in {folder}: a case is a pair of files X.json and X.safetensors")
    return sorted(names)


class Case:
    """One case, and the account of it: which tensors were used, and every comparison made.

    Expected tensors are asked for by the name of the whole result: "mask_logits" also finds "mask_logits_sub", and
    "panoptic.class_map" finds "panoptic.class_map_s4".

    Args:
        name: of the files.
        facts: of X.json.
        tensors: of X.safetensors.
        folder: where the weights lie.
    """

    def __init__(self, name: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> None:
        self.name = name
        self.facts = facts
        self.comparisons: list[Comparison] = []
        self.skipped: list[str] = []
        self._tensors = tensors
        self._folder = folder
        self._unused = set(tensors)
        self._by_result: dict[str, list[str]] = {}
        for tensor in sorted(tensors):
            self._by_result.setdefault(_result_name(tensor), []).append(tensor)

    @classmethod
    def read(cls, folder: Path, name: str) -> Case:
        """Read a case's two files.

        Raises:
            CaseError: one of them is missing or broken.
            CheckpointError: the tensors' file is cut short.
        """
        described, held = folder / f"{name}.json", folder / f"{name}.safetensors"
        if not described.is_file():
            raise CaseError(f"not understood: {held.name} has no {described.name} beside it")
        try:
            facts = json.loads(described.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CaseError(f"{described.name} is no JSON ({error})") from None
        if not isinstance(facts, dict):
            raise CaseError(f"not understood: {described.name} holds no JSON object")
        listed = set(facts.get("tensors") or ())
        if listed and not held.is_file():
            raise CaseError(f"{held.name} is missing; {described.name} lists {len(listed)} tensors of it")
        case = cls(name, facts, read_weights(held) if held.is_file() else {}, folder)
        case.skipped += [f"{tensor} (listed, but not in the file)" for tensor in sorted(listed - set(case._tensors))]
        return case

    # What it holds

    @property
    def not_understood(self) -> list[str]:
        """Tensors that nothing used or compared."""
        return sorted(self._unused)

    def has(self, tensor: str) -> bool:
        """Whether there is a tensor of exactly this name."""
        return tensor in self._tensors

    def expects(self, *results: str) -> bool:
        """Whether any of these results, whole or in part, is to be compared."""
        return any(result in self._by_result for result in results)

    def numbers(self, pattern: str) -> list[int]:
        """The numbers that the pattern's one group takes among the names of the results, sorted."""
        found = (re.fullmatch(pattern, result) for result in self._by_result)
        return sorted({int(match[1]) for match in found if match})

    def input(self, tensor: str) -> Tensor:
        """A tensor that goes into a computation.

        Raises:
            CaseError: it is not there.
        """
        if tensor not in self._tensors:
            raise CaseError(f"there is no tensor '{tensor}' to start from")
        self._unused.discard(tensor)
        return self._tensors[tensor]

    def expected(self, result: str) -> Tensor:
        """An expected tensor, for a comparison that is not entry by entry; it counts as used.

        Raises:
            CaseError: it is not there.
        """
        return self.input(self._by_result[result][0] if self.expects(result) else result)

    def fact(self, *places: str, default: Any = _MISSING) -> Any:
        """The first of several places in X.json, each a dotted path, that holds something.

        Raises:
            CaseError: none does, and there is no default.
        """
        for place in places:
            value: Any = self.facts
            for key in place.split("."):
                value = value.get(key) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        if default is _MISSING:
            raise CaseError(f"{self.name}.json does not say {' or '.join(places)}")
        return default

    def size(self, *places: str) -> tuple[int, int]:
        """A (height, width) from the first of several places; one number is a square. Raises as `fact` does."""
        size = self.fact(*places)
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    def weights(self, kind: str) -> dict[str, Tensor] | None:
        """The tensors of the case's weights file of a kind ("ckpt", "encoder"); None if there is none.

        The file is the one that X.json names, or else of the case's own name.
        """
        for stem in self._stems():
            path = self._folder / f"{stem}.{kind}.safetensors"
            if path.is_file():
                return read_weights(path)
        return None

    def _stems(self) -> Iterator[str]:
        told = [self.facts.get("weights"), self.name, self.facts.get("case"), self.fact("config.name", default=None)]
        for name in told:
            if isinstance(name, str) and len(name) < 200 and "/" not in name:  # "weights" may be a formula instead
                yield name
                yield name.rpartition(".")[0] or name

    # Comparing

    def compare(self, result: str, ours: Tensor, tolerance: str, note: str = "") -> None:
        """Compare a result with every expected tensor that holds it, whole or in part; with none, do nothing.

        Args:
            result: name of the whole.
            ours: the whole.
            tolerance: a key of `TOLERANCES`.
            note: what sets this way to the result apart.
        """
        for tensor in self._by_result.get(result, ()):
            expected = self.input(tensor)
            part = matching_part(ours, expected, list(self._texts(tensor)), self._strides(tensor))
            compared, index = part or (ours, "")
            name = f"{tensor} ({note})" if note else tensor
            self.add(compare_tensors(name, compared, expected, TOLERANCES[tolerance], index))

    def compare_list(self, name: str, ours: Sequence[object], expected: Sequence[object]) -> None:
        """Compare lists that must be equal."""
        self.add(compare_lists(name, ours, expected))

    def add(self, comparison: Comparison) -> None:
        """Take a comparison into the account."""
        self.comparisons.append(comparison)

    def skip_absent(self, *results: str) -> None:
        """Note which of the results that cases of this kind have are not in this one."""
        self.skipped += [result for result in results if not self.expects(result)]

    def _texts(self, tensor: str) -> Iterator[str]:
        """What X.json says about a tensor, the most particular first."""
        semantics = self.facts.get("semantics")
        if isinstance(semantics, Mapping):
            for key, text in semantics.items():
                if any(re.fullmatch(_pattern(name), tensor) for name in key.split("/")):
                    yield str(text)
        elif isinstance(semantics, str):
            yield semantics

    def _strides(self, tensor: str) -> list[int]:
        """Steps that X.json or the name itself tells."""
        named = [int(step) for step in re.findall(r"_s(\d+)(?=\.|$)", tensor)]
        return named + [
            value
            for key, value in self.facts.items()
            if key.endswith("_stride") and isinstance(value, int) and key.removesuffix("_stride") in tensor
        ]


def _result_name(tensor: str) -> str:
    """The name of the result that a tensor holds a part of."""
    return re.sub(r"_(?:sub|s\d+)(?=\.|$)", "", tensor)


def _pattern(name: str) -> str:
    """A name as X.json's "semantics" writes it (``scores.i``, ``run{r}.map.{i}``, ``panoptic.*_s4``) as a pattern."""
    pattern = re.sub(r"\\{\w+\\}|(?<=\\\.)[a-z]$", r"\\d+", re.escape(name)).replace(r"\*", ".*")
    return pattern + r"(?:\.\d+)?"
