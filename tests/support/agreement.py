"""Draw trials over all sites, collect an executor's outcomes, and hold them against the reference's."""

import numpy as np
import torch
from torch import Tensor

from torchfault.data import leaves
from torchfault.engine.executor import Executor
from torchfault.faults import BitFlip
from torchfault.space import FaultSpace
from torchfault.trials import Trials, strike


def random_trials(space: FaultSpace, inputs: int, n: int, *, faults: int = 1, seed: int = 0, model=None) -> Trials:
    """Draw trials that strike every site about as often, so that small ones are tested too."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, len(space.sites), n * faults)
    element = [rng.integers(0, space.sites[s].elements) for s in site]
    bit = [rng.choice(space.sites[s].bits) for s in site]
    where = space.locate(space.number(site, element, bit))
    counts = np.full(n, faults)
    return strike(space, where, model=model or BitFlip(), rng=rng, counts=counts, inputs=rng.integers(0, inputs, n))


def collect(executor: Executor, trials: Trials) -> list[Tensor]:
    """Return the faulty outputs in the order of the trials, every trial exactly once; NaN where the model crashed."""
    rows: dict[int, list[Tensor]] = {}
    for lanes in executor.run(trials):
        assert (trials.inputs[lanes.trial] == lanes.inputs).all()
        for i, trial in enumerate(lanes.trial.tolist()):
            assert trial not in rows
            rows[trial] = [leaf[i] for leaf in leaves(lanes.outputs)]
    assert sorted(rows) == list(range(len(trials)))
    return [torch.stack(column) for column in zip(*(rows[i] for i in range(len(trials))), strict=True)]


def assert_agree(mine: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        a, b = a.double().flatten(1), b.double().flatten(1)
        finite = torch.isfinite(b)
        scale = torch.where(finite, b.abs(), 0).amax(1, keepdim=True)
        # Above a quarter of the largest float, sums overflow in one order of additions and not in another.
        tame = (scale < 1e30).expand_as(a)
        assert torch.equal(torch.isfinite(a)[tame], finite[tame])
        both = finite & torch.isfinite(a)
        assert ((a - b).abs() <= 2e-4 * scale + 1e-6)[both].all()
