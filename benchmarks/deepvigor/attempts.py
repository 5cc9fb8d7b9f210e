"""Try changes of value on the engine: each a trial of its own, outcomes judged by a criterion."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.deepvigor.ladders import Ladders
from torchfault.criteria import Criterion, judge
from torchfault.data import rows
from torchfault.engine import Engine
from torchfault.space import Site
from torchfault.trials import Trials
from torchfault.words import word

__all__ = ["Attempts", "Bench"]

Ints = NDArray[np.int64]


@dataclass(eq=False)
class Bench:
    """Where lanes are run and counted: *engine* and *criterion*."""

    engine: Engine
    criterion: Criterion
    lanes: int = 0

    def failed(self, trials: Trials) -> NDArray[np.bool_]:
        """Return which of *trials* fail, shape (trials,)."""
        outcome = np.zeros(len(trials), dtype=bool)
        for lanes in self.engine.run(trials) if len(trials) else ():
            self.lanes += len(lanes.trial)
            labels = rows(self.engine.data.labels, torch.from_numpy(lanes.inputs))
            outcome[lanes.trial] = judge(self.criterion, lanes.golden, lanes.faulty, labels).failed
        return outcome


@dataclass(frozen=True, eq=False)
class Attempts:
    """The targets of one search: words of several sites, each on one image, with their ladders joined.

    Target i is word ``element[i]`` of ``sites[site[i]]`` on input ``image[i]``, and row ``row[i]`` of that site's
    ladders.
    """

    bench: Bench
    sites: tuple[Site, ...]
    ladders: Mapping[int, Ladders]
    site: Ints
    element: Ints
    image: Ints
    row: Ints = field(init=False)

    def __post_init__(self) -> None:
        row = np.zeros(len(self.site), dtype=np.int64)
        for number, ladders in self.ladders.items():
            row[self.site == number] = np.arange(len(ladders))
        object.__setattr__(self, "row", row)

    @property
    def delta(self) -> NDArray[np.float64]:
        """What every column adds, shape (targets, columns), NaN where a site has fewer columns."""
        width = max((ladders.delta.shape[1] for ladders in self.ladders.values()), default=0)
        joined = np.full((len(self.site), width), np.nan)
        for number, ladders in self.ladders.items():
            joined[self.site == number, : ladders.delta.shape[1]] = ladders.delta
        return joined

    def __call__(self, target: Ints, column: Ints) -> NDArray[np.bool_]:
        """Return where trying *column* on *target* changes the outcome, shape (n,) each."""
        keep, toggle = np.zeros(len(target), dtype=np.uint64), np.zeros(len(target), dtype=np.uint64)
        site = self.site[target]
        for number in np.unique(site):
            mine = np.flatnonzero(site == number)
            fmt = word(self.sites[number].word)
            keep[mine], toggle[mine] = self.ladders[number].masks(fmt, self.row[target[mine]], column[mine])
        offsets, where = np.arange(len(target) + 1), site.astype(np.int32)
        trials = Trials(self.sites, offsets, self.image[target], where, self.element[target], keep, toggle)
        return self.bench.failed(trials)
