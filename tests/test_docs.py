"""The documentation agrees with the code: links lead somewhere; commands, settings and generated parts are right."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
import typer.main

from serving.cli.main import app
from serving.config import Settings

REPOSITORY = Path(__file__).parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
IDS = [page.name if page.parent == REPOSITORY else f"docs/{page.name}" for page in PAGES]
COMMANDS = typer.main.get_command(app)


def outside_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands_in(text: str) -> list[list[str]]:
    """Every call of `polyhead` in the shell blocks of a page."""
    found = []
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.DOTALL):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            for part in re.split(r"&&|\|", line.split(" #")[0]):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name == "polyhead":
                    found.append(words[1:])
    return found


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that some words call, and its options among them."""
    command = COMMANDS
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in command.commands, f"no command '{name}'; there are: {', '.join(sorted(command.commands))}"
        command = command.commands[name]
    return command, [word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", REPOSITORY / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", outside_code(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / unquote(name)).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text()), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_shown_exists_with_its_options(page: Path) -> None:
    for words in commands_in(page.read_text()):
        command, options = resolve(words)
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert set(options) <= known | {"--help"}, f"{page.name}: polyhead {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_setting_named_exists(page: Path) -> None:
    known = {f"POLYHEAD_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"\bPOLYHEAD_[A-Z_]+[A-Z]\b", page.read_text())) <= known


def test_generated_parts_are_what_the_code_says(reference: ModuleType) -> None:
    pages = list(reference.pages())
    assert {page.name for page in pages} >= {"http.md", "settings.md"}
    for page in pages:
        assert page.read_text() == reference.rendered(page.read_text()), f"{page.name} is old: run `make reference`"


def test_every_page_is_in_the_index() -> None:
    index = (REPOSITORY / "docs" / "README.md").read_text()
    missing = [page.name for page in PAGES[1:] if page.name != "README.md" and f"({page.name}" not in index]
    assert not missing


def test_a_broken_link_a_wrong_option_and_a_wrong_command_are_noticed() -> None:
    assert "what-sharing-saves" in anchors("# A\n## What sharing saves\n")
    assert commands_in("```sh\n.venv/bin/polyhead serve --bundle x  # y\nls\n```") == [["serve", "--bundle", "x"]]
    command, options = resolve(["serve", "--bandle", "x"])
    assert not set(options) <= {name for parameter in command.params for name in parameter.opts}
    with pytest.raises(AssertionError, match="no command 'sirve'"):
        resolve(["sirve"])
