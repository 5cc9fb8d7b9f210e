"""A small network that is wholly known: every single-bit fault in its weights and activations, on every input.

Whatever a sampler or an estimator says can be held against the truth here; and a campaign repeated a thousand times
costs look-ups alone. The network is trained on the spot, and enumerated once per process.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault.campaign import Campaign, run
from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.engine.executor import Lanes
from torchfault.sampling import Exhaustive
from torchfault.space import FaultSpace
from torchfault.trials import Trials

__all__ = ["INPUTS", "Enumerated", "Table", "enumerated"]

INPUTS = 50
_BATCH = 1 << 16  # lanes
Bools = NDArray[np.bool_]


class Tiny(nn.Module):
    """Two convolutions and a linear layer for scikit-learn's digits: images (N, 1, 8, 8) to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, 2, 1, bias=False)
        self.conv2 = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return self.fc(x.flatten(1))


@dataclass(frozen=True, eq=False)
class Enumerated:
    """A network with *engine*, the *space* of its faults, and *outcomes*, bool (faults, inputs): which lanes fail.

    *several* gives the outputs of trials that are no single bit flip, shape (trials, classes).
    """

    engine: Engine
    space: FaultSpace
    outcomes: Bools
    several: Callable[["Enumerated", Trials], Tensor]

    def numbers(self, trials: Trials) -> tuple[NDArray[np.int64], Bools]:
        """Return the number of the only fault of each trial, and which trials are a single bit flip of the space."""
        row = np.minimum(trials.offsets[:-1], len(trials.toggle) - 1)
        site, element, toggle, keep = (part[row] for part in (trials.site, trials.element, trials.toggle, trials.keep))
        full = np.array([(1 << one.width) - 1 for one in trials.sites], dtype=np.uint64)[site]
        single = (np.diff(trials.offsets) == 1) & (keep == full) & (toggle > 0) & (toggle & (toggle - 1) == 0)
        bit = np.round(np.log2(np.maximum(toggle, 1).astype(np.float64))).astype(np.int64)
        names = np.array([self.space.position(one.name) for one in trials.sites])
        number = np.full(len(trials), -1, dtype=np.int64)
        number[single] = self.space.number(names[site[single]], element[single], bit[single])
        return number, single

    @property
    def data(self) -> Data:
        """The inputs and labels."""
        return self.engine.data

    @property
    def table(self) -> "Table":
        """An engine that looks outcomes up, to run campaigns with."""
        return Table(self)

    @cached_property
    def by_fault(self) -> NDArray[np.float64]:
        """The share of inputs on which each fault fails, shape (faults,)."""
        return self.outcomes.mean(axis=1)

    def truth(self, by: str = "model") -> NDArray[np.float64]:
        """Return the failure probability of every group, in the order of :meth:`torchfault.results.Results.table`."""
        return _truth(self, by)


@cache
def _truth(known: Enumerated, by: str) -> NDArray[np.float64]:
    code = known.space.axis(by).code(np.arange(len(known.space)))
    failing = np.bincount(code, weights=known.outcomes.sum(axis=1))
    return failing / (np.bincount(code) * known.outcomes.shape[1])


class Table:
    """A double of the engine for campaigns on :attr:`Enumerated.space`.

    Single bit flips are looked up; whatever else a trial may strike, such as pools, is left to :attr:`several`. *lanes*
    counts both.
    """

    executor = "table"

    def __init__(self, known: Enumerated) -> None:
        self.known, self.space, self.data, self.lanes = known, known.space, known.data, 0

    def golden(self) -> Tensor:
        """Return the outputs without faults."""
        return self.known.engine.golden()

    def digest(self) -> str:
        """Return the digest of the network."""
        return self.known.engine.digest()

    def run(self, trials: Trials) -> Iterator[Lanes]:
        """Yield all single bit flips, of scores (1, 0) or, failing, (0, 1); then all others with their outputs."""
        self.lanes += len(trials)
        faults, single = self.known.numbers(trials)
        where = np.flatnonzero(single)
        if where.size:
            inputs = trials.inputs[where]
            failed = torch.from_numpy(self.known.outcomes[faults[where], inputs].astype(np.float32))
            scores = torch.stack((1 - failed, failed), dim=1)
            golden = torch.tensor([[1.0, 0.0]]).expand(len(where), 2)
            yield Lanes(where, inputs, golden, scores, np.zeros(len(where), dtype=np.bool_))
        others = np.flatnonzero(~single)
        if others.size:
            inputs = trials.inputs[others]
            faulty = self.known.several(self.known, trials.take(others))
            yield Lanes(others, inputs, self.golden()[inputs], faulty, np.zeros(len(others), dtype=np.bool_))


def _tiny(known: Enumerated, trials: Trials) -> Tensor:
    """Return the outputs of struck lanes, shape (n, 10): :class:`Tiny` with a batch of parameters."""
    n, parameters = len(trials), dict(known.engine.model.named_parameters())
    names, owner = np.array([site.name for site in trials.sites])[trials.site], trials.owner

    def struck(name: str, values: Tensor) -> Tensor:
        here = np.flatnonzero(names == name)
        words = values.detach().reshape(len(values), -1).expand(n, -1).clone().numpy().view(np.uint32)
        at = owner[here], trials.element[here]
        words[at] = (words[at] & trials.keep[here].astype(np.uint32)) ^ trials.toggle[here].astype(np.uint32)
        return torch.from_numpy(words.view(np.float32)).reshape(n, *values.shape[1:])

    x = known.data.inputs[torch.from_numpy(trials.inputs)]
    for name in ("conv1", "conv2"):
        weight = struck(f"{name}.weight", parameters[f"{name}.weight"][None]).flatten(0, 1)
        x = struck(f"{name}:input", x).flatten(0, 1)[None]
        x = F.relu(F.conv2d(x, weight, None, 2, 1, groups=n)).unflatten(1, (n, -1))[0]
    x, weight = struck("fc:input", x.flatten(1)), struck("fc.weight", parameters["fc.weight"][None])
    return torch.einsum("ni,noi->no", x, weight) + struck("fc.bias", parameters["fc.bias"][None])


def _trained() -> tuple[nn.Module, Data]:
    """Return the network after some seconds of training, always the same, and images that it has not seen."""
    held = load_digits()
    images, labels = torch.from_numpy(held.images).float().div(16).unsqueeze(1), torch.from_numpy(held.target).long()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # how sums are split over threads would change the weights
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(5)
        network = Tiny().train()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(15):
            for batch in (INPUTS + torch.randperm(len(images) - INPUTS)).split(100):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(network(images[batch]), labels[batch]))
                optimizer.step()
    torch.set_num_threads(threads)
    return network.eval(), Data(images[:INPUTS].clone(), labels[:INPUTS].clone())


@cache
def enumerated() -> Enumerated:
    """Return the network with every fault in weights and in inputs of its layers on every input."""
    model, data = _trained()
    engine = Engine(model, data)
    space = engine.space.select(kinds=["weight", "bias", "input"], types=["Conv2d", "Linear"])
    columns = run(Campaign(engine, space, sampler=Exhaustive(block=_BATCH // INPUTS)), batch=_BATCH).columns
    return Enumerated(engine, space, columns.failed.reshape(len(space), INPUTS), _tiny)
