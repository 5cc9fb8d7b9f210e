"""The value of a uniform campaign that a half-width ended: unbiased although few failures end it sooner."""

from dataclasses import replace
from typing import Any

from torchfault.sampling.design import Design
from torchfault.statistics import Estimate, HalfWidth
from torchfault.statistics.looks import after_looks
from torchfault.store import Columns, Record

__all__ = ["LOOK", "unbiased"]

LOOK = 128  # trials between two looks of the stopping rule
# Looks times failures; beyond, in campaigns so long that the bias is as good as gone, it would take long.
_MOST = 1 << 21


def unbiased(estimate: Estimate, record: Record, columns: Columns, design: Design) -> Estimate:
    """Return *estimate* with a value that reckons with the looks of a half-width rule, where one ended the campaign."""
    rule = _half_width(record.configuration.get("stop"))
    alike = design.looks == "one" and design.replacement and columns.unit == "fault"
    plain = alike and columns.weights is None and columns.values is None
    repeated = record.configuration.get("inputs_per_fault", 1) != 1
    trials, failures = len(columns), int(columns.failed.sum())
    ended = record.status == "finished" and trials > 0
    if rule is None or not plain or repeated or not ended or trials // LOOK * failures > _MOST:
        return estimate
    looks = [*range(LOOK, trials, LOOK), trials]
    value = after_looks(failures, trials, looks=looks, stops=lambda n, k: rule.narrow(k, n))
    return replace(estimate, value=value, low=min(estimate.low, value), high=max(estimate.high, value))


def _half_width(described: Any) -> HalfWidth | None:
    """Return the rule from its description: a half-width of the model, or one with a most of trials beside it."""
    if not isinstance(described, dict):
        return None
    if described.get("class") == "HalfWidth":
        rule = HalfWidth(**described["fields"])
        return rule if rule.by == "model" else None
    inner = described["fields"]["rules"] if described.get("class") == "AnyOf" else []
    if sorted(rule.get("class", "") for rule in inner) != ["HalfWidth", "MaxTrials"]:
        return None
    return next((found for one in inner if (found := _half_width(one)) is not None), None)
