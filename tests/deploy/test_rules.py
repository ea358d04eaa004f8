"""The rules: promtool's own tests, and what every alert must bring along."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml
from expressions import DEPLOY, rules

from deploy.grafana.promql import PICTURE_ROUTES

PROMETHEUS = DEPLOY / "prometheus"
ALERTS = [rule for rule in rules() if "alert" in rule]
RUNBOOK = DEPLOY.parent / "docs" / "operate.md"


def promtool(*arguments: str) -> None:
    """Run promtool in the folder of the rules; fails with what it says."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is absent; `make prometheus` installs it where it can")
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")


def test_every_alert_is_raised_when_it_must_be_and_only_then() -> None:
    promtool("test", "rules", "rules_test.yml")


def test_every_alert_is_tested_in_both_ways() -> None:
    cases = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for test in yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    raised = {name for name, is_raised in cases if is_raised}
    assert raised == {rule["alert"] for rule in ALERTS}
    never_silent = raised - {name for name, is_raised in cases if not is_raised}
    assert never_silent <= {
        "PolyheadHeadFails",
        "PolyheadStreamsEvicted",
    }  # silent for the other label, in the same case


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_an_alert_says_how_bad_it_is_what_it_means_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert DEPLOY.parent / path == RUNBOOK
    heading = f"### {rule['alert']}\n"
    assert anchor == str(rule["alert"]).lower()
    section = RUNBOOK.read_text().partition(heading)[2].partition("\n### ")[0]
    for part in ("**Means**", "**Look at**", "**Do**"):
        assert part in section, f"{RUNBOOK.name} lacks {part} under {heading}"


def test_every_section_of_the_run_book_has_its_alert() -> None:
    headings = re.findall(r"^### (Polyhead\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in ALERTS)


def test_rules_and_dashboard_mean_the_same_routes() -> None:
    routes = set(re.findall(r'route=~"([^"]*)"', (PROMETHEUS / "rules.yml").read_text()))
    assert routes == {PICTURE_ROUTES}
