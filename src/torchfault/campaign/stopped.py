"""The value of a uniform campaign that a half-width ended: unbiased although few failures end it sooner."""

from dataclasses import replace
from typing import Any

from torchfault.statistics import Estimate, HalfWidth
from torchfault.statistics.looks import after_looks
from torchfault.store import Columns, Record

__all__ = ["LOOK", "unbiased"]

LOOK = 128  # trials between two looks of the stopping rule
_MOST = (
    1 << 21
)  # looks times failures; beyond, in campaigns so long that the bias is as good as gone, it would take long


def unbiased(estimate: Estimate, record: Record, columns: Columns) -> Estimate:
    """Return *estimate* with a value that reckons with the looks of a half-width rule, where one ended the campaign."""
    rule = _half_width(record.configuration.get("stop"))
    plain = columns.weights is None and columns.values is None and record.population is None
    trials, failures = len(columns), int(columns.failed.sum())
    if rule is None or not plain or record.status != "finished" or trials // LOOK * failures > _MOST or not trials:
        return estimate
    looks = [*range(LOOK, trials, LOOK), trials]
    value = after_looks(failures, trials, looks=looks, stops=lambda n, k: rule.narrow(k, n))
    return replace(estimate, value=value, low=min(estimate.low, value), high=max(estimate.high, value))


def _half_width(described: Any) -> HalfWidth | None:
    """Return the rule from its description: a half-width, or one with a most of trials beside it."""
    if not isinstance(described, dict):
        return None
    if described.get("class") == "HalfWidth":
        return HalfWidth(**described["fields"])
    inner = described["fields"]["rules"] if described.get("class") == "AnyOf" else []
    if sorted(rule.get("class", "") for rule in inner) != ["HalfWidth", "MaxTrials"]:
        return None
    return next(found for rule in inner if (found := _half_width(rule)) is not None)
