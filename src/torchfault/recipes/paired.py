"""The same faults in several representations of a model: which fails more, by pairs of trials."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from torchfault.campaign import Campaign, Standing, run
from torchfault.criteria import Criterion, Top1Change
from torchfault.engine import Engine
from torchfault.errors import SamplingError
from torchfault.sampling import Design, Draws, Population, Strata, Tally
from torchfault.space import FaultSpace
from torchfault.statistics import MaxTrials
from torchfault.statistics.differences import paired_difference
from torchfault.statistics.intervals import wilson
from torchfault.store import Store

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["in_part", "paired"]


def paired(
    engines: Mapping[str, Engine],
    sites: str | Sequence[str] | Mapping[str, Sequence[str]] = "*",
    *,
    trials: int = 1000,
    criterion: Criterion | None = None,
    seed: int = 0,
    level: float = 0.95,
    store: Store | str | Path | None = None,
    name: str = "paired",
    progress: Callable[[Standing], None] | None = None,
) -> "pd.DataFrame":
    """Return how often one random bit flip fails in each of *engines*, struck in the same elements on the same inputs.

    *engines* run representations of one model, on the same data. *sites* are globs of what all of them have, in the
    same shapes, as the weights are, or names for each engine, in the same order; each trial draws an element, an input,
    and how high a bit it strikes, which in a word of w bits is bit w u for a number u from 0 to 1. A row for each has
    the share that fails (*criterion*, the top class unless told) with its interval, and what it has more than the
    first, *difference*, with an interval of paired differences that is far narrower than that of two samples.

    Each engine has a campaign of its own, *name* and its own name, which *store* keeps and goes on with where it was
    interrupted; *progress* is told of each, as a part by the engine's name. Raises :class:`SamplingError` where sites
    differ, and :class:`CampaignError` where the outputs of one are not finite without faults, or where *store* holds
    another campaign of that name.

    >>> import torch
    >>> from torchfault import Data, represent
    >>> _ = torch.manual_seed(0)
    >>> model, data = torch.nn.Linear(4, 3).eval(), Data(torch.randn(8, 4))
    >>> engines = {how: Engine(represent(model, how), data) for how in ("float32", "mxfp8_e4m3")}
    >>> paired(engines, "weight", trials=200)[["format", "trials"]].to_numpy().tolist()
    [['float32', 200], ['mxfp8_e4m3', 200]]
    """
    import pandas as pd

    if isinstance(sites, Mapping):
        spaces = {how: _listed(engine.space, sites[how]) for how, engine in engines.items()}
    else:
        spaces = {how: _ordered(engine.space.select(sites)) for how, engine in engines.items()}
    _check(spaces, engines, named=not isinstance(sites, Mapping))
    failed = {}
    for how, engine in engines.items():
        judge = criterion or Top1Change()
        campaign = Campaign(
            engine, spaces[how], sampler=_Heights(), criterion=judge, seed=seed, stop=MaxTrials(trials), level=level
        )
        results = run(campaign, store=store, name=f"{name}-{how}", progress=in_part(progress, how))
        failed[how] = results.columns.failed[:trials].astype(bool)  # the store may hold more
    base, found = next(iter(failed.values())), []
    for how, mine in failed.items():
        low, high = (float(bound) for bound in wilson(mine.sum(), trials, level=level))
        pairs = (base & mine, base & ~mine, mine & ~base, ~(base | mine))
        more = paired_difference(*(int(outcomes.sum()) for outcomes in pairs), level=level)
        found.append((how, trials, float(mine.mean()), low, high, more.value, more.low, more.high))
    columns = ["format", "trials", "value", "low", "high", "difference", "difference_low", "difference_high"]
    return pd.DataFrame(found, columns=columns)


def in_part(progress: Callable[[Standing], None] | None, name: str) -> Callable[[Standing], None] | None:
    """Return what tells *progress* of a campaign as the part *name*, before what its own parts are called."""
    if progress is None:
        return None
    return lambda standing: progress(replace(standing, part=f"{name} {standing.part}".rstrip()))


@dataclass(frozen=True)
class _Heights:
    """Draws an element, and a bit by its height in the word: the same element and height in words of any width."""

    block: int = 512

    def design(self, population: Population) -> Design:
        space, size = population.space, len(population.space)
        assert isinstance(space, FaultSpace)
        elements, widest = sum(site.elements for site in space.sites), max(site.width for site in space.sites)
        return Design(Strata.one(size), block=self.block, largest_weight=elements * widest / size)

    def draw(
        self, population: Population, n: int, *, rng: np.random.Generator, start: int, tally: Tally | None = None
    ) -> Draws:
        del start, tally  # draws are independent
        space = population.space
        assert isinstance(space, FaultSpace)
        ends = np.cumsum([site.elements for site in space.sites])
        element, height = rng.integers(0, ends[-1], n), rng.random(n)
        site = np.searchsorted(ends, element, side="right")
        width = np.array([one.width for one in space.sites])[site]
        inner = element - np.concatenate(([0], ends[:-1]))[site]
        number = space.number(site, inner, (height * width).astype(np.int64))
        return Draws(number, ends[-1] * width / len(space), np.zeros(n, dtype=np.int32))


def _ordered(space: FaultSpace) -> FaultSpace:
    """Return *space* with its sites by name: engines find them in the order in which their models read them."""
    return FaultSpace(tuple(sorted(space.sites, key=lambda site: site.name)))


def _listed(space: FaultSpace, names: Sequence[str]) -> FaultSpace:
    known = {site.name: site for site in space.sites}
    return FaultSpace(tuple(known[name] for name in names))


def _check(spaces: Mapping[str, FaultSpace], engines: Mapping[str, Engine], *, named: bool) -> None:
    shapes = {how: [(named and site.name, site.shape) for site in space.sites] for how, space in spaces.items()}
    first = next(iter(shapes))
    for name, mine in shapes.items():
        if mine != shapes[first] or len(engines[name].data) != len(engines[first].data):
            raise SamplingError(
                f"the same faults need the same sites and inputs, got others in '{name}' than in '{first}'; choose "
                "sites that both have in one shape, such as '*.weight'"
            )
