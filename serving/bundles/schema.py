"""Bundles as written: a YAML file that names an encoder, the heads on it, their weights, labels and input geometry."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from encoders.geometry import FitGeometry, InputGeometry, ShortestEdgeGeometry, WindowGeometry
from serving.errors import BundleError

_PACKAGED = Path(__file__).parents[1] / "bundled"


class GeometryEntry(BaseModel):
    """The input of the network; exactly one of the three rules. All numbers are pixels.

    Attributes:
        height, width: scale to fit and pad (`FitGeometry`).
        windows: side of square windows (`WindowGeometry`).
        shortest_edge: length of the scaled shorter side (`ShortestEdgeGeometry`), with `longest` and `multiple`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    height: int | None = Field(None, gt=0)
    width: int | None = Field(None, gt=0)
    windows: int | None = Field(None, gt=0)
    shortest_edge: int | None = Field(None, gt=0)
    longest: int = Field(1333, gt=0)
    multiple: int = Field(32, gt=0)

    @model_validator(mode="after")
    def _one_rule(self) -> GeometryEntry:
        fits = self.height is not None and self.width is not None
        rules = [fits, self.windows is not None, self.shortest_edge is not None]
        if sum(rules) != 1 or (self.height is None) != (self.width is None):
            raise ValueError("give one rule: height and width, or windows, or shortest_edge")
        if self.shortest_edge is None and self.model_fields_set & {"longest", "multiple"}:
            raise ValueError("longest and multiple belong to shortest_edge")
        return self

    def build(self) -> InputGeometry:
        """The rule."""
        if self.windows is not None:
            return WindowGeometry(self.windows)
        if self.shortest_edge is not None:
            return ShortestEdgeGeometry(self.shortest_edge, self.longest, self.multiple)
        assert self.height is not None and self.width is not None
        return FitGeometry(self.height, self.width)


class EncoderEntry(BaseModel):
    """The encoder.

    Attributes:
        weights: reference to a file or a Hugging Face folder; see `serving.bundles.weights`.
        adapter: ``transformers`` runs any of that library's vision models; ``polyhead`` is our own forward.
        patch_size: resample the published patch kernels to this side, pixels.
        resample_grid: (grid_h, grid_w); resample the learned positions to it once, before any picture.
        num_heads: only for sizes that were never published.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    weights: str
    adapter: Literal["polyhead", "transformers"] = "polyhead"
    patch_size: int | None = Field(None, gt=0)
    resample_grid: tuple[int, int] | None = None
    num_heads: int | None = Field(None, gt=0)


class TaskEntry(BaseModel):
    """A head in a bundle.

    Attributes:
        decoder: its registered name.
        weights: reference to its weights; a head that learns nothing, or from `examples`, has none.
        sha256: of that file, checked when it is fetched.
        examples: folder with a folder of pictures for each class, for heads that learn from a few of them.
        labels: for heads that have classes: a packaged label set's name, or a .yaml file.
        description: one line for people.
        geometry: its own input, if it can't work at the common one (costs a pass of its own).
        settings: keyword arguments of the decoder.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    decoder: str
    weights: str | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    examples: Path | None = None
    labels: str | None = None
    description: str = ""
    geometry: GeometryEntry | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class BundleFile(BaseModel):
    """A bundle as written. One that `extends` another has all that the other has, and what it says itself wins."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    description: str = ""
    encoder: EncoderEntry
    geometry: GeometryEntry
    default_tasks: tuple[str, ...]
    tasks: dict[str, TaskEntry]

    @model_validator(mode="after")
    def _defaults_exist(self) -> BundleFile:
        unknown = [task for task in self.default_tasks if task not in self.tasks]
        if unknown or not self.default_tasks:
            raise ValueError(f"default_tasks {list(self.default_tasks)} must name some of {sorted(self.tasks)}")
        if len(set(self.default_tasks)) < len(self.default_tasks):
            raise ValueError(f"default_tasks {list(self.default_tasks)} name a task twice")
        return self

    def geometry_of(self, task: str) -> InputGeometry:
        """The input geometry of a task: its own or the common one."""
        return (self.tasks[task].geometry or self.geometry).build()


def packaged_bundles() -> tuple[str, ...]:
    """Names of the bundles that come with polyhead."""
    return tuple(sorted(path.stem for path in _PACKAGED.glob("*.yaml")))


def read_bundle(name_or_path: str) -> tuple[BundleFile, Path]:
    """Read and check a bundle's file without loading any weights.

    Args:
        name_or_path: a packaged bundle's name, or the path of a YAML file.

    Returns:
        (the bundle as written, the folder that its paths are relative to).

    Raises:
        BundleError: there is no such bundle, or its file is wrong.
    """
    return _read(name_or_path, ())


def _read(name_or_path: str, extending: tuple[Path, ...]) -> tuple[BundleFile, Path]:
    """As `read_bundle`; `extending` are the files on the way here, each of which extends the next."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _PACKAGED / f"{name_or_path}.yaml"
    if not path.is_file():
        packaged = ", ".join(packaged_bundles())
        asked = f" (that {extending[-1]} extends)" if extending else ""
        raise BundleError(f"no bundle '{name_or_path}'{asked}; packaged: {packaged}; or give the path of a .yaml file")
    path = path.resolve()
    if path in extending:
        raise BundleError(" extends ".join(str(each) for each in (*extending, path)))
    try:
        content = yaml.load(path.read_text(), _Loader)  # noqa: S506  # a SafeLoader
        return BundleFile.model_validate(_extended(content, (*extending, path))), path.parent
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise BundleError(f"{path} is not a valid bundle: {wrong}") from None


class _RepeatedKeyError(yaml.YAMLError):
    """A mapping has a key twice, which YAML forbids and PyYAML overlooks: the last value would win silently."""


class _Loader(yaml.SafeLoader):
    """Plain values only, and each key of a mapping once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As PyYAML's; raises `_RepeatedKeyError`, which names the key and both lines."""
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # "<<", no key of its own
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                continue  # PyYAML's to refuse
            if key in lines:
                raise _RepeatedKeyError(f"line {line} gives '{key}' again, after line {lines[key]}; keep one of them")
            lines[key] = line
        return super().construct_mapping(node, deep)


def _extended(content: Any, extending: tuple[Path, ...]) -> Any:
    """A bundle's content on top of that of the bundle which it extends, if it does."""
    if not isinstance(content, dict) or "extends" not in content:
        return content
    path, name = extending[-1], content["extends"]
    if not isinstance(name, str):
        raise BundleError(f"{path} extends {name!r}; give a packaged bundle's name or the path of a .yaml file")
    base, folder = _read(str(path.parent / name) if name.endswith((".yaml", ".yml")) else name, extending)
    below = base.model_dump(mode="json", exclude_unset=True)
    below["encoder"]["weights"] = _absolute(base.encoder.weights, folder)
    for entry in below["tasks"].values():
        for key in ("weights", "examples", "labels"):
            if entry.get(key) is not None and (key != "labels" or entry[key].endswith((".yaml", ".yml"))):
                entry[key] = _absolute(entry[key], folder)
    return _merged(below, {key: value for key, value in content.items() if key != "extends"})


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key, down to the settings of a head; but a geometry is one thing.

    Settings are those of a decoder: where another one takes its place, they go with it.
    """
    merged = dict(below)
    if isinstance(above.get("decoder"), str) and above["decoder"] != below.get("decoder"):
        merged.pop("settings", None)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "geometry"
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _absolute(reference: str, folder: Path) -> str:
    return reference if "://" in reference else str(folder / Path(reference).expanduser())
