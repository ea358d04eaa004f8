"""Finding heads by name: the built-in ones, those of other packages, and the names that lead nowhere."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from decoders import registry
from decoders.depth import DepthDecoder
from decoders.panoptic import PanopticDecoder


def offer(monkeypatch: pytest.MonkeyPatch, **points: str | list[str]) -> None:
    """Put these names and values in the place of what is installed."""
    found = [
        EntryPoint(name, value, registry.GROUP)
        for name, values in points.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: found if group == registry.GROUP else [])


def test_built_in_heads_are_found_by_name() -> None:
    assert registry.decoder_class("panoptic") is PanopticDecoder
    assert registry.decoder_class("depth") is DepthDecoder


def test_a_head_of_another_package_is_imported_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, mine="this:mine", other="fractions:Fraction")
    monkeypatch.delitem(sys.modules, "this", raising=False)
    assert registry.available().keys() == {"mine", "other"}
    assert registry.decoder_class("other").__name__ == "Fraction"
    assert "this" not in sys.modules


def test_an_unknown_name_is_refused_with_those_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, panoptic="a:A", depth="b:B")
    with pytest.raises(ValueError, match=r"no decoder 'panoptc'; installed: depth, panoptic$"):
        registry.decoder_class("panoptc")


def test_a_name_offered_by_two_packages_is_refused_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, depth=["a:A", "b:B"])
    with pytest.raises(ValueError, match="decoder 'depth' is offered twice: a:A and b:B"):
        registry.decoder_class("depth")


def test_one_head_listed_twice_is_one_head(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, depth=["decoders.depth:DepthDecoder"] * 2)
    assert registry.decoder_class("depth") is DepthDecoder
