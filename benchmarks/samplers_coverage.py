"""The coverage section: how often 95 % intervals hold the truth of a network enumerated in full, and at which price."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from math import isnan
from typing import Any

from benchmarks.sections import Size
from benchmarks.side_by_side import side_by_side
from tests.support.enumerated import enumerated
from tests.support.validity import CASES, judge

__all__ = ["coverage"]


REPETITIONS: Mapping[Size, int] = {"quick": 20, "usual": 200, "full": 1000}


def coverage(size: Size) -> dict[str, Any]:
    """Return by case the share of campaigns, 200 or as *size* says, whose interval holds the truth, and what it cost.

    Cases run side by side, as many as there are processors: three minutes of two, a quarter of an hour in full.
    """
    found = side_by_side(partial(_judged, repetitions=REPETITIONS[size]), list(CASES))
    columns = {"coverage": "coverage", "sites": "coverage_of_sites", "worst": "coverage_of_the_worst_site"}
    columns |= {name: name for name in ("bias", "price", "trials", "lanes", "astray")}
    return {
        named: {case: figures[column] for case, figures in found.items() if not isnan(figures[column])}
        for column, named in columns.items()
    }


def _judged(name: str, *, repetitions: int) -> dict[str, float]:
    return asdict(judge(enumerated(), name, repetitions))
