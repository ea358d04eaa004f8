"""The copies in tests/golden: what runs where the larger collection is absent must be the same numbers."""

from __future__ import annotations

from pathlib import Path

PACKAGED = Path(__file__).parent / "golden"


def test_packaged_goldens_equal_the_shared_ones_byte_for_byte(golden_dir: Path) -> None:
    copies = sorted(path for path in PACKAGED.iterdir() if path.name != "README.md")
    assert copies
    assert [c.name for c in copies if c.read_bytes() != (golden_dir / c.name).read_bytes()] == []


def test_packaged_goldens_stay_small() -> None:
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) < 3_000_000
