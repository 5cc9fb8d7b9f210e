"""By how much longer a pass of one model takes than that of another: the cost of protection.

It is CPU time of a forward pass on one thread, the median of ratios of passes that took turns, each behind one of the
same model that is not timed, so that none pays for what another leaves in the caches; wall clocks of shared machines
tell less.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.stats import quantile_test
from torch import nn

from benchmarks.engine import cpu_seconds
from torchfault.data import Data
from torchfault.statistics import Estimate

TURNS = 31  # at least, of passes whose latency is told with its bounds, or decides


def latency(
    plain: nn.Module, models: Mapping[str, nn.Module], data: Data, *, batch: int, least: int = 7
) -> dict[str, Estimate]:
    """Return by how much longer a pass takes: 0.05 is 5 %. Models take turns, in another order each time.

    There are *least* turns and more, where a pass is short; the bounds are those of the median, by order statistics.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given = data.inputs.repeat(-(-batch // len(data)), *[1] * (data.inputs.ndim - 1))[:batch]
    every, ratios = {"plain": plain, **models}, {name: list[float]() for name in models}
    order = np.random.default_rng(0)
    with torch.inference_mode():
        for _ in range(round(max(min(0.3 / cpu_seconds(partial(plain, given)), 150), least))):
            took = dict[str, float]()
            for name in order.permutation(list(every)):
                every[name](given)
                took[name] = cpu_seconds(partial(every[name], given))
            for name in models:
                ratios[name].append(took[name] / took["plain"])
    torch.set_num_threads(threads)
    return {name: _median(np.array(many) - 1) for name, many in ratios.items()}


def _median(found: np.ndarray) -> Estimate:
    tested: Any = quantile_test(found, p=0.5)
    low, high = tested.confidence_interval(0.95)
    return Estimate(float(np.median(found)), float(low), float(high), len(found), "order statistics")
