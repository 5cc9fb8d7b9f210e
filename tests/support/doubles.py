"""A fast double of the engine: outcomes are arithmetic on the struck words, so that campaigns can be checked."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from torchfault.data import Data, rows
from torchfault.engine.executor import Lanes
from torchfault.faults import BitFlip
from torchfault.sampling import stream
from torchfault.space import FaultSpace, Site
from torchfault.trials import Trials, strike

SPACE = FaultSpace(
    (
        Site("conv.weight", (4, 2, 3), word="int8", module="conv", module_type="Conv1d", channel=0),
        Site("conv:input", (2, 6), kind="input", module="conv", module_type="Conv1d", channel=0),
        Site("norm.weight", (4,), kind="norm", module="norm", module_type="BatchNorm1d", channel=0),
        Site("add:output", (8,), kind="output", bits=(28, 29, 30, 31)),
        Site("fc.bias", (3,), word="int8", kind="bias", module="fc", module_type="Linear"),
    )
)


def outcomes(trials: Trials) -> np.ndarray:
    """Return 0 (masked), 1 (failed) or 2 (NaN) for each trial: higher bits of earlier sites fail more often."""
    words = (trials.toggle ^ (~trials.keep & np.uint64(0xFFFF))).astype(np.float64)
    height = np.log2(np.maximum(words, 1)) / 32
    mixed = (trials.site * 7919 + trials.element * 104729 + np.floor(height * 3200) * 31) % 1009
    owner = trials.owner
    noise = (np.bincount(owner, mixed, minlength=len(trials)) + trials.inputs * 613) % 1009 / 1009
    chance = np.zeros(len(trials))
    np.maximum.at(chance, owner, height * 0.6 / (1 + trials.site))
    return np.where(noise < chance / 4, 2, np.where(noise < chance, 1, 0))


def truth_table(inputs: int) -> np.ndarray:
    """Return whether each fault of the space fails on each of so many *inputs*, shape (faults, inputs)."""
    index = np.arange(len(SPACE))
    struck = strike(SPACE, SPACE.locate(index), model=BitFlip(), rng=stream(0))
    return np.stack([outcomes(replace(struck, inputs=np.full(len(index), i))) > 0 for i in range(inputs)], axis=1)


class Double:
    """Honours :mod:`torchfault.engine.executor`; *seconds* are spent on every hundred lanes, *model* is its digest."""

    executor = "double"

    def __init__(self, *, inputs: int = 10, seconds: float = 0.0, model: str = "m" * 64, space: FaultSpace = SPACE):
        self.data = Data(torch.arange(inputs, dtype=torch.float32)[:, None], torch.arange(inputs) % 2)
        self.seconds, self.model, self.space, self.lanes = seconds, model, space, 0

    def golden(self) -> torch.Tensor:
        """Return scores in which class 0 always wins."""
        return torch.stack([torch.ones(len(self.data)), torch.zeros(len(self.data))], dim=1)

    def digest(self) -> str:
        """Return the digest given."""
        return self.model

    def run(self, trials: Trials) -> Iterator[Lanes]:
        """Yield the lanes in an order of their own, a hundred at a time."""
        outcome = outcomes(trials)
        order = np.argsort((np.arange(len(trials)) * 2654435761) % 4093, kind="stable")
        scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, float("nan")]])
        for first in range(0, len(order), 100):
            some = order[first : first + 100]
            if self.seconds:
                time.sleep(self.seconds)
            self.lanes += len(some)
            golden = rows(self.golden(), torch.from_numpy(trials.inputs[some]))
            yield Lanes(some, trials.inputs[some], golden, scores[outcome[some]], outcome[some] == 0)
