"""The PromQL of `deploy/`: of every panel, recording rule and alert, and what it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RATE_INTERVAL = "30s"
"""What a test puts for Grafana's `$__rate_interval`."""

_COMPARISONS = frozenset({"==", "!=", ">", "<", ">=", "<="})
_SETS = frozenset({"and", "or", "unless"})
_SUFFIXES = ("_bucket", "_count", "_sum")


@dataclass(frozen=True)
class Expression:
    """One expression that must give at least a series on a server that works.

    Attributes:
        where: panel or rule, for people.
        text: PromQL.
    """

    where: str
    text: str

    @property
    def selectors(self) -> list[str]:
        """Each instant selector in it, as PromQL of its own."""
        found: list[str] = []

        def visit(node: Any) -> bool:
            if isinstance(node, promql_parser.VectorSelector):
                found.append(node.prettify())
            return True

        promql_parser.walk(promql_parser.parse(self.text), visit)
        return found

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics in it."""
        return {selector.partition("{")[0] for selector in self.selectors}


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard that are no rows."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "polyhead.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    """All recording rules and alerts."""
    groups = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[Expression]:
    """Of all panels and recording rules as they are, of alerts what is compared."""
    found = [
        Expression(f"panel {panel['title']}", target["expr"].replace("$__rate_interval", RATE_INTERVAL))
        for panel in panels()
        for target in panel["targets"]
    ]
    for rule in rules():
        if "record" in rule:
            found.append(Expression(f"record {rule['record']}", rule["expr"]))
        else:
            parsed = promql_parser.parse(rule["expr"])
            found += [Expression(f"alert {rule['alert']}", text) for text in operands(parsed)]
    return found


def operands(node: Any) -> Iterator[str]:
    """What an alert compares, without its comparisons and with what is always there left out."""
    if isinstance(node, promql_parser.ParenExpr):
        yield from operands(node.expr)
    elif isinstance(node, promql_parser.BinaryExpr) and str(node.op) in _COMPARISONS | _SETS:
        yield from operands(node.lhs)
        yield from operands(node.rhs)
    elif isinstance(node, promql_parser.Call) and node.func.name == "absent":
        yield node.args[0].prettify()
    elif Expression("", node.prettify()).selectors:
        yield node.prettify()


def family(metric: str) -> str:
    """The name under which a histogram's series are defined; others are as they are."""
    for suffix in _SUFFIXES:
        metric = metric.removesuffix(suffix)
    return metric
