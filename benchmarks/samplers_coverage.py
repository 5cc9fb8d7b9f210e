"""The coverage section: how often 95 % intervals hold the truth of a network enumerated in full, and at which price."""

from typing import Any

from enumerated import enumerated
from validity import CASES, judge

__all__ = ["coverage"]


def coverage(quick: bool) -> dict[str, Any]:
    """Return the share of 1,000 campaigns (100 if *quick*) whose interval holds the truth, bias and price, by case."""
    known = enumerated()
    found = {name: judge(known, name, 100 if quick else 1000) for name in CASES}
    return {
        "coverage": {name: one.coverage for name, one in found.items()},
        "coverage_of_sites": {name: one.sites for name, one in found.items()},
        "bias": {name: one.bias for name, one in found.items()},
        "price": {name: one.price for name, one in found.items()},
    }
