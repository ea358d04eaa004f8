"""Writes the parts of the documentation that the code knows best: `python docs/reference.py`, or `make reference`.

A part stands between ``<!-- made by docs/reference.py: NAME -->`` and ``<!-- end -->``; what is around it is written by
hand. `tests/test_docs.py` holds that the committed files are what this makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from annotated_types import Ge, Gt, Le, Lt

from serving.config import Settings
from serving.errors import PolyheadError
from serving.metrics import Metrics

DOCS = Path(__file__).parent
_PART = re.compile(r"(<!-- made by docs/reference\.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def errors() -> str:
    """Every failure that a caller can meet, by status."""
    kinds = sorted(_below(PolyheadError), key=lambda kind: (kind.status, kind.__name__))
    rows = [
        (f"{kind.status}", kind.grpc_status, f"`{kind('', remedy='').reason}`", (kind.__doc__ or "").splitlines()[0])
        for kind in kinds
    ]
    return table(("HTTP", "gRPC", "`type`, last part", ""), rows)


def settings() -> str:
    """Every setting with its default and range."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.default)
        if isinstance(field.default, Path):
            default = "/".join(("~", *field.default.parts[-2:]))
        described = " ".join([field.description or "", *_ranges(field.metadata)]).strip()
        rows.append((f"`POLYHEAD_{name.upper()}`", f"`{default}`" if default else "", described))
    return table(("variable", "default", ""), rows)


def metrics() -> str:
    """Every metric."""
    made = Metrics(bundle="", encoder="", revision="", device=torch.device("cpu"), dtype="", heads=())
    rows = [
        (f"`{each.name}`", each.kind, ", ".join(f"`{label}`" for label in each.labels), each.text)
        for each in made.described
    ]
    return table(("name", "kind", "labels", ""), rows)


PARTS = {"errors": errors, "metrics": metrics, "settings": settings}


def rendered(text: str) -> str:
    """A page with its parts made anew."""
    return _PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}{found[3]}", text)


def pages() -> Iterator[Path]:
    """The pages that have such parts."""
    for page in sorted(DOCS.glob("*.md")):
        if _PART.search(page.read_text()):
            yield page


def _below(kind: type[PolyheadError]) -> Iterator[type[PolyheadError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


def _ranges(metadata: Iterable[object]) -> Iterator[str]:
    for bound in metadata:
        match bound:
            case Ge(ge=value):
                yield f"At least {value}."
            case Gt(gt=value):
                yield f"Above {value}."
            case Le(le=value):
                yield f"At most {value}."
            case Lt(lt=value):
                yield f"Below {value}."


if __name__ == "__main__":
    for page in pages():
        page.write_text(rendered(page.read_text()))
