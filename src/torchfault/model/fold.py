"""Sites with time steps from sites that are computed once at each step, and trials back to the single steps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from torchfault.names import site_name
from torchfault.space import FaultSpace, Site
from torchfault.trials import Trials

__all__ = ["Fold", "fold"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fold:
    """A fault space in which a site has all its time steps, and the same space with one site for each of them.

    *space* is the first and *apart* the second; *parts* gives the names in *apart* of every site of *space* that has
    steps, one for each step.
    """

    space: FaultSpace
    apart: FaultSpace
    parts: Mapping[str, tuple[str, ...]]

    def unfold(self, trials: Trials) -> Trials:
        """Return *trials* on sites of *space* as trials on sites of *apart*, row by row."""
        if not any(site.name in self.parts for site in trials.sites):
            return trials
        sites, begin, each, first = self._tables(trials.sites)
        step, element = np.divmod(trials.element, each[trials.site])
        site = begin[trials.site] + first[trials.site] + step
        return Trials(sites, trials.offsets, trials.inputs, site.astype(np.int32), element, trials.keep, trials.toggle)

    @lru_cache(maxsize=4)  # noqa: B019 - a fold lives as long as its engine
    def _tables(self, sites: tuple[Site, ...]) -> tuple[tuple[Site, ...], Ints, Ints, Ints]:
        """Return the sites apart, where those of each site begin, its elements per step, and its first step."""
        apart: list[Site] = []
        rows = []
        for site in sites:
            whole = self.space.site(site.name).steps if site.steps else None
            first = site.steps[0] - whole[0] if site.steps and whole else 0
            rows.append((len(apart), max(site.per_step, 1), first))
            apart += [self.apart.site(name) for name in self.parts.get(site.name, (site.name,))]
        begin, each, first = np.array(rows, dtype=np.int64).T
        return tuple(apart), begin, each, first


def fold(sites: Iterable[Site]) -> Fold:
    """Return *sites*, in execution order, with those of one tensor at several time steps made one.

    The steps of a cell's sites are known by their names. An operation that runs exactly as often as a cell, with the
    same shapes, is taken to run once at each step.

    >>> once = (Site("fc:output", (4,), kind="output"), Site("lif:state.v#0", (4,), kind="state"))
    >>> again = (Site("fc@1:output", (4,), kind="output"), Site("lif:state.v#1", (4,), kind="state"))
    >>> [(site.name, site.shape, site.steps) for site in fold((*once, *again)).space.sites]
    [('fc:output', (2, 4), (0, 2)), ('lif:state.v', (2, 4), (0, 2))]
    """
    apart = tuple(sites)
    groups: dict[str, list[Site]] = {}
    for site in apart:
        groups.setdefault(str(site_name(site.name).over_time), []).append(site)
    steps = {len(group) for group in groups.values() if _step(group[0]) is not None and len(group) > 1}
    folded: dict[str, Site] = {}
    parts: dict[str, tuple[str, ...]] = {}
    for site in apart:
        name, step = str(site_name(site.name).over_time), _step(site)
        group = groups[name]
        alike = len({(one.shape, one.word, one.bits) for one in group}) == 1
        often = len(group) > 1 and alike and (step is not None or len(group) in steps)
        if site is group[0] and often:
            # A value that no input reaches yet, as at the first step, is no site there.
            first = step or 0
            span, channel = (first, first + len(group)), None if site.channel is None else site.channel + 1
            folded[name] = replace(site, name=name, shape=(len(group), *site.shape), steps=span, channel=channel)
            parts[name] = tuple(one.name for one in group)
        elif len(group) == 1 and step is not None:
            folded[name], parts[name] = replace(site, name=name), (site.name,)
        elif not often:
            folded[site.name] = site
    return Fold(FaultSpace(tuple(folded.values())), FaultSpace(apart), parts)


def _step(site: Site) -> int | None:
    return site_name(site.name).step
