"""The coverage section: how often 95 % intervals hold the truth of a network enumerated in full, and at which price."""

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from math import isnan
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.sections import Size
from tests.support.enumerated import enumerated
from tests.support.validity import CASES, judge

__all__ = ["coverage"]


REPETITIONS: Mapping[Size, int] = {"quick": 20, "usual": 200, "full": 1000}


def coverage(size: Size) -> dict[str, Any]:
    """Return by case the share of campaigns, 200 or as *size* says, whose interval holds the truth, and what it cost.

    Cases run side by side, as many as there are processors: three minutes of two, a quarter of an hour in full.
    """
    names = list(CASES)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        found = dict(zip(names, pool.map(partial(_judged, repetitions=REPETITIONS[size]), names), strict=True))
    columns = {"coverage": "coverage", "sites": "coverage_of_sites", "worst": "coverage_of_the_worst_site"}
    columns |= {name: name for name in ("bias", "price", "trials", "lanes", "astray")}
    return {
        named: {case: figures[column] for case, figures in found.items() if not isnan(figures[column])}
        for column, named in columns.items()
    }


def _judged(name: str, *, repetitions: int) -> dict[str, float]:
    torch.set_num_threads(1)  # the processors are taken by other cases
    return asdict(judge(enumerated(), name, repetitions))
