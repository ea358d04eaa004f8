"""Writes the dashboards: ``python -m deploy.grafana``."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.overview import overview

DASHBOARDS = Path(__file__).parent / "dashboards"


def dashboards() -> dict[Path, str]:
    """The text of every dashboard's file."""
    return {DASHBOARDS / "polyhead.json": JSONEncoder(sort_keys=True, indent=2).encode(overview()) + "\n"}


if __name__ == "__main__":
    for path, content in dashboards().items():
        path.write_text(content)
