"""Options of commands that read label maps: what the pixels of a map mean."""

from __future__ import annotations

from typing import Annotated

import typer

from decoders.training.data.label_maps import MapFormat
from serving.errors import StartError

FirstId = Annotated[int | None, typer.Option(help="Label maps: id of the first class; by layout if left out.")]
Ignore = Annotated[str, typer.Option(help="Label maps: ids of no class, e.g. 0,255.")]


def map_format(first_id: int | None, ignore: str) -> MapFormat:
    """What the two options say.

    Raises:
        StartError: `ignore` is no list of ids.
    """
    parts = [part.strip() for part in ignore.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise StartError(f"--ignore {ignore} is no list of ids; write e.g. 0,255")
    return MapFormat(first_id, frozenset(map(int, parts)))
