"""The shape of the code base, read from the source: imports point one way, and every module says what it is."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
LAYERS = ("encoders", "decoders", "serving", "polyhead")
"""From the bottom up; a package imports itself and those before it."""
FRONT_ENDS = frozenset({"fastapi", "grpc", "ray", "starlette"})
CORE = ("engine", "batching", "planner")
"""Modules of `serving` that must run without a server."""

MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for layer in LAYERS
    for path in sorted((REPOSITORY / layer).rglob("*.py"))
}
CORE_MODULES = [f"serving.{name}" for name in CORE if f"serving.{name}" in MODULES]

MAY_IMPORT = {
    "serving.answers": {"serving.answers"},
    "serving.bundles": {"serving.bundles"},
    "serving.streams": {"serving.streams"},
    "serving.oip": {"serving.oip", "serving.answers", "serving.bundles", "serving.streams"},
    "serving.gateways": {"serving.gateways", "serving.oip", "serving.answers", "serving.bundles", "serving.streams"},
    "serving.cli": {"serving.cli", "serving.answers", "serving.bundles", "serving.streams", "serving.gateways"},
}
"""Of the packages within `serving`, those that each may import; they may all import its modules."""


def imports_of(source: str, module: str, *, is_package: bool = False) -> set[str]:
    """Every module that a source names in an import, wherever it stands; `from a import b` gives a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                kept = parts[: len(parts) - node.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


@cache
def module_imports(module: str) -> set[str]:
    path = MODULES[module]
    return imports_of(path.read_text(), module, is_package=path.name == "__init__.py")


def upward_imports(module: str, imports: set[str]) -> set[str]:
    above = LAYERS[LAYERS.index(module.split(".")[0]) + 1 :]
    return {name for name in imports if name.split(".")[0] in above}


def reached_from(module: str) -> set[str]:
    """Everything imported by a module of ours, directly or through others of ours."""
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        for name in module_imports(waiting.pop()) - reached:
            reached.add(name)
            waiting += [name] if name in MODULES else []
    return reached


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_the_layers_only(module: str) -> None:
    assert upward_imports(module, module_imports(module)) == set()


@pytest.mark.parametrize("module", MODULES)
def test_module_opens_with_a_docstring(module: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


@pytest.mark.parametrize("module", [name for name in MODULES if name.split(".")[0] in ("encoders", "decoders")])
def test_encoders_and_decoders_know_no_server(module: str) -> None:
    assert {name.split(".")[0] for name in module_imports(module)}.isdisjoint(FRONT_ENDS)


def package_of(module: str) -> str:
    """The package within `serving` that a module lies in, or an empty text."""
    return next((package for package in MAY_IMPORT if module == package or module.startswith(f"{package}.")), "")


def test_every_package_of_serving_has_its_rule() -> None:
    packages = {name.rpartition(".")[0] for name in MODULES if name.count(".") == 2 and name.startswith("serving.")}
    assert packages == MAY_IMPORT.keys() | {"serving.protos"}


@pytest.mark.parametrize("module", [name for name in MODULES if package_of(name)])
def test_packages_of_serving_import_one_way(module: str) -> None:
    package = package_of(module)
    assert {package_of(name) for name in module_imports(module)} - {""} <= MAY_IMPORT[package]


def test_engine_and_batching_exist() -> None:
    assert {"serving.engine", "serving.batching"} <= MODULES.keys()


@pytest.mark.parametrize("module", CORE_MODULES)
def test_serving_core_reaches_no_front_end(module: str) -> None:
    assert {name.split(".")[0] for name in reached_from(module)}.isdisjoint(FRONT_ENDS)


def test_batching_is_pure_of_torch() -> None:
    if "serving.batching" not in MODULES:
        pytest.skip("serving/batching.py does not exist yet")
    assert "torch" not in {name.split(".")[0] for name in module_imports("serving.batching")}


@pytest.mark.parametrize(
    "source",
    [
        "import serving.engine",
        "from serving import engine",
        "from serving.engine import Engine",
        "def f():\n    import serving",
        "if TYPE_CHECKING:\n    from serving.types import Request",
    ],
)
def test_an_upward_import_is_noticed_wherever_it_stands(source: str) -> None:
    assert upward_imports("decoders.depth", imports_of(source, "decoders.depth"))


def test_a_relative_import_is_resolved() -> None:
    assert imports_of("from ..labels import Label", "decoders.training.data") == {
        "decoders.labels",
        "decoders.labels.Label",
    }
    assert "decoders.labels" in imports_of("from . import labels", "decoders", is_package=True)
