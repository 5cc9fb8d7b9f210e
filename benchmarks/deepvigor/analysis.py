"""The analysis of a model by whichever refinements are on: words by their flips, whole channels, or pooled errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from benchmarks.deepvigor.attempts import Bench
from benchmarks.deepvigor.filters import FilterAnalysis, with_biases
from benchmarks.deepvigor.flips import analyse_flips
from benchmarks.deepvigor.ladders import Storage
from benchmarks.deepvigor.pooled import analyse_pooled
from benchmarks.deepvigor.refinements import PUBLISHED, Refinements
from benchmarks.deepvigor.tally import Tally
from benchmarks.deepvigor.targets import all_targets, targets_of
from torchfault.criteria import Criterion, Top1Change
from torchfault.engine import Engine
from torchfault.recipes import layer_space, vulnerability
from torchfault.sampling import TwoStage
from torchfault.sampling.two_stage import Count
from torchfault.space import FaultSpace
from torchfault.words.deltas import values_of

__all__ = ["Published", "analyse"]


@dataclass(frozen=True, eq=False)
class Published:
    """What an analysis found: the factors of *channels*, the failing shares of *bits*, and the *lanes* that ran."""

    channels: pd.DataFrame
    bits: pd.DataFrame
    lanes: int


def analyse(
    engine: Engine,
    space: FaultSpace | None = None,
    *,
    share: float | None = None,
    channels: Mapping[str, Sequence[int]] | None = None,
    weights: Count = 12,
    neurons: Count = "log2",
    fresh: bool = True,
    refinements: Refinements = PUBLISHED,
    stored: str | None = None,
    criterion: Criterion | None = None,
    seed: int = 0,
) -> Published:
    """Return vulnerability factors by the published method, or with some of the *refinements*.

    What is drawn is what :func:`torchfault.recipes.vulnerability` draws with these arguments; without *shape* one value
    for the channel speaks for all of its weights, without *per_image* the words are the same on all images. *stored*
    thinks words stored in another format than the tensors' own, such as ``"int8"``.

    >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> from torchfault import Data
    >>> found = analyse(Engine(network, Data(torch.randn(5, 4))), weights=None, neurons=None)
    >>> bool(found.channels["value"].between(0, 1).all())
    True
    """
    space = layer_space(engine.space) if space is None else space
    options = {"share": share, "channels": channels, "weights": weights, "neurons": neurons, "seed": seed}
    campaign = vulnerability(engine, space, fresh=fresh, gate=False, **options)  # type: ignore[arg-type]
    space, sampler = campaign.space, campaign.sampler
    assert isinstance(sampler, TwoStage)
    storages = {i: _storage(site.word, sampler.words[site.name], stored) for i, site in enumerate(space.sites)}
    positions = {
        i: site.bits if storages[i].word == site.word else tuple(range(storages[i].width))
        for i, site in enumerate(space.sites)
    }
    bench, tally, images = Bench(engine, criterion or Top1Change()), Tally(space, positions), len(engine.data)
    whole = [i for i, site in enumerate(space.sites) if not site.is_activation and not refinements.shape]
    pooled = [i for i, site in enumerate(space.sites) if site.is_activation and not refinements.per_image]
    for targets in targets_of(space, sampler, images, seed=seed):
        kept = ~np.isin(targets.site, [*whole, *pooled])
        if kept.any():
            analyse_flips(bench, space, targets.where(kept), storages, refinements, tally)
    every = all_targets(space, replace(sampler, fresh=False), images, seed=seed) if pooled else None
    for number in pooled:
        assert every is not None
        mine = every.where(every.site == number)
        analyse_pooled(bench, space, mine, storages[number], refinements, tally)
    if whole:
        drawn = {name: np.unique(held) for name, held in sampler.channels.items()}
        biased = with_biases(engine.model, [space.sites[number].module for number in whole])
        executor = "hooks" if engine.executor == "hooks" else "auto"
        other = Bench(Engine(biased, engine.data, executor=executor, memory=engine.memory), bench.criterion)
        FilterAnalysis(other, engine, drawn, refinements, seed).run(space, whole, storages, tally)
        bench.lanes += other.lanes
    return Published(tally.channels(), tally.bits(), bench.lanes)


def _storage(word: str, words: np.ndarray, stored: str | None) -> Storage:
    """Return how the words of a site are thought to be stored."""
    if stored is None:
        return Storage(word)
    return Storage.of(torch.from_numpy(values_of(words, word)), stored)
