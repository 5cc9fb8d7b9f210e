"""By how much longer a pass of one model takes than that of another: the cost of protection.

It is CPU time of a forward pass on one thread, the median of ratios of passes that took turns, each behind one of the
same model that is not timed, so that none pays for what another leaves in the caches; wall clocks of shared machines
tell less.
"""

import statistics
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.engine import cpu_seconds
from torchfault.data import Data


def latency(plain: nn.Module, models: Mapping[str, nn.Module], data: Data, *, batch: int) -> dict[str, float]:
    """Return by how much longer a pass takes: 0.05 is 5 %. Models take turns, in another order each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    given = data.inputs.repeat(-(-batch // len(data)), *[1] * (data.inputs.ndim - 1))[:batch]
    every, ratios = {"plain": plain, **models}, {name: list[float]() for name in models}
    order = np.random.default_rng(0)
    with torch.inference_mode():
        for _ in range(round(min(max(0.3 / cpu_seconds(partial(plain, given)), 7), 150))):
            took = dict[str, float]()
            for name in order.permutation(list(every)):
                every[name](given)
                took[name] = cpu_seconds(partial(every[name], given))
            for name in models:
                ratios[name].append(took[name] / took["plain"])
    torch.set_num_threads(threads)
    return {name: statistics.median(many) - 1 for name, many in ratios.items()}
