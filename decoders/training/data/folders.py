"""Finding files: picture files below a folder, the parts (splits) that a data folder holds, pairs of equal stem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

_MORE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
"""Known before Pillow has loaded its plug-ins."""


class DataError(ValueError):
    """Data that can't be used; the message says what is wrong and what to do about it."""


def is_picture(path: Path) -> bool:
    """Whether a path names a picture file that Pillow knows, by its suffix."""
    if path.name.startswith("."):
        return False
    suffix = path.suffix.lower()
    return suffix in _MORE_SUFFIXES or suffix in Image.registered_extensions()


def pictures_in(folder: Path, *, deep: bool = False) -> list[Path]:
    """The picture files of a folder, sorted; `deep`: of the folders in it as well."""
    found = folder.rglob("*") if deep else folder.glob("*")
    return sorted(path for path in found if is_picture(path) and path.is_file())


def choose_split(splits: Iterable[str], asked: str | None, prefer: str, where: Path) -> str:
    """The split to read.

    Args:
        splits: there are.
        asked: by the user: a name, or how one begins ("train" for "train2017").
        prefer: how the name begins that is taken if none was asked for and there are several.
        where: for the message.

    Raises:
        DataError: none of that name, or several would do.
    """
    names = sorted(set(splits))
    if asked in names:
        return str(asked)
    wanted = asked or prefer
    fitting = [name for name in names if name.startswith(wanted)]
    if asked is None and len(names) == 1:
        return names[0]
    if len(fitting) == 1:
        return fitting[0]
    problem = f"no split '{wanted}'" if not fitting else f"'{wanted}' may be any of {', '.join(fitting)}"
    raise DataError(f"{where}: {problem}; there are: {', '.join(names) or 'none'}")


def first_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The first of some folders that exists below `root`."""
    return next((root / name for name in names if (root / name).is_dir()), None)
