"""The dashboard: what is committed is what the code makes, and it uses every metric that there is."""

from __future__ import annotations

import json
import re

import pytest
import torch
from expressions import expressions, family, panels

from deploy.grafana.__main__ import dashboards
from deploy.grafana.promql import PICTURE_ROUTES
from serving.metrics import GRPC_ROUTES, HTTP_ROUTES, Metrics

UNUSED: frozenset[str] = frozenset()
"""Metrics of ours that no panel shows, each with its reason."""


@pytest.fixture(scope="module")
def defined() -> set[str]:
    """Names of all metrics of the server."""
    metrics = Metrics(
        bundle="tiny", encoder="vit", revision="1", device=torch.device("cpu"), dtype="float32", heads=["depth"]
    )
    return {described.name for described in metrics.described}


def test_the_committed_dashboards_are_what_the_code_makes() -> None:
    for path, content in dashboards().items():
        assert path.read_text() == content, f"{path.name} is old: run `make dashboards`"


def test_every_metric_that_is_used_exists(defined: set[str]) -> None:
    used = {family(name) for each in expressions() for name in each.metrics if name.startswith("polyhead_")}
    assert used - defined == set()


def test_every_metric_that_exists_is_on_a_panel(defined: set[str]) -> None:
    shown = {family(name) for each in expressions() if each.where.startswith("panel ") for name in each.metrics}
    assert defined - shown == UNUSED


def test_every_panel_says_what_it_tells_and_in_which_unit() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        if panel["title"] != "Serving":  # text
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def test_every_panel_asks_the_prometheus_that_the_viewer_chose() -> None:
    (path,) = dashboards()
    dashboard = json.loads(path.read_text())
    assert [(each["name"], each["type"]) for each in dashboard["templating"]["list"]] == [("datasource", "datasource")]
    for panel in panels():
        assert {panel["datasource"]["uid"], *(each["datasource"]["uid"] for each in panel["targets"])} == {
            "${datasource}"
        }


def test_panels_have_ids_of_their_own_and_cover_no_other() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_the_promise_is_about_the_routes_that_answer_one_picture() -> None:
    streams = {route for route in GRPC_ROUTES if route.endswith(("SegmentVideo", "ModelStreamInfer"))}
    kept = {route for route in (*HTTP_ROUTES, *GRPC_ROUTES) if re.fullmatch(PICTURE_ROUTES, route)}
    assert kept == {*HTTP_ROUTES, *GRPC_ROUTES} - streams
    assert not any(re.fullmatch(PICTURE_ROUTES, route) for route in ("/metrics", "/readyz", "/", "/video"))
